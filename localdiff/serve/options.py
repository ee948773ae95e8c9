"""ServeOptions: the flags of `localdiff serve`, besides those of loading."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError


def _option(help: str, default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ServeOptions:
    host: str = _option("address to listen on; others than this machine's own need a key", "127.0.0.1")
    port: int = _option("port to listen on, 0 = any free one", 8080)
    api_key: str | None = _option(
        "key that clients must send; the variable LOCALDIFF_API_KEY keeps it off the command line"
    )
    allow_host: tuple[str, ...] = _option("another NAME:PORT that browsers may call this server; may be repeated", ())
    parallel: int = _option("texts denoised together", 32)
    queue: int = _option("texts that may wait", 512)
    timeout: float = _option("seconds that a request may take, waiting included", 600.0)
    memory: int | None = _option("MiB for sessions of a model (default: half of what is free at the start)")
    patience: int = _option("seconds for running requests when the server is stopped", 30)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("parallel", 1, 4096),
            ("queue", 0, 1 << 20),
            ("patience", 0, 86400),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise OptionError(f"{name} is {value}, expected {low} to {high}")
        if not 0 < self.timeout <= 1e6:
            raise OptionError(f"timeout is {self.timeout}, expected more than 0 and at most 1e6 seconds")
        if self.memory is not None and self.memory < 1:
            raise OptionError(f"memory is {self.memory}, expected at least 1 MiB")
