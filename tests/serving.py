"""A server for tests: `localdiff serve` as a process, with the embedded model and a tiny one that can chat."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tiny_gguf import CHAT_TEMPLATE, write_tiny

ROOT = Path(__file__).resolve().parent.parent
STORIES, CHATTY = "localdiff-stories", "chatty"


def write_chatty(folder: Path) -> Path:
    """A model of random weights with a chat template."""
    return write_tiny(folder / "chatty.gguf", context=1024, **{"tokenizer.chat_template": CHAT_TEMPLATE})


class Server:
    """The running command; url where it answers. flags: those of `localdiff serve`, besides the port; threads: None =
    all, prefix: a program that starts it."""

    def __init__(self, *flags: str, threads: int | None = 1, prefix: tuple[str, ...] = (), **environment: str) -> None:
        flags = flags if threads is None else ("--threads", str(threads), *flags)
        command = [*prefix, sys.executable, "-m", "localdiff", "serve", "--port", "0", *flags]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r" at (http://\S+)$", line.rstrip()):
                self.url = found[1]
                return
        raise AssertionError(f"the server did not start: {''.join(said)}")

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
