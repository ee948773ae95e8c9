"""What a stranger may have made, changed at random, through every reader that is written in Python, and saved states
through the engine: it is read, or refused by an error of ours.

LOCALDIFF_FUZZ=N takes N changes of each kind (the suite: 60), LOCALDIFF_FUZZ_SEED the first of their seeds, which a
failure names. Not here: the GGUF reader (fuzz/), damaged automata (cpp/test_lattice.cpp), attacks made by hand.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import struct
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from changes import GGUF_VALUES, change_bytes, change_value
from gguf_values import finish, read_metadata
from safetensors.numpy import save_file
from test_text_chat import CHATML, template, user
from test_text_json import MAKERS, finished
from text_metadata import tiny_bpe, tiny_spm
from tiny import tiny_checkpoint
from tiny_gguf import write_tiny

from localdiff.cache.saved import Identity, load_prompt
from localdiff.cli import main
from localdiff.convert import convert
from localdiff.convert.safetensors_file import read_safetensors
from localdiff.convert.torch_file import read_torch
from localdiff.convert.vocabulary import TokenizerFiles, vocabulary_metadata
from localdiff.engine import EngineModel, File, Request
from localdiff.errors import LocaldiffError
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer

COUNT = int(os.environ.get("LOCALDIFF_FUZZ", 60))
SEED = int(os.environ.get("LOCALDIFF_FUZZ_SEED", 0))
TEXT = "Hello  wörld, <s> hello\n"


def attack(use: Callable[[random.Random], object], count: int = COUNT, longest: int = 5_000) -> None:
    """Use something changed `count` times; what is raised beside refusals is listed by place, with its first seed."""
    refused = 0
    found: dict[object, str] = {}
    for seed in range(SEED, SEED + count):
        try:
            use(random.Random(seed))
        except LocaldiffError as error:
            refused += 1
            if not 0 < len(str(error)) < longest:
                found["long"] = f"LOCALDIFF_FUZZ_SEED={seed}: {len(str(error))} characters: {error!r:.200}"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            found.setdefault((frame.filename, frame.lineno), f"LOCALDIFF_FUZZ_SEED={seed}: {frame}: {error!r:.200}")
    assert not found, "\n".join(found.values())
    assert refused > 0  # else the changes do not reach what is checked


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def changed_table(table: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Another table: what a GGUF file holds always is one."""
    changed = change_value(table, draw, values=GGUF_VALUES)
    return changed if isinstance(changed, dict) else {**table, draw.choice(list(table)): changed}


def tensors() -> dict[str, np.ndarray]:
    return {"a": np.ones((3, 2), np.float32), "b.weight": np.zeros(5, np.float16), "c": np.arange(4, dtype=np.int64)}


def test_safetensors(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])

    def use(draw: random.Random) -> None:
        if draw.random() < 0.5:
            data = change_bytes(whole, draw)
        else:
            text = json.dumps(change_value(header, draw)).encode()
            data = len(text).to_bytes(8, "little") + text + whole[8 + size :]
        for source in read_safetensors(written(tmp_path / "y", data)):
            source.load()

    attack(use, 10 * COUNT)


@pytest.mark.parametrize("as_zip", [True, False])
def test_pickles_of_torch(tmp_path: Path, as_zip: bool) -> None:
    made = io.BytesIO()
    table = {name: torch.from_numpy(value) for name, value in tensors().items()}
    torch.save({**table, "d": table["a"].t()}, made, _use_new_zipfile_serialization=as_zip)
    whole = made.getvalue()

    def use(draw: random.Random) -> None:
        data = change_bytes(whole, draw)
        if as_zip and draw.random() < 0.7:
            data = repacked(whole, draw)
        for source in read_torch(written(tmp_path / "y", data)):
            source.load()

    attack(use, 10 * COUNT)


def repacked(whole: bytes, draw: random.Random) -> bytes:
    """The archive with one of its files changed and its checksums right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = draw.choice([name for name in old.namelist() for _ in range(9 if "data.pkl" in name else 1)])
        for name in old.namelist():
            new.writestr(name, change_bytes(old.read(name), draw) if name == chosen else old.read(name))
    return made.getvalue()


@pytest.mark.parametrize("kind", MAKERS)
def test_tokenizer_json(kind: str) -> None:
    spec = json.loads(finished(kind).to_str())

    def use(draw: random.Random) -> None:
        text = json.dumps(change_value(spec, draw))
        try:
            tokenizer = Tokenizer.from_gguf({"tokenizer.huggingface.json": text})
            tokenizer.decode(tokenizer.encode(TEXT, parse_special=draw.random() < 0.5))
        finally:
            vocabulary_metadata(TokenizerFiles(text), {}, 300)

    attack(use)


@pytest.mark.parametrize("made", [tiny_bpe, tiny_spm])
def test_tokenizer_arrays(made: Callable[..., dict[str, Any]]) -> None:
    def use(draw: random.Random) -> None:
        tokenizer = Tokenizer.from_gguf(changed_table(made(), draw))
        tokenizer.decode(tokenizer.encode(TEXT, parse_special=draw.random() < 0.5))

    attack(use)


def test_chat_templates() -> None:
    def use(draw: random.Random) -> None:
        source = change_bytes(CHATML.encode(), draw).decode("utf-8", "replace")
        template(source).render(user("<|im_end|>"))

    attack(use, COUNT // 10)


def test_diffusion_records() -> None:
    spec = DiffusionSpec(4, False, "block_causal", 4, process="uniform", canvas_length=8, entropy_bound=0.1, steps=3)
    record = {
        "general.architecture": "qwen3", "diffusion.eb_stability_threshold": 1, **spec.to_gguf("qwen3"),
        "diffusion.eb_confidence_threshold": 0.005, "localdiff.stop_token_ids": [1, 2], "localdiff.decoder": "dual",
    }  # fmt: skip

    def use(draw: random.Random) -> None:
        DiffusionSpec.from_gguf(changed_table(record, draw))

    attack(use)


def write_lying(path: Path, metadata: dict[str, Any], tensors: list[Any]) -> Path:
    """A GGUF file whose values have the type that Python's suggest."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.get_type(value)
        if isinstance(value, int) and not isinstance(value, bool):
            kind = gguf.GGUFValueType.UINT32 if 0 <= value < 2**32 else gguf.GGUFValueType.INT64
            value = value if value < 2**63 else 2**63 - 1
        if key and (not isinstance(value, list) or (value and not isinstance(value[0], list))):
            writer.add_key_value(key, value, kind)
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data)
    finish(writer)
    return path


