"""The weight files of HF folders: safetensors, shards and their index, and a test per way in which they are damaged."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from localdiff.convert.checkpoint import open_folder
from localdiff.convert.safetensors_file import read_safetensors
from localdiff.errors import ModelFileError

# One file


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(first: int, last: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    shape = [(last - first) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_values_of_every_weight_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "x.safetensors"
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): (torch.randn(3, 5) * 3).to(kind) for kind in types}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(2, 0)}
    save_file(tensors, path, metadata={"format": "pt"})
    sources = {source.name: source for source in read_safetensors(path)}
    expected = load_file(path)
    assert set(sources) == set(expected)
    for name, tensor in expected.items():
        assert sources[name].shape == tuple(tensor.shape)
        if tensor.is_floating_point():
            np.testing.assert_array_equal(sources[name].load(), tensor.float().numpy())
        else:
            with pytest.raises(ModelFileError, match=f"{name} has type .*, which is not supported"):
                sources[name].load()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b starts at byte 4 of the data and overlaps"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "b starts at byte 0 of the data and overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, 16, "b starts at byte 12 of the data and leaves a gap"),
        ({"a": entry(4, 8)}, 8, "a starts at byte 4 of the data and leaves a gap"),
        ({"a": entry(0, 8)}, 12, "4 bytes at its end belong to no tensor"),
        ({"a": entry(0, 8)}, 4, "a ends at byte 8 of the data, which has 4; is the file complete"),
        ({"a": entry(0, 8, [3])}, 8, "a spans 8 bytes, but F32 values of shape \\[3\\] need 12"),
        ({"a": entry(8, 0, [2])}, 8, "a spans -8 bytes"),
        ({"a": entry(0, 8, [1 << 40, 1 << 40])}, 8, "a spans 8 bytes, but"),
        ({"a": entry(0, 8, [-2])}, 8, "has no usable dtype, shape and data_offsets"),
        ({"a": entry(0, 8, [2.0])}, 8, "has no usable"),
        ({"a": entry(0, 8, [True, 2])}, 8, "has no usable"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, 8, "has no usable"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "has no usable"),
        ({"a": []}, 8, "has no usable"),
        ({"a": entry(0, 8, dtype="F33")}, 8, "a has the unknown type F33"),
        ([], 0, "its header is a list"),
        (b"{", 0, "cannot be read as JSON"),
        (b'{"a": "\xff"}', 0, "cannot be read as JSON"),
        (b'{"a": 1, "a": 2}', 0, "'a' occurs twice"),
        (b"[" * 100_000, 0, "cannot be read as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "cannot be read as JSON|no usable"),
    ],
)
def test_malformed_files(tmp_path: Path, header: Any, data: int, message: str) -> None:
    path = written(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises(ModelFileError, match=message) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(SafetensorError), safe_open(path, framework="numpy"):  # the library refuses the same files
        pass


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (100_000_001, "its header claims 100000001 bytes, expected at most 100000000"),
        (2**64 - 1, "is not a safetensors file: its header claims"),
        (50_000_000, "its header claims 50000000 bytes, but the file has 10; is the file complete"),
    ],
)
def test_header_longer_than_the_file(tmp_path: Path, length: int, message: str) -> None:
    path = written(tmp_path / "x.safetensors", b"{}", length=length)
    with pytest.raises(ModelFileError, match=message):
        read_safetensors(path)
    path.write_bytes(b"1234567")
    with pytest.raises(ModelFileError, match="has 7 bytes, too few"):
        read_safetensors(path)


def test_file_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(3), "b": torch.randn(2, 2)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            read_safetensors(path)


# Shards

TENSORS = {f"model.layers.{i}.weight": torch.full((2, 2), float(i)) for i in range(4)}
NAMES = ["model.layers.0.weight", "model.layers.1.weight"]


def sharded(folder: Path, stem: str = "model", suffix: str = "safetensors") -> Path:
    """A folder of two shards with two tensors each."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weight_map = {}
    for number, part in enumerate((list(TENSORS)[:2], list(TENSORS)[2:]), start=1):
        name = f"{stem}-{number:05}-of-00002.{suffix}"
        tensors = {key: TENSORS[key] for key in part}
        save_file(tensors, folder / name) if suffix == "safetensors" else torch.save(tensors, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards_of_both_kinds(tmp_path: Path, stem: str, suffix: str) -> None:
    checkpoint = open_folder(sharded(tmp_path / "hf", stem, suffix))
    assert list(checkpoint.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].load(), tensor.numpy())
    assert [path.name for path in checkpoint.files] == ["config.json", f"{stem}.{suffix}.index.json"] + [
        f"{stem}-{number:05}-of-00002.{suffix}" for number in (1, 2)
    ]


INDEX = "model.safetensors.index.json"


def change_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return prepare


SECOND = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: (folder / SECOND).unlink(), f"names the shard '{SECOND}', which is not in the folder"),
        (lambda folder: (folder / INDEX).unlink(), f"holds the shard .* but no {INDEX}"),
        (lambda folder: (folder / INDEX).write_text("{}"), "has no weight_map"),
        (lambda folder: (folder / INDEX).write_text("[]"), "holds a list, expected a JSON object"),
        (change_index(lambda names: names.clear()), "has no weight_map"),
        (change_index(lambda names: names.update(x="../x.safetensors")), "names the shard '../x.safetensors'"),
        (change_index(lambda names: names.update(x="/etc/passwd")), "names the shard '/etc/passwd'"),
        (change_index(lambda names: names.update(x=3)), "names the shard '3'"),
        (change_index(lambda names: names.update(x=SECOND)), f"{SECOND}: tensor x is listed for it but missing"),
        (change_index(lambda names: names.pop(NAMES[0])), f"tensor {NAMES[0]} is in it but not listed for it"),
        (change_index(lambda names: names.update({NAMES[0]: SECOND})), f"tensor {NAMES[0]} is in it but not listed"),
        (
            lambda folder: (folder / "model-00003-of-00003.safetensors").write_bytes(b""),
            f"holds the shard model-00003-of-00003.safetensors, which {INDEX} does not list",
        ),
        (
            lambda folder: save_file(TENSORS, folder / "model.safetensors"),
            f"holds both model.safetensors and {INDEX}; remove the one that is out of date",
        ),
        (
            lambda folder: save_file({"module.layers.3.weight": torch.zeros(2)} | TENSORS, folder / SECOND),
            "is in it but not listed for it",
        ),
    ],
)
def test_shards_and_index_that_disagree(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    folder = sharded(tmp_path / "hf")
    prepare(folder)
    with pytest.raises(ModelFileError, match=message):
        open_folder(folder)


@pytest.mark.parametrize(
    "extra", ["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4", "SCB", "weight_format"]
)
def test_weights_packed_by_bitsandbytes_are_refused(tmp_path: Path, extra: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    packed = torch.zeros(8, 1, dtype=torch.uint8)
    name = "model.layers.0.mlp.up_proj"
    save_file({f"{name}.weight": packed, f"{name}.{extra}": packed.clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="are packed by bitsandbytes .*; convert the original checkpoint in bf16"):
        open_folder(tmp_path)
