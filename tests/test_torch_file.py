"""Files of torch.save read without torch: against torch.load, and one file per way to attack or damage them."""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localdiff.convert.torch_file import read_torch
from localdiff.errors import ModelFileError

ZIP = [True, False]


def save(path: Path, table: Any, as_zip: bool) -> Path:
    torch.save(table, path, _use_new_zipfile_serialization=as_zip)
    return path


def assert_equal_to_torch(path: Path) -> None:
    expected = torch.load(path, map_location="cpu", weights_only=False)  # these tests' own files: any protocol
    sources = read_torch(path)
    assert [source.name for source in sources] == list(expected)
    for source in sources:
        tensor = expected[source.name].detach()
        assert source.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(source.load(), tensor.float().numpy(), err_msg=source.name)


# What is read


@pytest.mark.parametrize("as_zip", ZIP)
def test_types_views_and_shared_storages(tmp_path: Path, as_zip: bool) -> None:
    torch.manual_seed(0)
    base = torch.randn(7, 5)
    table = OrderedDict(
        f32=base, tied=base, f16=base.half(), bf16=base.bfloat16(), f64=base.double(), transposed=base.t(),
        rows=base[2:4], columns=base[:, 1:3], every_other=base[::2, ::3], scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3), one=base[3:4, 2:3], cube=torch.randn(2, 3, 4).permute(2, 0, 1),
        parameter=torch.nn.Parameter(torch.randn(3)),
    )  # fmt: skip
    assert_equal_to_torch(save(tmp_path / "x.bin", table, as_zip))


@pytest.mark.parametrize("as_zip", ZIP)
def test_state_dict_of_a_module_carries_versions(tmp_path: Path, as_zip: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    del module[1].num_batches_tracked  # an integer
    assert hasattr(module.state_dict(), "_metadata")
    assert_equal_to_torch(save(tmp_path / "x.bin", module.state_dict(), as_zip))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("as_zip", ZIP)
def test_protocols_of_pickle(tmp_path: Path, protocol: int, as_zip: bool) -> None:
    table = {f"layer.{i}.weight": torch.full((2, i + 1), float(i)) for i in range(300)}
    torch.save(table, tmp_path / "x.bin", pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
    assert_equal_to_torch(tmp_path / "x.bin")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=4), st.randoms(use_true_random=False), st.sampled_from(ZIP), st.integers(0, 5)
)
def test_any_strided_view(shape: list[int], random: Any, as_zip: bool, offset: int) -> None:
    order = random.sample(range(len(shape)), len(shape))
    tensor = torch.arange(float(offset + np.prod(shape, dtype=int)))[offset:].reshape(shape).permute(order)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"localdiff-view-{os.getpid()}.bin"
    try:
        assert_equal_to_torch(save(path, {"x": tensor}, as_zip))
    finally:
        path.unlink()


def test_big_endian_archive(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    path = archive(tmp_path, table_pickle(count=6, shape=(2, 3)), {"0": values.astype(">f4").tobytes()}, order=b"big")
    np.testing.assert_array_equal(read_torch(path)[0].load(), values.reshape(2, 3))
    assert_equal_to_torch(path)


def test_integers_are_listed_and_refused_only_when_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "x.bin", {"position_ids": torch.arange(4), "mask": torch.ones(2, dtype=torch.bool)}, True)
    ids, mask = read_torch(path)
    assert (ids.dtype, mask.dtype, ids.shape) == ("I64", "BOOL", (4,))
    with pytest.raises(ModelFileError, match="position_ids has type I64, which is not supported"):
        ids.load()


# Files made by hand


