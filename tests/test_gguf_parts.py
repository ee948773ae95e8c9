"""Models split into parts, as the gguf package writes them: opened as one by the engine and by convert, or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_values import finish
from tiny_gguf import write_tiny

import localdiff
from localdiff.convert import convert
from localdiff.convert.gguf_file import open_gguf
from localdiff.engine import File
from localdiff.errors import ModelFileError

DIFFUSION = "mask=1,shift=1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("whole") / "tiny.gguf")


@pytest.fixture(scope="module")
def written(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    split(whole, folder)
    return folder


@pytest.fixture
def parts(written: Path, tmp_path: Path) -> list[Path]:
    """The three parts, to be changed."""
    shutil.copytree(written, tmp_path / "parts")
    return sorted((tmp_path / "parts").iterdir())


def split(whole: Path, folder: Path, **options: Any) -> None:
    reader = gguf.GGUFReader(whole)
    per_part = -(-len(reader.tensors) // 3)
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama", split_max_tensors=per_part, **options)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    finish(writer)


def test_the_engine_sees_one_file(whole: Path, parts: list[Path]) -> None:
    assert [path.name for path in parts] == [f"tiny-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for access in ("map", "read"):
        one, split_up = File.open(whole), File.open(parts[0], access)
        assert [(t.name, t.type, t.shape) for t in one.tensors] == [(t.name, t.type, t.shape) for t in split_up.tensors]
        for tensor in one.tensors:
            np.testing.assert_array_equal(one.decode(tensor.name), split_up.decode(tensor.name))
        assert {key: split_up.metadata[key] for key in one.metadata} == dict(one.metadata)


def test_the_model_of_the_parts_is_the_model(whole: Path, parts: list[Path]) -> None:
    tokens = [3, 7, 1, 9]
    with localdiff.load(whole) as one, localdiff.load(parts[0]) as split_up:
        np.testing.assert_array_equal(one.logits(tokens), split_up.logits(tokens))


def test_the_first_part_may_hold_metadata_only(whole: Path, tmp_path: Path) -> None:
    split(whole, tmp_path, small_first_shard=True)
    first = min(tmp_path.iterdir())
    assert not gguf.GGUFReader(first).tensors
    assert [t.name for t in File.open(first).tensors] == [t.name for t in File.open(whole).tensors]
    assert [t.name for t in open_gguf(first).tensors] == [t.name for t in gguf.GGUFReader(whole).tensors]


def test_convert_joins_the_parts(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    convert(whole, tmp_path / "a.gguf", diffusion=DIFFUSION, name="x")
    convert(parts[0], tmp_path / "b.gguf", diffusion=DIFFUSION, name="x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_no_part_is_overwritten(parts: list[Path]) -> None:
    before = parts[2].read_bytes()
    with pytest.raises(localdiff.errors.OptionError, match="is read by this conversion"):
        convert(parts[0], parts[2], diffusion=DIFFUSION)
    assert parts[2].read_bytes() == before


def test_a_single_part_of_one_needs_no_siblings(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    numbered = tmp_path / "tiny-00001-of-00001.gguf"
    rewritten(path, numbered, {"split.no": 0, "split.count": 1, "split.tensors.count": 12})
    assert len(File.open(numbered).tensors) == len(open_gguf(numbered).tensors) == 12


# Refusals: the engine and convert say the same


def rewritten(source: Path, out: Path, changes: dict[str, Any], drop: int = 0, double: str | None = None) -> None:
    """Write `source` again with other values under some keys (None removes one), without its last `drop` tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    fields.pop("general.architecture", None)
    tensors = [(tensor.name, np.array(tensor.data)) for tensor in reader.tensors[: len(reader.tensors) - drop]]
    for key, field in fields.items():
        if key not in changes:
            writer.add_key_value(key, field.contents(), *field.types[:2])
    for key, value in changes.items():
        add = writer.add_string if isinstance(value, str) else writer.add_int32
        if value is not None:
            add(key, value)
    for name, data in tensors:
        writer.add_tensor(double or name, data)
        double = None
    finish(writer)


def change(part: int, changes: dict[str, Any] | None = None, **options: Any) -> Callable[[list[Path]], None]:
    def prepare(parts: list[Path]) -> None:
        temporary = parts[part].with_suffix(".new")
        rewritten(parts[part], temporary, changes or {}, **options)
        temporary.replace(parts[part])

    return prepare


def swap(parts: list[Path]) -> None:
    content = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(content)


def cut(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-500])


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda parts: parts[1].unlink(), "tiny-00002-of-00003.gguf: .*(cannot be opened|No such file)"),
        (cut, "tiny-00002-of-00003.gguf: .*(is the file complete|is not a whole GGUF file)"),
        (swap, "tiny-00002-of-00003.gguf: metadata 'split.no' is 2, expected 1; are all parts of the same model"),
        (change(2, {"split.count": 4}), "tiny-00003-of-00003.gguf: metadata 'split.count' is 4, expected 3"),
        (change(1, {"split.no": None}), "tiny-00002-of-00003.gguf: metadata 'split.no' is 0, expected 1"),
        (change(1, {"split.count": None}), "metadata 'split.count' is 1, expected 3"),
        (change(1, {"split.tensors.count": 13}), "metadata 'split.tensors.count' is 13, expected 12"),
        (change(1, {"split.tensors.count": None}), "metadata 'split.tensors.count' is missing"),
        (change(0, {"split.tensors.count": None}), "metadata 'split.tensors.count' is missing"),
        (change(2, drop=1), "tiny-00001-of-00003.gguf: metadata 'split.tensors.count' is 12, expected 11"),
        (change(0, {"split.count": 70000}), "is part 1 of 70000, expected at most 65535"),
        (change(0, {"split.count": 2}), "is part 1 of 2, but its name does not end in -00001-of-00002.gguf"),
        (change(0, {"split.no": 3}), "is part 4 of 3, expected at most"),
        (change(0, {"split.count": -3}), "metadata 'split.count' is -3, expected"),
        (change(0, {"split.count": "3"}), "metadata 'split.count' is .*, expected"),
        (change(2, double="token_embd.weight"), "tensor 'token_embd.weight' is in two of its parts"),
    ],
)
def test_parts_that_do_not_fit(parts: list[Path], prepare: Callable[[list[Path]], object], message: str) -> None:
    prepare(parts)
    for opened in (File.open, open_gguf):
        with pytest.raises(ModelFileError, match=message):
            opened(parts[0])


def test_only_the_first_part_opens_the_model(parts: list[Path]) -> None:
    for opened in (File.open, open_gguf):
        with pytest.raises(ModelFileError, match="is part 2 of 3; open the first, .*tiny-00001-of-00003.gguf"):
            opened(parts[1])
        renamed = parts[0].with_name("model.gguf")
        shutil.copy(parts[0], renamed)
        with pytest.raises(ModelFileError, match="but its name does not end in -00001-of-00003.gguf; give the parts"):
            opened(renamed)
