"""The lm-eval adapter against the interface of the installed package: its base class, registry and requests."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import write_tiny

from localdiff.errors import OptionError
from localdiff.evaluate.scorer import Scorer

pytest.importorskip("lm_eval.api.model", reason="lm-eval is not here: pip install --no-deps lm-eval==0.4.13")


class Asked:
    """A request of the harness, as far as models look at it."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("harness") / "tiny.gguf")


@pytest.fixture(params=["", "attention=causal"])
def harness(model: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    from lm_eval.api.registry import get_model

    import localdiff.evaluate.lm_eval  # noqa: F401  registers itself

    arguments = f"model={model},draws=4,decoder=llada,math=exact{',' * bool(request.param)}{request.param}"
    found = get_model("localdiff").create_from_arg_string(arguments, {"batch_size": 1, "device": None})
    yield found
    found.close()


def test_log_likelihoods_and_greedy_continuations(harness: Any) -> None:
    (written,) = harness.generate_until([Asked("hello", {"until": [], "max_gen_toks": 3, "do_sample": False})])
    pairs = [("hello", " you"), ("", "he"), ("hello", written)]
    found = harness.loglikelihood([Asked(*pair) for pair in pairs])
    assert all(value < 0 and math.isfinite(value) for value, _ in found)
    assert [greedy for _, greedy in found][0] is False
    ids = harness._subject.model.tokenizer.encode_parts(["", written], add_bos=False)
    if len(ids) == 3 and "\ufffd" not in written:  # else the text does not come back as the tokens that made it
        assert found[2][1] is True
    again = harness.loglikelihood([Asked(*pairs[1])])
    assert again == [found[1]]  # wherever it stands among the requests


def test_rolling_covers_every_token_once(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    likelihoods = Scorer.likelihoods

    def watched(self: Scorer, passages: Any, *rest: Any) -> Any:
        seen.extend(passages)
        return likelihoods(self, passages, *rest)

    monkeypatch.setattr(Scorer, "likelihoods", watched)
    text = "abc" * 50
    (value,) = harness.loglikelihood_rolling([Asked(text)])
    assert value < 0
    scored = np.concatenate([each.tokens[each.given :] for each in seen])
    assert harness._subject.model.tokenizer.decode(scored.tolist()) == text
    assert all(len(each.tokens) <= harness._subject.model.canvas_limit for each in seen)
    assert [each.tokens[0] for each in seen[1:]] == [each.tokens[-1] for each in seen[:-1]]
    assert harness.loglikelihood_rolling([Asked("")]) == [0.0]


def test_generation_stops_at_the_words_it_is_told(harness: Any) -> None:
    long = Asked("x" * 500, {"max_gen_toks": 8, "temperature": 0.0})
    (text,) = harness.generate_until([long])
    if text:
        cut = Asked("x" * 500, {"max_gen_toks": 8, "temperature": 0.0, "until": [text[-1]]})
        assert harness.generate_until([cut]) == [text[: text.index(text[-1])]]


def test_refusals(model: Path) -> None:
    from localdiff.evaluate.lm_eval import LocaldiffLM

    with pytest.raises(OptionError, match="unknown name 'colour'"):
        LocaldiffLM(str(model), colour=1)
    with pytest.raises(OptionError, match="attention is 'full'"):
        LocaldiffLM(str(model), attention="full")
    lm = LocaldiffLM(str(model), greedy=False, device="cuda:0", batch_size=8)  # as the harness has it by default
    with pytest.raises(OptionError, match="request 0 has a continuation of 0 characters"):
        lm.loglikelihood([Asked("a", "")])
    assert lm.loglikelihood([Asked("a", "b")])[0][1] is False
    lm.close()


def test_without_the_package_one_sentence_says_so() -> None:
    lines = "import sys, runpy; sys.modules['lm_eval.api.model'] = None; "
    lines += "runpy.run_module('localdiff.evaluate.lm_eval', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "localdiff: the lm-eval adapter needs the package 'lm_eval.api.model', which is not installed; run: "
        "pip install 'localdiff[eval]'"
    ]
