"""The GGUF reader against the gguf package: the same description of the same file, for written and for real files."""

import json
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cpp_tools import tool
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf_values import finish
from real_models import smollm2_file

TOKENIZERS = ["bert-bge", "gpt-2", "llama-spm", "phi-3"]
LARGE_TOKENIZERS = ["llama-bpe", "nomic-bert-moe", "qwen2"]  # the gguf package takes ten seconds for each
CONTAINERS = {GGUFValueType.STRING, GGUFValueType.ARRAY}


def expected_value(kind: GGUFValueType, value: Any) -> Any:
    """What the getters give for a scalar; None where they refuse."""
    if kind in CONTAINERS or kind in {GGUFValueType.FLOAT32, GGUFValueType.FLOAT64} and not math.isfinite(value):
        return None
    return None if not isinstance(value, bool) and isinstance(value, int) and value < 0 else value


def described(path: Path) -> dict[str, Any]:
    """The description as gguf_dump prints it, made by the gguf package."""
    reader = GGUFReader(path)
    metadata, tensors = [], []
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        kind = field.types[0]
        # parts: length and text of the key, type, then the value; of arrays element type and length come first
        parts = [bytes(part) for part in field.parts[3:]]
        element, count = kind, 1
        if kind == GGUFValueType.ARRAY:
            element, count = GGUFValueType(struct.unpack("<I", parts[0])[0]), struct.unpack("<Q", parts[1])[0]
            parts = parts[2:]
        elif kind == GGUFValueType.STRING:
            count, parts = len(parts[1]), parts[1:]
        metadata.append({
            "key": key, "type": int(kind), "element": int(element), "count": count, "crc": zlib.crc32(b"".join(parts)),
            "found": True, "value": expected_value(kind, None if kind in CONTAINERS else field.contents()),
        })  # fmt: skip
    for tensor in reader.tensors:
        tensors.append({
            "name": tensor.name, "type": tensor.tensor_type.name, "dims": [int(size) for size in tensor.shape],
            "offset": tensor.data_offset, "bytes": tensor.n_bytes, "crc": zlib.crc32(np.ascontiguousarray(tensor.data)),
            "found": True,
        })  # fmt: skip
    return {"metadata": metadata, "tensors": tensors}


def assert_same(path: Path) -> None:
    expected = described(path)
    for access in ["map", "read"]:
        found = json.loads(tool("gguf_dump", path, access).stdout)
        assert len(found["metadata"]) == len(expected["metadata"])
        for a, b in zip(found["metadata"], expected["metadata"], strict=True):
            assert a == b
        assert found["tensors"] == expected["tensors"]


def written(path: Path, fill: Callable[[GGUFWriter], None]) -> Path:
    writer = GGUFWriter(path, "llama")
    fill(writer)
    finish(writer)
    return path


def all_values(writer: GGUFWriter) -> None:
    for name, low, high in [
        ("uint8", 0, 255), ("int8", -128, 127), ("uint16", 0, 65535), ("int16", -32768, 32767),
        ("uint32", 0, 2**32 - 1), ("int32", -(2**31), 2**31 - 1),
        ("uint64", 0, 2**64 - 1), ("int64", -(2**63), 2**63 - 1),
    ]:  # fmt: skip
        for value in (low, high, 1):
            getattr(writer, f"add_{name}")(f"x.{name}.{value}", value)
        writer.add_key_value(f"x.{name}.array", [low, high, 0], GGUFValueType.ARRAY, GGUFValueType[name.upper()])
    for value in (0.0, -1.5, 1e-45, 3.4e38, math.inf, math.nan):
        writer.add_float32(f"x.f32.{value}", value)
        writer.add_float64(f"x.f64.{value}", value)
    writer.add_key_value("x.f64.array", [0.1, math.pi], GGUFValueType.ARRAY, GGUFValueType.FLOAT64)
    writer.add_array("x.f32.array", [0.25, 1e9])
    writer.add_bool("x.true", True)
    writer.add_bool("x.false", False)
    writer.add_array("x.bools", [True, False, True])
    writer.add_string("x.string", 'a "quoted" \\ string\n with ▁ and 漢字')
    writer.add_string("x.long", "long " * 100_000)
    writer.add_array("x.strings", ["", "a", "▁the", "\n", "x" * 70_000])
    writer.add_string('key with "quotes" \\ and ▁', "x")


def test_all_types_of_values(tmp_path: Path) -> None:
    path = written(tmp_path / "values.gguf", all_values)
    assert_same(path)
    kinds = {(item["type"], item["element"]) for item in described(path)["metadata"]}
    scalars = set(range(13)) - {9}
    assert kinds == {(n, n) for n in scalars} | {(9, n) for n in scalars}


@pytest.mark.parametrize("alignment", [8, 32, 256, 4096])
def test_all_types_of_tensors(tmp_path: Path, alignment: int) -> None:
    rng = np.random.default_rng(alignment)
    never_stored = {GGMLQuantizationType.Q8_1, GGMLQuantizationType.Q8_K}

    def fill(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(alignment)
        for kind in GGMLQuantizationType:
            if kind in never_stored:
                continue
            block, size = gguf.constants.GGML_QUANT_SIZES[kind]
            for shape in [(1,), (3, 2), (2, 3, 1), (1, 2, 1, 3)]:
                data = rng.integers(0, 256, (*shape[:-1], shape[-1] * size), dtype=np.uint8)
                writer.add_tensor(f"{kind.name}.{len(shape)}", data, raw_dtype=kind)

    assert_same(written(tmp_path / "tensors.gguf", fill))


@pytest.mark.parametrize("name", [*TOKENIZERS, *LARGE_TOKENIZERS])
def test_real_tokenizers(data_dir: Path, name: str) -> None:
    if name in LARGE_TOKENIZERS and not os.environ.get("LOCALDIFF_LONG"):
        pytest.skip("large tokenizers; set LOCALDIFF_LONG=1")
    assert_same(data_dir / "tokenizers" / f"ggml-vocab-{name}.gguf")


def test_every_real_tokenizer_is_listed(data_dir: Path) -> None:
    names = {path.stem.removeprefix("ggml-vocab-") for path in (data_dir / "tokenizers").glob("*.gguf")}
    assert names == {*TOKENIZERS, *LARGE_TOKENIZERS}


def test_real_model() -> None:
    assert_same(smollm2_file())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "cannot be opened: No such file or directory"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "not a GGUF file: it begins with the bytes 50 4b 03 04"),
        (lambda path: GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG), "version at byte 4 is big-endian"),
    ],
    ids=["missing", "folder", "empty", "zip", "big-endian"],
)
def test_refusals_are_one_line_with_the_path(tmp_path: Path, make: Callable[[Path], object], expected: str) -> None:
    path = tmp_path / "x.gguf"
    writer = make(path)
    if isinstance(writer, GGUFWriter):
        finish(writer)
    result = tool("gguf_dump", path, check=False)
    assert result.returncode == 1
    message = result.stderr.decode()
    assert message.startswith(f"{path}: {expected}")
    assert message.count("\n") == 1
