"""T24: what commands do to the outside, under a trace of their system calls: no network, and nothing is written but in
the user's cache and the folder that was named.

Every process of a command is traced. Reading is not looked at, nor calls that failed. The server may listen on
loopback.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import STORIES, Server
from tiny_gguf import CHAT_TEMPLATE, write_tiny

ROOT = Path(__file__).resolve().parent.parent
STRACE = shutil.which("strace")
CALLS = (
    "network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,"
    "symlinkat,truncate,chmod,fchmodat,chown,fchownat,mknod,mknodat,utimensat,setxattr"
)
NOWHERE = ("/dev/null", "/dev/tty", "/proc/self/")

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


def traced(log: Path) -> tuple[str, ...]:
    assert STRACE is not None
    return (STRACE, "-f", "--seccomp-bpf", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-e", "signal=none",
            "-o", str(log))  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """Of a user who has nothing yet; bytecode is what pip leaves at installation."""
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "scratch"}
    for name in places.values():
        (folder / name).mkdir()
    return {**{name: str(folder / place) for name, place in places.items()}, "PYTHONDONTWRITEBYTECODE": "1"}


def trespasses(log: Path, allowed: list[Path], listens: bool = False) -> list[str]:
    """The lines of a trace that should not be there."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        call = re.search(r"^\d+ +(?:<\.\.\. )?(\w+)", line)
        if call is None or re.search(r"= -1 E", line):
            continue
        if re.search(r"AF_INET6?|AF_PACKET", line):
            local = 'inet_addr("127.0.0.1")' in line and call[1] != "connect"
            opens = call[1] == "socket" and "SOCK_STREAM" in line
            if not (listens and (local or opens or call[1] in ("accept4", "getsockname", "getpeername"))):
                found.append(line)
            continue
        paths = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        writes = "O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line or not call[1].startswith("open")
        if not paths or not writes or "AF_" in line:
            continue
        if call[1] in ("recvfrom", "sendto", "recvmsg", "sendmsg", "setsockopt", "getsockopt"):
            continue
        for path in paths:
            absolute = os.path.normpath(ROOT / path)
            if not absolute.startswith((*NOWHERE, *map(str, allowed))):
                found.append(line)
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", context=256, **{"tokenizer.chat_template": CHAT_TEMPLATE})


COMMANDS = (
    ("run", "Once upon a time", "-n", "8"),
    ("run", "{tiny}", "hello", "-n", "8", "--json"),
    ("run", "Once", "-n", "24", "--json-schema", "{schema}", "--decoder", "threshold"),
    ("infill", "Once upon a [[4]] there"),
    ("info", "{tiny}"),
    ("plan", "{tiny}", "-n", "32"),
    ("list",),
    ("doctor",),
    ("quantize", "{tiny}", "{out}/small.gguf", "--type", "Q8_0"),
    ("imatrix", "{tiny}", "-o", "{out}/im.gguf", "--data", "{text}"),
    ("eval", "--task", "nll", "--data", "{text}", "--output", "{out}/r.json"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_keep_to_their_folder(tmp_path: Path, tiny: Path, command: tuple[str, ...]) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    out.mkdir()
    (tmp_path / "schema.json").write_text('{"enum": ["a", "b"]}')
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog looked at it. " * 60)
    names = {"tiny": tiny, "out": out, "schema": tmp_path / "schema.json", "text": tmp_path / "text.txt"}
    line = [*traced(log), sys.executable, "-m", "localdiff", *(part.format(**names) for part in command)]
    env = environment(tmp_path)
    done = subprocess.run(line, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert trespasses(log, [Path(env["XDG_CACHE_HOME"]), out]) == []


def test_the_server_listens_on_loopback_only(tmp_path: Path, tiny: Path) -> None:
    log = tmp_path / "log"
    env = environment(tmp_path)
    with Server("--model", f"{STORIES}={ROOT / 'localdiff/models' / STORIES}.gguf", "--model", f"chatty={tiny}",
                prefix=traced(log), **env) as server:  # fmt: skip
        body = {"model": STORIES, "prompt": "Once", "max_tokens": 8}
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200
        messages = [{"role": "user", "content": "x"}]
        body = {"model": "chatty", "messages": messages, "max_tokens": 8}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        for path in ("/", "/metrics", "/v1/models", "/health"):
            assert httpx.get(f"{server.url}{path}", timeout=60).status_code == 200
        (child,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        server.process.wait(60)
    assert trespasses(log, [Path(env["XDG_CACHE_HOME"])], listens=True) == []
    assert "listen(" in log.read_text()


def test_a_trace_shows_what_is_forbidden(tmp_path: Path) -> None:
    script = (
        "import socket, os\n"
        f"open({str(tmp_path / 'elsewhere')!r}, 'w').close()\n"
        f"os.rename({str(tmp_path / 'elsewhere')!r}, {str(tmp_path / 'there')!r})\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9))\n"
    )
    log = tmp_path / "log"
    subprocess.run([*traced(log), sys.executable, "-c", script], check=True)
    calls = {re.split(r"[ (]+", line)[1] for line in trespasses(log, [tmp_path / "out"])}
    assert {"openat", "rename", "socket", "connect"} <= calls
    assert any("connect" in line for line in trespasses(log, [tmp_path], listens=True))