def test_models_whose_metadata_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny(tmp_path / "x.gguf", dim=16, **{"tokenizer.chat_template": CHATML})
    metadata, tensors = read_metadata(source), gguf.GGUFReader(source).tensors

    def use(draw: random.Random) -> None:
        changed = changed_table(metadata, draw)
        try:
            path = write_lying(tmp_path / "y.gguf", changed, tensors)
        except (ValueError, TypeError, AttributeError, OverflowError, struct.error):
            return  # the package cannot write this into a file
        what = draw.choice((
            ("info", path, "--json"), ("run", path, "He", "-n", "6", "--steps", "2"), ("plan", path),
            ("quantize", path, tmp_path / "z.gguf", "--type", "q8_0"), ("convert", path, "-o", tmp_path / "z.gguf"),
            ("run", path, "He", "-n", "6", "--steps", "2", "--diffusion", "diffullama"),
        ))  # fmt: skip
        code = main([str(part) for part in what])
        said = capsys.readouterr().err
        if code:
            raise LocaldiffError(said)

    attack(use)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_checkpoints(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "hf"
    tiny_checkpoint("llama", folder, num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    whole = json.loads((folder / file).read_text())

    def use(draw: random.Random) -> None:
        (folder / file).write_text(json.dumps(change_value(whole, draw)))
        convert(folder, tmp_path / "x.gguf", overwrite=True)

    attack(use, COUNT // 3, longest=500_000)  # all weights that are missing


def test_saved_prompts(tmp_path: Path) -> None:
    identity = Identity("model", "prefix_causal", 8, "exact", "scalar")
    body = np.arange(6, dtype="<i4").tobytes() + b"state" * 9
    header = {"format": 1, **asdict(identity), "length": 6, "bytes": 45, "sha256": hashlib.sha256(body).hexdigest()}

    def use(draw: random.Random) -> None:
        changed = change_bytes(body, draw) if draw.random() < 0.3 else body
        fields = change_value({**header, "sha256": hashlib.sha256(changed).hexdigest()}, draw, most=2)
        text = json.dumps(fields).encode()
        data = b"LDPROMPT" + struct.pack("<I", len(text)) + text + changed
        if draw.random() < 0.3:
            data = change_bytes(data, draw)
        load_prompt(written(tmp_path / "p", data), identity, 9)

    attack(use, 10 * COUNT)


def state_checksum(values: bytes) -> int:
    """As csrc/state.cpp has it."""
    total = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", values + bytes(-len(values) % 8)):
        total = (total ^ word) * 0x100000001B3 % 2**64
        total ^= total >> 32
    return total


def test_states(tmp_path: Path) -> None:
    """What is accepted is computed with: the logits are finite, or the engine says that they are not."""
    length, header = 6, 48
    tokens, rows = np.arange(5, 13, dtype=np.int32), np.arange(length, 8, dtype=np.int32)
    file = File.open(write_tiny(tmp_path / "x.gguf", dim=16))
    with file, EngineModel(file) as model, model.session(slot_length=8, threads=1) as session:
        session.logits([Request(tokens, np.arange(8, dtype=np.int32), attention="causal")])
        whole = session.state(length)

        def use(draw: random.Random) -> None:
            values = bytearray(whole[header:])
            for _ in range(draw.randint(0, 4)):
                number = draw.choice((0.0, 1e-45, 1e19, -3e38, 1.0, math.nan, math.inf))
                struct.pack_into("<f", values, 4 * draw.randrange(len(values) // 4), number)
            fields = struct.unpack_from("<8s8i", whole)
            data = struct.pack("<8s8iQ", *fields, state_checksum(values)) + values
            if draw.random() < 0.3:
                data = change_bytes(data[:header], draw, most=2) + data[header:]
            if draw.random() < 0.1:
                data = change_bytes(data, draw)
            if session.restore(data) == length:
                request = Request(tokens, rows, compute=rows, attention="causal")
                assert np.isfinite(session.logits([request])[0]).all()

        attack(use, 10 * COUNT)
