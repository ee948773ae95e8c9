"""Presets, holes, profiles and tuning: what wins over what, figures of quality against hand calculation, and that a
search leaves a profile which run uses, or nothing at all."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localdiff
from localdiff import tuning
from localdiff.cache.table import CACHES
from localdiff.cli import main
from localdiff.decode.table import settings_for
from localdiff.errors import LocaldiffError, ModelFileError, OptionError
from localdiff.loading import EMBEDDED
from localdiff.options import GenerateOptions
from localdiff.profiles import PRESETS, Profile, for_holes, profile_of, recall, remember, store, with_preset
from localdiff.quality import agreement, distinct, judged, own, perplexity
from localdiff.spec import ATTENTION_KINDS, DiffusionSpec
from localdiff.tuning import tune

FILES = [(EMBEDDED, 1.0)]
PROFILE = Profile({"decoder": "threshold", "threshold": 0.4, "block_length": 8, "cache": "dual"}, 1)


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


# ---- presets ----


@pytest.mark.parametrize("attention", ATTENTION_KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_go_with_every_attention(preset: str, attention: str) -> None:
    spec = DiffusionSpec(1, False, attention=attention, block_length=4, temperature=0.7, top_p=0.8)
    found = settings_for(with_preset(GenerateOptions(preset=preset), spec, FILES), spec, 64)
    assert (found.temperature, found.top_p) == (0.7, 0.8)  # the texts stay the model's
    exact = CACHES[found.cache].place.startswith(("exact", "block"))
    assert exact or preset != "exact"
    assert PRESETS[preset].cost in GenerateOptions.__dataclass_fields__["preset"].metadata["help"]


def test_spread_takes_longer_blocks_than_a_record_names() -> None:
    for attention, length in (("full", 64), ("block_causal", 4)):
        spec = DiffusionSpec(1, False, attention=attention, block_length=4)
        assert settings_for(GenerateOptions(decoder="spread"), spec, 64).block_length == length
        assert settings_for(GenerateOptions(decoder="threshold"), spec, 64).block_length == 4


def test_presets_keep_the_sampling_of_the_models_own_decoder() -> None:
    drawn = with_preset(GenerateOptions(preset="balanced"), DiffusionSpec(1, False, decoder="dream"), FILES)
    assert (drawn.temperature, drawn.top_p) == (0.2, 0.95)
    still = DiffusionSpec(1, False, decoder="dream", temperature=0.0)
    assert with_preset(GenerateOptions(preset="balanced"), still, FILES).temperature == 0


def test_what_the_caller_gives_wins() -> None:
    spec = DiffusionSpec(1, False)
    remember(FILES, PROFILE)
    found = with_preset(GenerateOptions(preset="tuned", threshold=0.9, temperature=0.1), spec, FILES)
    assert (found.threshold, found.temperature, found.block_length, found.cache) == (0.9, 0.1, 8, "dual")
    remember(FILES, Profile({**PROFILE.options, "cache": "dkv", "cache_refresh": 4}))
    found = with_preset(GenerateOptions(preset="tuned", cache="exact"), spec, FILES)
    assert (found.cache, found.cache_refresh, found.threshold) == ("exact", None, 0.4)
    with pytest.raises(OptionError, match="the preset tuned is the decoder threshold .* leave one of them out"):
        with_preset(GenerateOptions(preset="tuned", decoder="dream"), spec, FILES)
    with pytest.raises(OptionError, match="for models of masks"):
        with_preset(GenerateOptions(preset="fast"), DiffusionSpec(1, False, process="uniform"), FILES)
    with pytest.raises(OptionError, match="preset is 'quick', expected one of exact, balanced, fast, tuned"):
        GenerateOptions(preset="quick")

# ---- holes ----


def test_holes_are_filled_by_the_records_decoder_of_holes_with_its_sampling() -> None:
    sampling = {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.2}
    spec = DiffusionSpec(1, True, decoder="llada", block_length=4, infill_decoder="topk", **sampling)
    found = settings_for(for_holes(GenerateOptions(), spec), spec, 6)
    assert (found.decoder, found.temperature, found.top_p, found.repetition_penalty) == ("topk", 0.8, 0.7, 1.0)
    given = for_holes(GenerateOptions(steps=3, temperature=0.0, repetition_penalty=1.1), spec)
    assert (given.decoder, given.steps, given.temperature, given.repetition_penalty) == ("topk", 3, 0.0, 1.1)
    assert settings_for(GenerateOptions(), spec, 6).decoder == "llada"  # of texts that go on


ASKED = [{"decoder": "dream"}, {"preset": "balanced"}, {"block_length": 2}, {"cache": "dual"}]


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_for_wins_over_the_decoder_of_holes(asked: dict[str, Any]) -> None:
    spec = DiffusionSpec(1, True, decoder="llada", block_length=4, infill_decoder="topk")
    options = with_preset(GenerateOptions(**asked), spec, FILES)
    assert for_holes(options, spec) == replace(options, repetition_penalty=options.repetition_penalty or 1.0)


def test_a_record_with_a_decoder_of_holes_that_does_not_exist_is_refused() -> None:
    spec = DiffusionSpec(1, True, infill_decoder="other")
    with pytest.raises(OptionError, match="the model record fills holes with the decoder 'other', expected one of"):
        for_holes(GenerateOptions(), spec)
    assert settings_for(GenerateOptions(), spec, 6).decoder == "random-keep"


def test_a_model_fills_holes_with_it() -> None:
    with localdiff.load(threads=1, diffusion="infill_decoder=topk") as model:
        filled = model.infill("Once upon a [[3]] there was a dog.", seed=1)
        assert filled.decoder["decoder"] == "topk"
        assert (filled.decoder["temperature"], filled.decoder["top_p"]) == (0.9, 0.9)
        assert model.infill("Once [[2]] a", seed=1, decoder="llada").decoder["decoder"] == "llada"
        assert model.generate("Once", max_new_tokens=4, seed=1).decoder["decoder"] == "llada"


# ---- profiles ----


def test_profiles_belong_to_the_content_of_a_file(tmp_path: Path) -> None:
    assert recall(FILES) is None
    remember(FILES, PROFILE)
    copy = tmp_path / "elsewhere.gguf"
    shutil.copyfile(EMBEDDED, copy)
    assert recall([(copy, 1.0)]) == PROFILE
    copy.write_bytes(copy.read_bytes()[:-1] + b"\1")
    with pytest.raises(OptionError, match="was not tuned on this machine; run localdiff tune"):
        profile_of([(copy, 1.0)])
    remember([(copy, 1.0)], Profile({"decoder": "llada"}))
    remember(FILES, None)
    assert recall(FILES) is None
    assert recall([(copy, 1.0)]) == Profile({"decoder": "llada"})


def test_damaged_profiles_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    remember(FILES, PROFILE)
    whole = store().read_text()
    for text in ("{", "[]", whole.replace('"threads"', '"thr"')):
        store().write_text(text)
        with pytest.raises(ModelFileError, match="profiles.json"):
            recall(FILES)
    assert main(["info", str(EMBEDDED)]) == 0  # which has more to say
    assert "run localdiff tune" in capsys.readouterr().out


# ---- quality ----


def test_repetition_and_agreement_by_hand() -> None:
    assert distinct([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct([[1, 2, 1, 2], [3], [4, 5]], 2) == pytest.approx((2 / 3 + 1) / 2)
    assert distinct([[3], []], 2) == 1
    assert agreement([[1, 2, 3], [4]], [[1, 5, 3], [4, 6]]) == pytest.approx(3 / 5)
    assert agreement([[]], [[]]) == 1
    assert perplexity([math.log(2), 3 * math.log(2)], 4) == pytest.approx(2)


def test_likelihoods_by_their_definition() -> None:
    with localdiff.load(threads=1, math="exact") as model:
        prompt, answer = model.tokenize("Once upon a time"), model.tokenize(" there was a little girl.")
        text, begin = np.array(prompt + answer), len(prompt)
        rows = model.logits(text.tolist(), attention="causal").astype(float)
        expected = 0.0
        for position in range(begin, len(text)):
            row = rows[position - 1]
            expected += math.log(sum(math.exp(x - row.max()) for x in row)) + row.max() - row[text[position]]
        assert judged(model, [prompt, prompt], [answer, []]) == pytest.approx([expected, 0.0], rel=1e-6)

        assert model.spec is not None
        assert model.spec.logit_shift
        expected = 0.0
        for part in range(4):
            hidden = np.arange(begin + part, len(text), 4)
            canvas = text.copy()
            canvas[hidden] = model.spec.mask_token
            logits = model.logits(canvas.tolist()).astype(float)
            for position in hidden:
                row = logits[position - 1]
                expected += math.log(sum(math.exp(x - row.max()) for x in row)) + row.max() - row[text[position]]
        found = own(model, [prompt, prompt, prompt], [answer, [], answer[:1]])
        assert found[0] == pytest.approx(expected, rel=1e-6)
        assert found[1] == 0


# ---- the search ----


def test_a_search_leaves_what_run_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(EMBEDDED), "--seconds", "1", "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    assert profile["measured"]["seconds"] <= profile["measured"]["exact_seconds"]
    assert profile["measured"]["nats"] <= tuning.BOUND
    assert recall(FILES) == Profile(profile["options"], profile["threads"], profile["measured"])
    flags = ["-p", "Once upon a time", "-n", "16", "--json"]
    assert main(["run", *flags, "--preset", "tuned"]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert {name: ran["decoder"][name] for name in profile["options"]} == profile["options"]
    assert main(["tune", str(EMBEDDED), "--show"]) == 0
    shown = capsys.readouterr().out.strip()
    assert profile["options"]["decoder"] in shown
    assert main(["info", str(EMBEDDED)]) == 0
    assert f"tuned {shown}" in " ".join(capsys.readouterr().out.split())
    assert main(["tune", str(EMBEDDED), "--forget"]) == 0
    assert main(["run", *flags, "--preset", "tuned"]) == 2
    assert "was not tuned" in capsys.readouterr().err


def test_an_interrupted_search_leaves_the_earlier_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(FILES, PROFILE)
    before = store().read_bytes()

    def interrupted(*_: Any, **__: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "distinct", interrupted)
    assert main(["tune", str(EMBEDDED), "--seconds", "1"]) == 130
    assert store().read_bytes() == before
    assert [path.name for path in store().parent.iterdir()] == ["profiles.json"]


def test_the_search_keeps_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up figures: more than 4 tokens a step, a threshold below 0.7 and the cache dual cost more than the bound;
    blocks of 32 are fastest."""
    searched: list[dict[str, Any]] = []

    def measured(self: Any, options: dict[str, Any]) -> tuning.Measured:
        searched.append(dict(options))
        length, pace, threshold = (options.get(n, n == "pace") for n in ("block_length", "pace", "threshold"))
        bad = pace > 4 or 0 < threshold < 0.7 or options.get("cache") == "dual"
        seconds = 10 / pace + (length != 32) + threshold - {"dual": 2, "vicinity": 1}.get(options.get("cache", ""), 0)
        return tuning.Measured(options, seconds, seconds, 1.05 if bad else 1.0, 0.9)

    monkeypatch.setattr(tuning._Search, "_measure", measured)
    monkeypatch.setattr(tuning._Search, "_greedy", lambda self, options: [[1, 2]])
    with localdiff.load(threads=1) as model:
        found = tune(model, seconds=3600)
        chosen = {"decoder": "spread", "threshold": 0.7, "block_length": 32, "pace": 4.0, "cache": "vicinity"}
        assert found.options == chosen
        assert found.threads == 1
        tried = {(each.get("block_length"), each.get("pace"), each.get("threshold")) for each in searched}
        assert {(32, 5.0, 1.0), (32, 4.0, 0.6)} <= tried
        assert not {(32, 6.0, 1.0), (32, 4.0, 0.5)} & tried
        assert tune(model, seconds=1e-9).options == dict(PRESETS["exact"].options[""])


@pytest.mark.parametrize("attention", ["attn=block_causal,block=8", "attn=prefix_causal", "attn=causal"])
def test_other_attentions_are_searched_too(attention: str) -> None:
    with localdiff.load(threads=1, diffusion=attention) as model:
        found = tune(model, seconds=0.3)
        assert model.generate("Once upon a time", max_new_tokens=8, **found.options).tokens


def test_what_cannot_be_tuned(tmp_path: Path) -> None:
    with localdiff.load(threads=1) as model:
        with pytest.raises(OptionError, match="text to take prompts from is empty"):
            tune(model, text="")
        model.spec = None
        with pytest.raises(LocaldiffError, match="nothing to tune"):
            tune(model)
