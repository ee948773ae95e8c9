"""Downloading a model: what is asked of the hub, the checks before and after, and the record.

The hub says which files a revision has, how large they are and their SHA-256; the revision is pinned to its commit
before anything is fetched. Only GGUF files are taken: they hold no code. A transfer that was cut is resumed by the
next one. A file whose sum is another is removed and nothing is recorded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import LocaldiffError, ModelFileError, OptionError
from .names import Name, choose
from .store import Stored, folder, keep, models_folder, stored

ROOM = 1.15  # memory that a model takes to its file's size; canvases come on top
_CHUNK = 1 << 22

Verifying = Callable[[int, int], None]  # bytes checked, bytes in all


@dataclass(frozen=True)
class Pulled:
    """What pull() did: the model, and whether anything had to be fetched."""

    model: Stored
    fetched: bool


def pull(text: str, revision: str | None = None, force: bool = False, verifying: Verifying | None = None) -> Pulled:
    """Fetch a model from the hub ($HF_ENDPOINT, with $HF_TOKEN where it is needed) and record it.

    text       a name as names.py describes
    revision   branch, tag or commit (default: main)
    force      also where memory is short
    raises     OptionError for names, ModelFileError where the hub or the disk refuses or a file is not as told
    """
    name = Name.parse(text)
    try:
        info = _asked(lambda hub: hub.HfApi().model_info(name.repository, revision=revision, files_metadata=True), name)
    except _Unreachable as error:
        raise ModelFileError(f"{error}; localdiff list shows what is on this machine") from None
    files = {each.rfilename: each for each in info.siblings or ()}
    chosen = choose(list(files), name)
    for file in chosen:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise ModelFileError(f"{name.repository} has a file called {file!r}, expected a name inside the repository")
        if files[file].lfs is None or files[file].size is None:
            raise ModelFileError(f"{name.repository} gives no checksum for {file}; it cannot be verified")
    sums = tuple(files[file].lfs.sha256 for file in chosen)
    size = sum(files[file].size for file in chosen)
    for model in stored():
        if model.repository == name.repository and (model.files, model.sha256) == (tuple(chosen), sums):
            return Pulled(model, False)
    _check_room(name, size, None if force else _memory())
    target = folder(name.repository)
    for file, expected in zip(chosen, sums, strict=True):
        _fetch(name, file, info.sha, target)
        _verify(target / file, expected, files[file].size, verifying)
    model = Stored(name.repository, info.sha, tuple(chosen), sums, size)
    keep(model)
    shutil.rmtree(target / ".cache", ignore_errors=True)  # notes on the transfer, of no use once it is done
    return Pulled(model, True)


class _Unreachable(LocaldiffError):
    """The hub did not answer."""


def _asked(question: Callable[[Any], Any], name: Name) -> Any:
    """What huggingface-hub answers; its failures as one sentence."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors, utils
    except ImportError:
        raise OptionError("downloading needs huggingface-hub: pip install huggingface-hub") from None
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        return question(hub)
    except errors.GatedRepoError:
        raise ModelFileError(f"{name.repository} asks for consent on its page first; then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ModelFileError(f"the hub has no {name.repository}, or it is private and HF_TOKEN is not set") from None
    except errors.RevisionNotFoundError:
        raise ModelFileError(f"{name.repository} has no such revision; leave --revision out for the newest") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _Unreachable(f"the hub cannot be reached: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise ModelFileError(f"{name.repository}: the hub answered {_first_line(error)}") from None
    except OSError as error:  # of the disk
        raise ModelFileError(f"{name.repository}: {error.strerror or _first_line(error)}") from error
    except Exception as error:  # its HTTP library's own: there is no common base that is public
        if type(error).__module__.split(".")[0].startswith("httpx"):
            raise _Unreachable(f"the hub cannot be reached: {_first_line(error)}") from None
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_room(name: Name, size: int, memory: int | None) -> None:
    """Refuse what does not fit on the disk, or to run in `memory` bytes; None = it need not run here."""
    base = models_folder()
    while not base.exists():
        base = base.parent
    free = shutil.disk_usage(base).free
    if size > free:
        raise ModelFileError(f"{name.repository} takes {_size(size)}, but {base} has {_size(free)} free")
    if memory is not None and size * ROOM > memory:
        raise OptionError(
            f"{name.repository} needs about {_size(round(size * ROOM))} of memory, but this machine has {_size(memory)}"
            "; take a smaller type, or give --force"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _fetch(name: Name, file: str, commit: str, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(f"{target}: {error.strerror or error}; LOCALDIFF_MODELS names another folder") from None
    _asked(lambda hub: hub.hf_hub_download(name.repository, file, revision=commit, local_dir=target), name)


def _verify(path: Path, expected: str, size: int, verifying: Verifying | None) -> None:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if verifying is not None:
                verifying(done, size)
    if digest.hexdigest() != expected:
        path.unlink()
        raise ModelFileError(
            f"{path.name} arrived with SHA-256 {digest.hexdigest()[:16]}..., expected {expected[:16]}...; it was "
            "removed, try again"
        )