def table_pickle(
    *, key: Any = "0", count: Any = 6, offset: Any = 0, shape: Any = (6,), strides: Any = None,
    storage: str = "FloatStorage", legacy: bool = False, names: tuple[str, ...] = ("x",), counts: Any = None,
) -> bytes:  # fmt: skip
    """The pickle of {name: tensor}, assembled from instructions."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=object)) for i in range(len(shape)))
    out = [b"\x80\x02", b"}"]
    for number, name in enumerate(names):
        identity = b"(" + plain("storage") + b"ctorch\n" + storage.encode() + b"\n" + plain(key) + plain("cpu")
        identity += plain(count if counts is None else counts[number]) + (plain(None) if legacy else b"") + b"tQ"
        arguments = b"(" + identity + b"".join(map(plain, (offset, shape, strides, False)))
        arguments += b"ccollections\nOrderedDict\n)Rt"
        out.append(plain(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs")
    return b"".join(out) + b"."


def plain(value: Any) -> bytes:
    """The instructions that push a value, without header and end."""
    text = pickletools.optimize(pickle.dumps(value, 2))
    return text[2:-1]


def archive(
    folder: Path, table: bytes, storages: dict[str, bytes], *, order: bytes | None = None, **options: Any
) -> Path:
    path = folder / "hand.bin"
    records = {"data.pkl": table, "version": b"3"} | ({} if order is None else {"byteorder": order})
    records |= {f"data/{key}": data for key, data in storages.items()} | options.pop("more", {})
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in records.items():
            file.writestr(f"archive/{name}", data)
    return path


def legacy(folder: Path, table: bytes, storages: dict[str, bytes], tail: bytes = b"", width: int = 4) -> Path:
    path = folder / "hand.bin"
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = b"".join(struct.pack("<q", len(each) // width) + each for each in storages.values())
    path.write_bytes(b"".join(head) + table + pickle.dumps(list(storages), 2) + data + tail)
    return path


SIX = np.arange(6, dtype="<f4").tobytes()


def test_files_made_by_hand_are_what_torch_reads(tmp_path: Path) -> None:
    assert_equal_to_torch(archive(tmp_path, table_pickle(), {"0": SIX}))
    assert_equal_to_torch(legacy(tmp_path, table_pickle(legacy=True), {"0": SIX}))


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read_torch(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def refused_when_cut(folder: Path, whole: bytes) -> None:
    """At every byte."""
    cut = folder / "cut.bin"
    for size in range(1, len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            read_torch(cut)


# Hostile pickles


class Hostile:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._call = call, arguments

    def __reduce__(self) -> Any:
        return self._call


BOMB = Path("/tmp") / f"localdiff-hostile-{os.getpid()}"


@pytest.mark.parametrize("as_zip", ZIP)
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Hostile(os.system, f"touch {BOMB}"), "posix.system"),
        (Hostile(eval, f"open({str(BOMB)!r}, 'w')"), "eval"),
        (Hostile(__import__, "os"), "__import__"),
        (Hostile(getattr, "text", "join"), "getattr"),
        (Hostile(torch.load, "x"), "torch.serialization.load"),
        (Hostile(torch.hub.load, "x", "y"), "torch.hub.load"),
        (Hostile(io.open, str(BOMB), "w"), "open"),
        (Hostile(bytearray, 1 << 40), "bytearray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_is_refused_by_name_and_never_run(tmp_path: Path, call: Hostile, name: str, as_zip: bool) -> None:
    for table in ({"x": call}, [call], call):
        refused(save(tmp_path / "x.bin", table, as_zip), f"asks for '.*{name}'")
        assert not BOMB.exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02cposix\nsystem\n.", "asks for 'posix.system'"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "asks for 'posix.system'"),
        (b"(S'ls'\niposix\nsystem\n.", "holds the instruction"),
        (b"\x80\x02(cposix\nsystem\nX\x02\x00\x00\x00lso.", "asks for"),
        (b"\x80\x02\x82\x01.", "holds the instruction EXT1"),
        (b"\x80\x02ctorch\nFloatStorage\n).", "ends with 2 values"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls something that is no function"),
        (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "holds the instruction NEWOBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n" + plain(({"x": 1},)) + b"R.", "a dictionary from arguments"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "rebuilds a tensor from something else"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.", "rebuilds a parameter"),
        (b"\x80\x02ctorch\nSize\n)R.", "rebuilds a size"),
        (b"\x80\x02" + plain(("module", 1, 2, 3)) + b"Q.", "refers to a 'None' outside of it"),
        (b"\x80\x02" + plain(("module", 1, 2, 3, 4)) + b"Q.", "refers to a 'module' outside of it"),
        (b"\x80\x02K\x01Q.", "refers to something outside"),
        (b"P1\n.", "holds the instruction PERSID"),
        (b"\x80\x02}" + plain((1, 2)) + b"K\x01s.", "dictionary key of type tuple"),
        (b"\x80\x02}(K\x01u.", "key without a value"),
        (b"\x80\x02K\x01K\x02a.", "changes a int as if it were a list"),
        (b"\x80\x02]K\x01K\x02s.", "changes a list as if it were a dict"),
        (b"\x80\x02K\x01}b.", "changes a int as if it were a dict"),
        (b"\x80\x02a.", "takes a value where there is none"),
        (b"\x80\x02(a.", "takes a value where there is none"),
        (b"\x80\x02t.", "takes values up to a mark"),
        (b"\x80\x02h\x05.", "is damaged"),
        (b"\x80\x02}", "is damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fab", "is damaged"),
        (b"\x80\x04\x8d" + b"\xff" * 8, "is damaged"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f1", "is damaged"),
        (b"\xff\xff", "is damaged"),
        (b"", "is damaged"),
        (b"\x80\x02}.more", "bytes after the end of its pickle"),
        (b"\x80\x02].", "holds a list, expected a dictionary"),
        (b"\x80\x02}K\x01K\x02s.", "holds a int under 1"),
        (b"\x80\x02}" + plain("a") + b"}s.", "holds a dict under 'a'"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "holds a tuple, expected a dictionary"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "holds a list, expected a dictionary"),
        (b"\x80\x02}" + b"2" * 10 + b".", "holds the instruction DUP"),
    ],
)  # fmt: skip
def test_pickles_that_are_no_table(tmp_path: Path, pickled: bytes, message: str) -> None:
    refused(archive(tmp_path, pickled, {}), message)


def test_pickle_without_end_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localdiff.convert.pickled.MOST_BYTES", 1000)
    refused(archive(tmp_path, b"\x80\x02" + b"N" * 2000 + b".", {}), "is damaged or too long")


# Storages


@pytest.mark.parametrize("as_zip", ZIP)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "ends at value 7 of storage '0', which has 6"),
        ({"shape": (7,)}, "ends at value 7"),
        ({"shape": (2, 3), "strides": (4, 1)}, "ends at value 7"),
        ({"shape": (2, 3), "strides": (2, 1)}, "which overlap"),
        ({"shape": (1000, 1000), "strides": (0, 0)}, "which overlap"),
        ({"shape": (2, 6), "strides": (0, 1)}, "which overlap"),
        ({"shape": (1 << 40, 1 << 40)}, "more than 2\\^46 values"),
        ({"offset": -1}, "rebuilds a tensor from something else"),
        ({"offset": 1 << 60}, "rebuilds a tensor from something else"),
        ({"shape": (-1,)}, "rebuilds a tensor from something else"),
        ({"shape": (2, 3), "strides": (-3, 1)}, "rebuilds a tensor from something else"),
        ({"shape": (2, 3), "strides": (1,)}, "rebuilds a tensor from something else"),
        ({"shape": (2.0, 3), "strides": (3, 1)}, "rebuilds a tensor from something else"),
        ({"shape": (True,), "strides": (1,)}, "rebuilds a tensor from something else"),
        ({"count": -1}, "claims -1 values"),
        ({"count": 1 << 62}, "claims 4611686018427387904 values"),
        ({"count": "6"}, "claims 6 values"),
        ({"key": "../../etc/passwd"}, "names the storage '../../etc/passwd'"),
        ({"key": "/etc/passwd"}, "names the storage"),
        ({"key": "0/../1"}, "names the storage"),
        ({"key": "٣"}, "names the storage"),
        ({"key": 0}, "names the storage"),
        ({"storage": "QInt8Storage"}, "asks for 'torch.QInt8Storage'"),
        ({"storage": "ComplexFloatStorage"}, "asks for 'torch.ComplexFloatStorage'"),
        ({"storage": "UntypedStorage"}, "asks for 'torch.UntypedStorage'"),
        ({"names": ("x", "y"), "counts": (6, 7)}, "describes storage '0' in two ways"),
    ],
)
def test_storages_and_tensors_out_of_bounds(
    tmp_path: Path, changes: dict[str, Any], message: str, as_zip: bool
) -> None:
    table = table_pickle(**changes, legacy=not as_zip)
    refused((archive if as_zip else legacy)(tmp_path, table, {"0": SIX}), message)


def test_archives_whose_storages_do_not_fit(tmp_path: Path) -> None:
    refused(archive(tmp_path, table_pickle(), {}), "lacks storage '0'")
    refused(archive(tmp_path, table_pickle(), {"0": SIX[:-1]}), "has 23 bytes for storage '0', expected 24")
    refused(archive(tmp_path, table_pickle(), {"0": SIX + b"1"}), "has 25 bytes for storage '0', expected 24")
    refused(archive(tmp_path, table_pickle(), {"0": SIX}, order=b"middle"), "gives the byte order b'middle'")


def test_legacy_files_whose_storages_do_not_fit(tmp_path: Path) -> None:
    table = table_pickle(legacy=True)
    refused(legacy(tmp_path, table, {}), "lists other storages")
    refused(legacy(tmp_path, table, {"0": SIX, "1": SIX}), "lists other storages")
    refused(legacy(tmp_path, table, {"0": SIX[:-4]}), "has 5 values for storage '0', expected 6")
    refused(legacy(tmp_path, table, {"0": SIX}, b"1"), "has 1 bytes after its last storage")
    whole = legacy(tmp_path, table, {"0": SIX}).read_bytes()
    refused_when_cut(tmp_path, whole)
    (tmp_path / "old.bin").write_bytes(whole.replace(pickle.dumps(1001, 2), pickle.dumps(1000, 2)))
    refused(tmp_path / "old.bin", "has version 1000 of its format")


# Archives


def test_archives_cut_at_every_byte(tmp_path: Path) -> None:
    refused_when_cut(tmp_path, archive(tmp_path, table_pickle(), {"0": SIX}).read_bytes())


def test_single_byte_changes_never_crash(tmp_path: Path) -> None:
    whole = archive(tmp_path, table_pickle(), {"0": SIX}).read_bytes()
    path = tmp_path / "x.bin"
    for at in range(len(whole)):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                for source in read_torch(path):
                    source.load()
            except ModelFileError:
                pass


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    table = table_pickle(count=1 << 22, shape=(1 << 22,))
    path = archive(tmp_path, table, {"0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "compressed or encrypted record 'data.pkl'")


def test_overlapping_records_are_refused(tmp_path: Path) -> None:
    table = table_pickle(names=("x",))
    path = archive(tmp_path, table, {"0": SIX, "1": SIX})
    whole = bytearray(path.read_bytes())
    entries = [at for at in range(len(whole)) if whole[at : at + 4] == b"PK\x01\x02"]
    assert len(entries) == 4
    # storage 1 begins where storage 0 does
    whole[entries[3] + 42 : entries[3] + 46] = whole[entries[2] + 42 : entries[2] + 46]
    path.write_bytes(whole)
    refused(path, "names the record at byte .* b'archive/data/0', and 'archive/data/1' in its directory")
    # the table's record claims to reach over the storages
    path = archive(tmp_path, table, {"0": SIX})
    whole = bytearray(path.read_bytes())
    entry = next(at for at in range(len(whole)) if whole[at : at + 4] == b"PK\x01\x02")
    for at in (20, 24):
        whole[entry + at : entry + at + 4] = struct.pack("<I", len(table) + 40)
    path.write_bytes(whole)
    refused(path, "that overlaps the one before it")
    for at in (20, 24):
        whole[entry + at : entry + at + 4] = struct.pack("<I", 1 << 30)
    path.write_bytes(whole)
    refused(path, "that ends outside of the archive")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("../../evil",), "holds the record '../../evil', expected names below one folder"),
        (("archive/../../evil",), "holds the record"),
        (("/archive/x",), "holds the record '/archive/x'"),
        (("archive\\data\\x",), "holds the record"),
        (("other/data/0",), "holds the record 'other/data/0'"),
        (("archive/data//x",), "holds the record"),
        (("archive/data/0",), "holds the record 'data/0' twice"),
        (("archive/constants.pkl",), "is a TorchScript archive"),
        (("archive/code/__torch__.py",), "is a TorchScript archive"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_records(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    path = archive(tmp_path, table_pickle(), {"0": SIX})
    with zipfile.ZipFile(path, "a") as file:
        for name in names:
            file.writestr(name, b"x")
    refused(path, message)


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for data, message in (
        (b"", "cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is it an empty placeholder of a download"),
        (b"PK\x03\x04" + bytes(100), "is no whole zip archive"),
        (b"\x80\x02K\x01.", "is neither a zip archive nor a file of torch.save"),
        (pickle.dumps({"x": 1}, 2), "is neither"),
    ):
        path.write_bytes(data)
        refused(path, message)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/other", b"")
    refused(path, "is a zip archive without data.pkl")
