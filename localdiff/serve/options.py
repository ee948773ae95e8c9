"""ServeOptions: the flags of `localdiff serve`, besides those of loading."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import OptionError
from ..fields import check_value, option


@dataclass(frozen=True)
class ServeOptions:
    host: str = option("address to listen on; others than this machine's own need a key", "127.0.0.1")
    port: int = option("port to listen on, 0 = any free one", 8080, range=(0, 65535))
    api_key: str | None = option(
        "key that clients must send; the variable LOCALDIFF_API_KEY keeps it off the command line"
    )
    allow_host: tuple[str, ...] = option("another NAME:PORT that browsers may call this server; may be repeated", ())
    parallel: int = option("texts denoised together", 32, range=(1, 4096))
    queue: int = option("texts that may wait", 512, range=(0, 1 << 20))
    timeout: float = option("seconds that a request may take, waiting included", 600.0)
    memory: int | None = option("MiB for sessions of a model (default: half of what is free at the start)")
    patience: int = option("seconds for running requests when the server is stopped", 30, range=(0, 86400))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))
        if not 0 < self.timeout <= 1e6:
            raise OptionError(f"timeout is {self.timeout}, expected more than 0 and at most 1e6 seconds")
        if self.memory is not None and self.memory < 1:
            raise OptionError(f"memory is {self.memory}, expected at least 1 MiB")
