"""DiffusionSpec: sources, their order, and records that are damaged."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdiff.errors import ModelFileError, OptionError
from localdiff.presets import PRESETS, parse_override, resolve
from localdiff.spec import ATTENTION_KINDS, DiffusionSpec

ORDINARY = {"general.architecture": "llama"}
FULL = DiffusionSpec(
    7, True, "block_causal", 4, 128, decoder="topk", steps=9, temperature=0.5, top_p=0.75, threshold=0.25,
    stop_tokens=(1, 2), pad_token=3, sep_token=4, expand_token=5, delete_token=6,
)  # fmt: skip
SPECS = st.builds(
    DiffusionSpec, st.integers(0, 2**31), st.booleans(), block_length=st.integers(1, 99),
    canvas_max=st.integers(0, 9999), attention=st.sampled_from(ATTENTION_KINDS), steps=st.none() | st.integers(1, 999),
    decoder=st.none() | st.just("topk"), temperature=st.none() | st.floats(0, 9, width=16),
    top_p=st.none() | st.floats(0, 1, width=16), stop_tokens=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    pad_token=st.none() | st.integers(0, 99),
)  # fmt: skip


@given(SPECS)
def test_a_record_survives_json_and_gguf(spec: DiffusionSpec) -> None:
    assert DiffusionSpec.from_json(spec.to_json()) == spec
    found = DiffusionSpec.from_gguf(ORDINARY | spec.to_gguf("llama"))
    assert found is not None
    for name in ("temperature", "top_p"):  # seven digits are kept
        value, kept = getattr(spec, name), getattr(found, name)
        assert kept == value or abs(kept - value) <= 1e-6 * value
    assert found.to_gguf("llama").keys() == spec.to_gguf("llama").keys()


def test_float32_values_are_read_as_they_were_written() -> None:
    metadata = ORDINARY | DiffusionSpec(7, True).to_gguf("llama") | {"localdiff.temperature": 0.949999988079071}
    assert DiffusionSpec.from_gguf(metadata).temperature == 0.95  # type: ignore[union-attr]


def test_ordinary_models_have_no_record() -> None:
    assert DiffusionSpec.from_gguf(ORDINARY) is None
    assert DiffusionSpec.from_gguf(ORDINARY | {"tokenizer.ggml.mask_token_id": 5}) is None  # a BERT vocabulary, say
    assert resolve(ORDINARY, None) is None


def test_explicit_wins_over_the_file_and_the_file_over_a_preset() -> None:
    metadata = ORDINARY | DiffusionSpec(7, False, steps=9).to_gguf("llama")
    assert resolve(metadata, None) == DiffusionSpec(7, False, steps=9)
    found = resolve(metadata, "diffullama,temperature=0.5,attn=causal")
    assert found is not None
    assert (found.mask_token, found.logit_shift, found.steps) == (7, False, 9)  # the file's
    assert (found.temperature, found.attention) == (0.5, "causal")  # explicit
    assert (found.top_p, found.decoder) == (0.9, "random-keep")  # the preset's
    assert found.pad_token is None  # not the preset's: its mask token is another, so its vocabulary is


def test_an_override_makes_a_diffusion_model_of_an_ordinary_one() -> None:
    assert resolve(ORDINARY, "mask=811,shift=1,attn=full") == DiffusionSpec(811, True)
    assert resolve(ORDINARY, "diffullama") == PRESETS["diffullama"]
    assert resolve(ORDINARY | DiffusionSpec(7, False).to_gguf("llama"), "shift=1") == DiffusionSpec(7, True)
    assert resolve(ORDINARY | {"tokenizer.ggml.mask_token_id": 5}, "shift=0") == DiffusionSpec(5, False)


def test_an_override_completes_a_record_without_shift() -> None:
    metadata = ORDINARY | {"tokenizer.ggml.mask_token_id": 5, "localdiff.steps": 3}
    with pytest.raises(ModelFileError, match="without diffusion.shift_logits; give --diffusion shift=0 or shift=1"):
        resolve(metadata, None)
    assert resolve(metadata, "shift=1") == DiffusionSpec(5, True, steps=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shift=1", "mask=ID must be given"),
        ("mask=5", "shift=0\\|1 must be given"),
        ("steps=4", "mask=ID and shift=0\\|1 must be given"),
        ("nonsense", "'nonsense' is not a preset; known: diffugpt-s"),
        ("mask=5,diffullama", "'diffullama' is not a preset"),
        ("mask=5,shift=1,colour=red", "unknown name 'colour'; known: attention, attn"),
        ("mask=x,shift=1", "mask=x cannot be read, expected a whole number"),
        ("mask=5,shift=2", "shift=2 cannot be read, expected 0 or 1"),
        ("mask=5,shift=1,top-p=much", "top-p=much cannot be read, expected a number"),
        ("mask=5,shift=1,stop=1+x", "stop=1\\+x cannot be read, expected ids joined by \\+"),
        ("mask=5,shift=1,mask=6", "mask is given twice"),
        ("mask=-1,shift=1", "mask_token is -1"),
        ("mask=5,shift=1,attn=sideways", "attention is 'sideways', expected one of full"),
        ("mask=5,shift=1,attn=block_causal", "block_length is 0, expected at least 1"),
        ("mask=5,shift=1,process=gaussian", "process is 'gaussian', expected one of absorbing, uniform"),
        ("mask=5,shift=1,top-p=2", "top_p is 2.0, expected 0 to 1"),
        ("mask=5,shift=1,steps=0", "steps is 0, expected at least 1"),
        ("mask=5,shift=1,temperature=nan", "temperature is nan"),
    ],
)
def test_wrong_overrides(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve(ORDINARY, text)


def test_parse_override_gives_fields() -> None:
    assert parse_override("mask=811,shift=1,stop=2+5,block=4") == {
        "mask_token": 811, "logit_shift": True, "stop_tokens": (2, 5), "block_length": 4
    }  # fmt: skip
    assert parse_override("diffugpt-s,steps=8")["steps"] == 8


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.mask_token_id": "five"},
        {"tokenizer.ggml.mask_token_id": True},
        {"diffusion.shift_logits": 1},
        {"localdiff.attention": 5},
        {"localdiff.attention": "sideways"},
        {"localdiff.block_length": -4},
        {"localdiff.steps": 0},
        {"localdiff.steps": 4.5},
        {"localdiff.top_p": 7.0},
        {"localdiff.temperature": float("nan")},
        {"localdiff.stop_token_ids": 3},
        {"localdiff.stop_token_ids": ["a"]},
        {"localdiff.process": "gaussian"},
    ],
)
def test_damaged_records_of_files(change: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="the diffusion record of the model: "):
        DiffusionSpec.from_gguf(ORDINARY | FULL.to_gguf("llama") | change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no mask_token"),
        ("{}", "has no mask_token"),
        ('{"mask_token": 5}', "has no logit_shift"),
        ('{"mask_token": 5, "logit_shift": true, "colour": 1}', "unknown fields: colour"),
        ('{"mask_token": true, "logit_shift": true}', "mask_token is True"),
        ('{"mask_token": 5, "logit_shift": true, "stop_tokens": 4}', "stop_tokens is 4"),
        ('{"mask_token": 5, "logit_shift": true, "steps": "many"}', "steps is 'many', expected a whole number"),
    ],
)
def test_damaged_json_records(text: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        DiffusionSpec.from_json(text)


def test_vocabulary() -> None:
    FULL.check_vocabulary(8)
    with pytest.raises(OptionError, match="mask_token is 7, but the vocabulary has 7 tokens"):
        FULL.check_vocabulary(7)
    with pytest.raises(OptionError, match="stop_tokens is 90"):
        DiffusionSpec(1, True, stop_tokens=(90,)).check_vocabulary(50)


def test_json_is_readable() -> None:
    assert json.loads(FULL.to_json())["stop_tokens"] == [1, 2]
