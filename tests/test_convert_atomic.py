"""Interrupted writes: whatever happens, the target is the old file or the whole new one."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader
from tiny import tiny_checkpoint

from localdiff.atomic import atomic_file, check_target
from localdiff.convert import convert
from localdiff.errors import ModelFileError, OptionError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "gpt2"
    tiny_checkpoint("gpt2", folder, n_layer=1)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_success_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    seen = []
    with atomic_file(target, validate=lambda path: seen.append(path.read_text())) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert (target.read_text(), seen, names(tmp_path)) == ("new", ["new"], ["file"])
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("stage", ["body", "validation"])
def test_errors_keep_the_old_file(tmp_path: Path, error: type[BaseException], stage: str) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def validate(path: Path) -> None:
        raise error("broken")

    def write() -> None:
        with atomic_file(target, validate=validate) as temporary:
            temporary.write_text("half")
            if stage == "body":
                raise error("broken")

    with pytest.raises(error):
        write()
    assert (target.read_text(), names(tmp_path)) == ("old", ["file"])


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for target, overwrite, message in (
        (tmp_path / "absent" / "file", True, "its folder does not exist"),
        (tmp_path, True, "is a folder"),
        (tmp_path / "file", False, "exists already"),
    ):
        with pytest.raises(OptionError, match=message), atomic_file(target, overwrite=overwrite):
            raise AssertionError
    assert names(tmp_path) == ["file"]


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "file"

    def write() -> None:
        with atomic_file(target, overwrite=False) as temporary:
            temporary.write_text("mine")
            target.write_text("theirs")

    with pytest.raises(ModelFileError, match="could not be written"):
        write()
    assert (target.read_text(), names(tmp_path)) == ("theirs", ["file"])


def test_two_writers_at_once_do_not_remove_each_other(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic_file(target) as first:
        first.write_text("first")
        with atomic_file(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
        assert first.exists()
    assert (target.read_text(), names(tmp_path)) == ("first", ["file"])


KILLED = """
import os, signal, sys
from pathlib import Path
from localdiff.convert import convert
def progress(name, done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), getattr(signal, sys.argv[4]))
convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


def convert_killed(checkpoint: Path, out: Path, tensor: int, kind: str) -> int:
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(out), str(tensor), kind]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("tensor", [1, 9, 16])
def test_kill_during_conversion_leaves_no_file_and_the_next_run_cleans_up(
    checkpoint: Path, tmp_path: Path, tensor: int
) -> None:
    out = tmp_path / "out.gguf"
    assert convert_killed(checkpoint, out, tensor, "SIGKILL") == -signal.SIGKILL
    assert not out.exists()
    convert(checkpoint, out)
    assert names(tmp_path) == ["out.gguf"]
    whole = out.read_bytes()
    assert convert_killed(checkpoint, out, tensor, "SIGKILL") == -signal.SIGKILL
    assert out.read_bytes() == whole
    assert len(GGUFReader(out).tensors) == 16


def test_ctrl_c_during_conversion_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    assert convert_killed(checkpoint, tmp_path / "out.gguf", 5, "SIGINT") != 0
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OptionError, match="its folder cannot be written to"):
        check_target(tmp_path / "file")


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes beyond the limit then fail with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-c", KILLED, str(checkpoint), str(tmp_path / "out.gguf"), "99", "SIGKILL"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert "ModelFileError" in done.stderr.splitlines()[-1]
    assert "could not be written" in done.stderr.splitlines()[-1]
    assert names(tmp_path) == []


def test_sources_are_never_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(checkpoint, folder)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before = (folder / name).read_bytes()
        with pytest.raises(OptionError, match="is read by this conversion"):
            convert(folder, folder / name)
        assert (folder / name).read_bytes() == before
    convert(folder, tmp_path / "a.gguf")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "a.gguf")
    for out in (tmp_path / "a.gguf", tmp_path / "link.gguf"):
        with pytest.raises(OptionError, match="is read by this conversion"):
            convert(tmp_path / "a.gguf", out, diffusion="mask=1,shift=1")


def test_progress_counts_every_tensor(checkpoint: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    convert(checkpoint, tmp_path / "out.gguf", progress=lambda *call: calls.append(call))
    assert [call[1:] for call in calls] == [(i, 16) for i in range(1, 17)]
    assert [call[0] for call in calls] == [tensor.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors]
