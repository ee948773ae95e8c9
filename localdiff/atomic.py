"""Atomic writing of files: whoever looks sees the old file or the whole new one, never half of it.

The new file grows under a hidden temporary name in the target's folder, is synced to disk, optionally re-opened and
validated, renamed over the target, and the folder is synced. An error or Ctrl-C removes the temporary file. A process
that is killed outright leaves it behind; the next writer of the same target removes it, which it recognises by the file
lock that only a living writer holds. Not here: folders of several files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import ModelFileError, OptionError


@contextlib.contextmanager
def atomic_file(
    target: Path, *, validate: Callable[[Path], None] | None = None, overwrite: bool = True
) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `target`, on any exception it is removed.

    validate   called with the finished temporary path; what it raises keeps the target as it was
    overwrite  False refuses an existing target, before and after the writing
    raises     OptionError for a target that cannot be written, ModelFileError when the disk refuses
    """
    check_target(target, overwrite)
    _remove_stale(target)
    temporary, descriptor = _create(target)
    try:
        yield temporary
        os.fsync(descriptor)
        if validate is not None:
            validate(temporary)
        if overwrite:
            os.replace(temporary, target)
        else:
            os.link(temporary, target)  # unlike a rename it fails where the name was taken meanwhile
            temporary.unlink()
        sync(target.parent)
    except OSError as error:
        # numpy tells how many values were left over, without an errno
        reason = error.strerror or "not all of it fits on the disk"
        raise ModelFileError(f"{target}: could not be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def check_target(target: Path, overwrite: bool = True) -> None:
    """Raise OptionError where atomic_file() could not write `target`; for asking before long work."""
    if not target.parent.is_dir():
        raise OptionError(f"{target}: its folder does not exist; create it first")
    if target.is_dir():
        raise OptionError(f"{target}: is a folder, expected the name of a file to write")
    if not os.access(target.parent, os.W_OK):
        raise OptionError(f"{target}: its folder cannot be written to; choose another one")
    if target.exists() and not overwrite:
        raise OptionError(f"{target}: exists already; remove it or choose another name")


def _create(target: Path) -> tuple[Path, int]:
    while True:
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            raise ModelFileError(f"{target}: cannot be written: {error.strerror or error}") from error
        with contextlib.suppress(OSError):  # a file system without locks: then nobody takes the file for stale either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else another writer took it for stale before it was locked
            return temporary, descriptor
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    prefix = f".{target.name}."
    for path in target.parent.iterdir():
        if not (path.name.startswith(prefix) and path.name.endswith(".part") and path.is_file()):
            continue
        with contextlib.suppress(OSError):  # BlockingIOError: its writer lives
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
