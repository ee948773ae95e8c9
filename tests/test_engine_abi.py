"""The Python binding against the C header, and the lifetimes and errors of localdiff.engine.

The generated description must be what the generator makes of the header, and every struct must lie in memory as the C
compiler lays it out. Numbers that the engine computes are tested elsewhere.
"""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_values import finish
from tiny_gguf import write_tiny

from localdiff import __version__, engine
from localdiff._abi import ffi
from localdiff.engine import EngineModel, File, Request
from localdiff.errors import Cancelled, EngineError, ModelFileError, OptionError

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "include" / "localdiff.h"
STRUCTS = re.findall(r"^\} (ld_\w+);", HEADER.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("engine") / "tiny.gguf")


@pytest.fixture
def file(path: Path) -> Iterator[File]:
    with File.open(path) as opened:
        yield opened


def test_the_generated_description_is_the_headers(tmp_path: Path) -> None:
    fresh = tmp_path / "_abi.py"
    subprocess.run([sys.executable, ROOT / "tools" / "make_abi", fresh], check=True, capture_output=True)
    assert fresh.read_text() == (ROOT / "localdiff" / "_abi.py").read_text(), "run tools/dev abi"


def test_structs_lie_in_memory_as_the_compiler_lays_them_out(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = []
    for name in STRUCTS:
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in ffi.typeof(name).fields:
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name}*)0)->{field}));'
            )
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <localdiff.h>\nint main(void){" + "\n".join(lines) + "}"
    )
    program = tmp_path / "layout"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{HEADER.parent}"]
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    found = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")
    expected = []
    for name in STRUCTS:
        expected.append(f"{name} {ffi.sizeof(name)}")
        for field, description in ffi.typeof(name).fields:
            expected.append(f"{name}.{field} {description.offset} {ffi.sizeof(description.type)}")
    assert [line for line in found if line] == expected
    assert len(STRUCTS) >= 7


def test_structs_start_with_their_size() -> None:
    assert {name: ffi.typeof(name).fields[0][0] for name in STRUCTS} == dict.fromkeys(STRUCTS, "struct_size")


def test_every_function_of_the_header_is_in_the_library_and_nothing_else() -> None:
    declared = set(re.findall(r"^LD_API [^;(]*?(ld_\w+)\(", HEADER.read_text(), re.MULTILINE))
    assert len(declared) > 20
    lib = engine.library()
    assert all(getattr(lib, name) for name in declared)
    if shutil.which("nm") is None or sys.platform != "linux":
        pytest.skip("exported names are listed with nm, on Linux")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", engine.PACKAGE / "lib" / "liblocaldiff.so"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    exported = {line.split()[2].split("@")[0] for line in listing.splitlines() if line.split()[1] != "A"}
    assert exported == declared


def test_library_and_package_have_one_version() -> None:
    assert engine.library_version() == (__version__, engine.library().LD_ABI)


def test_constants_are_the_headers() -> None:
    lib = engine.library()
    assert {f"LD_ATTENTION_{name.upper()}": value for name, value in engine.sessions.ATTENTION.items()} == {
        name: getattr(lib, name) for name in dir(lib) if name.startswith("LD_ATTENTION_")
    }
    assert engine.sessions.SCORES == {"raw": lib.LD_SCORE_RAW, "sampled": lib.LD_SCORE_SAMPLED}
    assert engine.sessions.MATH == {"exact": lib.LD_MATH_EXACT, "fast": lib.LD_MATH_FAST}
    assert engine.files.ACCESS == {"map": lib.LD_ACCESS_MAP, "read": lib.LD_ACCESS_READ}


def test_kernel_rows_end_with_scalar_which_always_runs() -> None:
    assert engine.isa_rows()[-1] == ("scalar", True)


# ---- files ----


def test_metadata_and_tensors_are_what_the_gguf_package_reads(path: Path, file: File) -> None:
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(file.metadata) == list(fields)
    for name, field in fields.items():
        assert file.metadata[name] == field.contents(), name
        assert (file.metadata.count(name) is None) == (field.types[0] != GGUFValueType.ARRAY)
    assert [tensor.name for tensor in file.tensors] == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        assert np.array_equal(file.decode(tensor.name), tensor.data)
        (info,) = [each for each in file.tensors if each.name == tensor.name]
        assert (info.type, info.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
        assert info.shape == tuple(int(extent) for extent in reversed(tensor.shape))


def test_every_kind_of_value_comes_as_a_python_value(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "values.gguf", "none")
    types = gguf.GGUFValueType
    values: dict[str, tuple[Any, Any]] = {
        "u8": (255, types.UINT8), "i8": (-128, types.INT8), "u16": (65535, types.UINT16),
        "i16": (-32768, types.INT16), "u32": (2**32 - 1, types.UINT32), "i32": (-(2**31), types.INT32),
        "u64": (2**64 - 1, types.UINT64), "i64": (-(2**63), types.INT64), "f32": (0.5, types.FLOAT32),
        "f64": (0.1, types.FLOAT64), "yes": (True, types.BOOL), "text": ("grüße", types.STRING),
    }  # fmt: skip
    for name, (value, kind) in values.items():
        writer.add_key_value(name, value, kind)
    writer.add_array("strings", ["a", "", "ß"])
    writer.add_array("floats", [0.5, -1.0])
    writer.add_array("flags", [True, False])
    finish(writer)
    with File.open(tmp_path / "values.gguf", access="read") as file:
        for name, (value, _) in values.items():
            assert file.metadata[name] == value
            assert type(file.metadata[name]) is type(value)
        assert file.metadata["strings"] == ["a", "", "ß"]
        assert file.metadata["floats"] == [0.5, -1.0]
        assert file.metadata["flags"] == [True, False]
        assert "absent" not in file.metadata
        with pytest.raises(KeyError):
            file.metadata["absent"]


def test_bad_files_are_model_file_errors(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ModelFileError, match="absent.gguf"):
        File.open(tmp_path / "absent.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError):
        File.open(cut)
    with pytest.raises(OptionError, match="access"):
        File.open(path, access="write")


def test_a_tensor_that_does_not_exist_is_named(file: File) -> None:
    with pytest.raises(ModelFileError, match="blk.9"):
        file.decode("blk.9")


# ---- lifetimes ----


def request(length: int = 8, **more: Any) -> Request:
    tokens = np.arange(length, dtype=np.int32)
    return Request(tokens, np.arange(length // 2, length, dtype=np.int32), **more)


def test_parents_may_be_closed_first(path: Path) -> None:
    file = File.open(path)
    model = EngineModel(file)
    file.close()
    session = model.session(slot_length=16)
    model.close()
    del file, model
    gc.collect()
    (proposal,) = session.propose([request()])
    assert proposal.token.shape == (4,)
    session.close()
    session.close()
    assert session.closed


def test_metadata_outlives_its_file_object(path: Path) -> None:
    metadata = File.open(path).metadata
    gc.collect()
    assert metadata["general.name"] == "tiny"


@pytest.mark.parametrize("kind", ["file", "model", "session"])
def test_a_closed_object_says_so(path: Path, kind: str) -> None:
    file = File.open(path)
    model = EngineModel(file)
    session = model.session(slot_length=16)
    uses: dict[str, tuple[Any, Any]] = {
        "file": (file, lambda: file.tensors),
        "model": (model, lambda: model.plan()),
        "session": (session, lambda: session.propose([request()])),
    }
    thing, use = uses[kind]
    thing.close()
    session.cancel()
    with pytest.raises(EngineError, match=f"the {kind} is closed"):
        use()


def test_many_objects_leave_nothing_behind(path: Path) -> None:
    with File.open(path) as file:
        for _ in range(200):
            with EngineModel(file) as model, model.session(slot_length=16) as session:
                session.propose([request()])


# ---- requests ----


@pytest.fixture(scope="module")
def model(path: Path) -> EngineModel:
    with File.open(path) as file:
        return EngineModel(file)


def test_info_is_the_files(model: EngineModel) -> None:
    info = model.info
    assert (info.arch, info.layers, info.dim, info.heads, info.kv_heads) == ("llama", 1, 32, 2, 2)
    assert (info.head_dim, info.ffn_dim, info.context_length, info.vocab) == (16, 64, 64, 263)
    assert info.isa == next(name for name, supported in engine.isa_rows() if supported)


def test_proposals_come_from_the_logits(model: EngineModel) -> None:
    asked = [request(8, alternatives=3), request(12, slot=1, forbidden=np.array([1, 2], np.int32))]
    with model.session(slots=2, slot_length=16) as session:
        proposals, logits = session.propose(asked), session.logits(asked)
        assert session.timings().forwards == 2
    for proposal, rows, one in zip(proposals, logits, asked, strict=True):
        exact = rows.astype(np.float64)
        if one.forbidden is not None:
            exact[:, one.forbidden] = -np.inf
        chance = np.exp(exact - exact.max(1, keepdims=True))
        chance /= chance.sum(1, keepdims=True)
        best = np.sort(chance, axis=1)[:, ::-1]
        assert np.array_equal(proposal.token, exact.argmax(1))
        assert np.allclose(proposal.probability, best[:, 0], atol=1e-5)
        assert np.allclose(proposal.margin, best[:, 0] - best[:, 1], atol=1e-5)
        assert proposal.alternative_token.shape == (len(one.score), one.alternatives)
        assert np.allclose(proposal.alternative_probability, best[:, : one.alternatives], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"slot": 5}, "slot"),
        ({"slot": 2**31}, "slot"),
        ({"attention": "round"}, "attention"),
        ({"scores_from": "thin air"}, "scores_from"),
        ({"score": np.array([3, 2], np.int32)}, "score"),
        ({"score": np.array([99], np.int32)}, "score"),
        ({"tokens": np.array([10**6], np.int32), "score": np.array([0], np.int32)}, "token"),
        ({"tokens": np.array([2**40])}, "tokens"),
        ({"tokens": np.zeros((2, 2), np.int32)}, "tokens"),
        ({"tokens": np.zeros(4, np.float32)}, "tokens"),
        ({"alternatives": 65}, "alternatives"),
        ({"alternatives": -1}, "alternatives"),
        ({"temperature": -1.0}, "temperature"),
        ({"seed": -1}, "seed"),
    ],
)
def test_requests_out_of_range_are_refused_by_name(model: EngineModel, change: dict[str, Any], word: str) -> None:
    tokens = np.arange(8, dtype=np.int32)
    fields = {"tokens": tokens, "score": tokens[4:], **change}
    with model.session(slot_length=16) as session:
        with pytest.raises(EngineError, match=word):
            session.propose([Request(**fields)])
        assert len(session.propose([request()])) == 1, "the session stays usable"


def test_an_empty_call_is_refused(model: EngineModel) -> None:
    with model.session(slot_length=16) as session, pytest.raises(EngineError, match="no canvases"):
        session.propose([])


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"slot_length": 0}, {"rows": -1}, {"threads": 0}, {"threads": 10**6}])
def test_session_sizes_out_of_range_are_option_errors(model: EngineModel, sizes: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        model.session(**sizes)
    with pytest.raises(OptionError):
        model.plan(**sizes)


def test_an_unknown_kernel_row_is_an_option_error(file: File) -> None:
    with pytest.raises(OptionError, match="abacus"):
        EngineModel(file, isa="abacus")


def test_a_plan_grows_with_the_session(model: EngineModel) -> None:
    assert 0 < model.plan(slot_length=16) < model.plan(slot_length=64) < model.plan(slots=4, slot_length=64)


def test_cancel_stops_one_call_and_no_more(model: EngineModel) -> None:
    with model.session(slot_length=16) as session:
        before = session.propose([request()])[0]
        session.cancel()
        with pytest.raises(Cancelled):
            session.propose([request()])
        after = session.propose([request()])[0]
    assert np.array_equal(before.token, after.token)
    assert np.array_equal(before.probability, after.probability)


def test_sessions_of_one_model_run_side_by_side(model: EngineModel) -> None:
    results: list[Any] = []

    def work() -> None:
        with model.session(slot_length=16, threads=1) as session:
            for _ in range(20):
                results.append(session.propose([request()])[0].probability)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(np.array_equal(result, results[0]) for result in results)
