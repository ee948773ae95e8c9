"""What architectures keep and choose: cached decoding under every attention kind, stored order, experts, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import FAMILIES, make_model, metadata_of, tensors_of, write_gguf
from reference import Reference, kl_divergence, visible_to
from test_architectures import BUDGET, ISAS, engine_logits, tokens_of, worst

from localdiff.engine import EngineModel, File, Request
from localdiff.errors import EngineError, ModelFileError

MIXTURES = ["SDAR-MoE", "LLaDA-MoE", "LLaDA2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, type) -> GGUF file of random weights; expert and hidden widths of whole blocks of 32."""
    folder = tmp_path_factory.mktemp("state")
    made: dict[tuple[str, str], Path] = {}

    def get(name: str, kind: str = "F32") -> Path:
        if (name, kind) not in made:
            family = FAMILIES[name]
            model = make_model(family, seed=3)
            path = folder / f"{name}-{kind}.gguf"
            made[name, kind] = write_gguf(
                path,
                family.arch,
                metadata_of(family, model),
                tensors_of(family, model),
                kind if kind != "F32" else None,
            )
        return made[name, kind]

    return get


@pytest.fixture(scope="module")
def wide_mixture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(type, experts of a row) -> a mixture whose matrices have rows of whole blocks, so that all can be quantised."""
    folder = tmp_path_factory.mktemp("wide")
    draw = np.random.default_rng(7).standard_normal
    dim, width, experts, vocab, layers, heads = 128, 96, 8, 96, 2, 4
    shapes = {"token_embd": (vocab, dim), "output_norm": (dim,), "output": (vocab, dim)}
    for i in range(layers):
        layer = {
            **{f"attn_{x}": (dim, dim) for x in ("q", "k", "v", "output")},
            **dict.fromkeys(("attn_norm", "ffn_norm"), (dim,)),
            **dict.fromkeys(("attn_q_norm", "attn_k_norm"), (dim // heads,)),
            "ffn_gate_inp": (experts, dim),
            **dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (experts, width, dim)),
            "ffn_down_exps": (experts, dim, width),
        }
        shapes.update({f"blk.{i}.{name}": shape for name, shape in layer.items()})
    tensors = {
        f"{name}.weight": (draw(shape) * 0.1 + (len(shape) == 1)).astype(np.float32) for name, shape in shapes.items()
    }
    keys = {
        "context_length": 256, "embedding_length": dim, "block_count": layers, "feed_forward_length": 4 * width,
        "attention.head_count": heads, "attention.layer_norm_rms_epsilon": 1e-6,
        "expert_count": experts, "expert_feed_forward_length": width,
    }  # fmt: skip
    metadata = {f"qwen3moe.{key}": value for key, value in keys.items()}

    def get(kind: str, used: int = 3) -> Path:
        path = folder / f"{kind}-{used}.gguf"
        if not path.exists():
            write_gguf(path, "qwen3moe", {**metadata, "qwen3moe.expert_used_count": used}, tensors, kind)
        return path

    return get


# ---- attention kinds ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["SDAR", "SDAR-MoE", "LLaDA2", "Ministral 3", "Stable-DiffCoder", "ModernBERT"])
def test_block_causal_cache_equals_one_uncached_forward(files: Any, name: str, isa: str) -> None:
    """Block after block against kept state, the last one three times with other tokens: the bits of one forward."""
    tokens, block = tokens_of(32, 4), 8
    kind = {"attention": "block_causal", "block_length": block}
    whole = engine_logits(files(name), tokens, isa, **kind)
    with File.open(files(name)) as file:
        session = EngineModel(file, isa=isa).session(slot_length=32)
        for begin in range(0, 32, block):
            rows = np.arange(begin, begin + block, dtype=np.int32)
            for seed in (8, 9, None):  # noisy tokens first, as while denoising; the final ones last
                now = tokens.copy()
                if seed is not None:
                    now[begin : begin + block] = tokens_of(block, seed)
                part = session.logits([Request(tokens=now, score=rows, compute=rows, **kind)])[0]
            np.testing.assert_array_equal(part, whole[rows])
        session.close()


@pytest.mark.parametrize("name", ["SDAR", "LLaDA2", "ModernBERT"])
def test_a_causal_prompt_is_computed_once(files: Any, name: str) -> None:
    """Causal prompt, bidirectional canvas: the prompt's state is kept, then a finished canvas joins the prompt."""
    tokens = tokens_of(40, 6)
    with File.open(files(name)) as file:
        session = EngineModel(file).session(slot_length=40)
        for prefix, length in ((12, 24), (24, 40)):
            kind = {"attention": "prefix_causal", "prefix": prefix}
            prompt, canvas = (np.arange(*span, dtype=np.int32) for span in ((prefix - 12, prefix), (prefix, length)))
            none = np.empty(0, np.int32)
            session.logits([Request(tokens=tokens[:length], score=none, compute=prompt, attention="causal")])
            part = session.logits([Request(tokens=tokens[:length], score=canvas, compute=canvas, **kind)])[0]
            np.testing.assert_array_equal(part, engine_logits(files(name), tokens[:length], **kind)[canvas])
        session.close()


@pytest.mark.parametrize("name", ["SDAR", "DiffuGPT", "Ministral 3"])
def test_tokens_stored_in_another_order(files: Any, name: str) -> None:
    """Known tokens first, masks last, causal over the order of storage; rotation follows the positions."""
    tokens = tokens_of(24, 2)
    order = np.concatenate([np.flatnonzero(np.arange(24) % 3), np.flatnonzero(np.arange(24) % 3 == 0)]).astype(np.int32)
    found = engine_logits(files(name), tokens[order], positions=order, attention="causal")
    expected = Reference(files(name)).logits(tokens[order], visible_to("causal", 24), order)
    assert worst(found, expected) <= BUDGET
    # Where everything sees everything, the order of storage is only an order of sums.
    full = engine_logits(files(name), tokens[order], positions=order)
    assert worst(full, engine_logits(files(name), tokens)[order]) <= BUDGET
    np.testing.assert_array_equal(
        engine_logits(files(name), tokens, positions=np.arange(24, dtype=np.int32)), engine_logits(files(name), tokens)
    )


def test_a_decoded_prefix_stays_valid_when_the_window_is_reordered(files: Any) -> None:
    """The window after the kept prefix is stored anew in another order; only its rows are computed."""
    tokens = tokens_of(20, 3)
    prefix, first, second = np.arange(12), [12, 14, 16, 13, 15, 17, 18, 19], [12, 13, 14, 16, 15, 17, 18, 19]
    with File.open(files("SDAR")) as file:
        session = EngineModel(file).session(slot_length=20)
        window = np.arange(12, 20, dtype=np.int32)
        for round_, stored in enumerate((first, second)):
            order = np.concatenate([prefix, stored]).astype(np.int32)
            rows = np.arange(20, dtype=np.int32) if round_ == 0 else window
            request = {"tokens": tokens[order], "positions": order, "attention": "causal"}
            part = session.logits([Request(score=window, compute=rows, **request)])[0]
            whole = engine_logits(files("SDAR"), **request)
            np.testing.assert_array_equal(part, whole[window])
        session.close()


def test_positions_are_checked(files: Any) -> None:
    tokens, order = tokens_of(8), np.arange(8, dtype=np.int32)
    for change, message in (
        ({"positions": order + 1}, r"positions\[7\] is 8, expected 0 to 7"),
        ({"positions": order[:4]}, "expected one for each of the 8 tokens"),
        ({"positions": order, "logit_shift": True}, "logit_shift"),
    ):
        with pytest.raises(EngineError, match=message):
            engine_logits(files("SDAR"), tokens, **change)
    with pytest.raises(EngineError, match="windows"):
        engine_logits(files("ModernBERT"), tokens, positions=order)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 12, 13, 14, 64])
def test_windows_end_where_they_should(files: Any, length: int) -> None:
    tokens = tokens_of(length, length)
    expected = Reference(files("ModernBERT")).logits(tokens, visible_to("full", length))
    assert worst(engine_logits(files("ModernBERT"), tokens), expected) <= BUDGET


class Values(Reference):
    """Keeps the values of every layer of the last pass."""

    def logits(self, *arguments: Any) -> np.ndarray:
        self.values: list[np.ndarray] = []
        return super().logits(*arguments)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        out = super()._linear(x, name)
        if name.endswith("attn_v"):
            self.values.append(out)
        return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["SDAR", "Ministral 3"])
def test_value_drift_is_one_minus_the_cosine_of_old_and_new(files: Any, name: str, isa: str) -> None:
    length = 24
    tokens, later = tokens_of(length, 2), tokens_of(length, 2)
    later[[3, 4, 17]] = [9, 8, 7]
    reference = Values(files(name))
    values = []
    for each in (tokens, later):
        reference.logits(each, visible_to("full", length))
        values.append(np.array(reference.values))  # [layers, length, kv_heads * head_dim]
    lengths = np.linalg.norm(values, axis=-1)
    expected = 1 - ((values[0] * values[1]).sum(-1) / lengths[0] / lengths[1]).mean(0)
    rows, none = np.arange(0, length, dtype=np.int32), np.empty(0, np.int32)
    with File.open(files(name)) as file:
        session = EngineModel(file, isa=isa).session(slots=2, slot_length=length, threads=2)

        def drift(now: np.ndarray, compute: np.ndarray | None, slot: int = 1) -> np.ndarray:
            out = np.full(length if compute is None else len(compute), -1, np.float32)
            session.propose([Request(now, none, slot=slot, compute=compute, value_drift=out)])
            return out

        assert drift(tokens, None).tolist() == [1.0] * length  # nothing was held
        np.testing.assert_allclose(drift(tokens, rows), 0, atol=1e-6)
        np.testing.assert_allclose(drift(later, None), expected, atol=2e-6)
        drift(tokens, None)
        some = np.array([3, 9, 17], np.int32)
        partial = drift(later, some)
        assert partial[0] > 0.1
        assert partial[1] < partial[0]
        assert drift(tokens, None, slot=0).tolist() == [1.0] * length  # slots have their own
        for wrong in (np.empty(length - 1, np.float32), np.empty(length), np.empty(2 * length, np.float32)[::2]):
            with pytest.raises(EngineError, match="value_drift"):
                session.propose([Request(tokens, none, value_drift=wrong)])
        session.close()


# ---- experts ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantised_experts_equal_their_dequantised_weights(wide_mixture: Any, kind: str, isa: str) -> None:
    """KL where activations are of 8 bits; with all experts, for they can flip the choice between two of like scores."""
    path, tokens = wide_mixture(kind, used=3 if kind.startswith("F") else 8), tokens_of(60, 3)
    expected = Reference(path).logits(tokens, visible_to("full", 60))
    found = engine_logits(path, tokens, isa)
    if kind.startswith("F"):
        assert worst(found, expected) <= BUDGET
    else:
        divergence = kl_divergence(expected, found)
        print(f"{kind} {isa}: KL {divergence:.1e}")
        assert divergence <= 1e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_row_does_not_depend_on_other_rows_or_threads(wide_mixture: Any, kind: str, isa: str) -> None:
    """Rows of a causal canvas alone, in company, and in calls whose pairs fill several slabs."""
    canvases = [tokens_of(length, length) for length in (200, 1, 33, 120)]
    with File.open(wide_mixture(kind)) as file:
        model = EngineModel(file, isa=isa)

        def logits(which: list[int], threads: int) -> list[np.ndarray]:
            session = model.session(slots=len(which), slot_length=200, threads=threads)
            requests = [
                Request(tokens=canvases[i], score=np.arange(len(canvases[i]), dtype=np.int32), slot=slot)
                for slot, i in enumerate(which)
            ]
            out = session.logits(requests)
            session.close()
            return out

        alone = [logits([i], 1)[0] for i in range(len(canvases))]
        for which, threads in (([0, 1, 2, 3], 1), ([3, 2, 1, 0], 2), ([2, 0], 3)):
            for i, found in zip(which, logits(which, threads), strict=True):
                np.testing.assert_array_equal(found, alone[i])
        # One row against kept state equals the row of the whole pass.
        whole = logits([0], 2)[0]
        session = model.session(slot_length=200, threads=2)
        session.logits([Request(tokens=canvases[0], score=np.empty(0, np.int32))])
        for row in (0, 57, 199):
            rows = np.array([row], np.int32)
            found = session.logits([Request(tokens=canvases[0], score=rows, compute=rows)])[0]
            np.testing.assert_array_equal(found[0], whole[row])
        session.close()
        model.close()


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("normed", [False, True])
def test_the_file_decides_how_weights_are_normed(tmp_path: Path, name: str, normed: bool) -> None:
    family = FAMILIES[name]
    model = make_model(family)
    metadata = {**metadata_of(family, model), f"{family.arch}.expert_weights_norm": normed}
    path = write_gguf(tmp_path / "model.gguf", family.arch, metadata, tensors_of(family, model))
    tokens = tokens_of(19)
    assert worst(engine_logits(path, tokens), Reference(path).logits(tokens, visible_to("full", 19))) <= BUDGET


# ---- what a file may hold ----


def changed(tmp_path: Path, name: str, tensors: dict[str, Any] | None = None, **keys: Any) -> Path:
    """A family's file with other tensors (None: without) and other keys of the architecture."""
    family = FAMILIES[name]
    model = make_model(family)
    all_tensors = {**tensors_of(family, model), **(tensors or {})}
    metadata = metadata_of(family, model)
    metadata.update({f"{family.arch}.{key.replace('__', '.')}": value for key, value in keys.items()})
    kept = {key: value for key, value in all_tensors.items() if value is not None}
    return write_gguf(tmp_path / "model.gguf", family.arch, metadata, kept)


def opened(path: Path) -> str:
    with File.open(path) as file:
        return EngineModel(file).info.skipped


def test_tensors_without_use_are_stated(tmp_path: Path) -> None:
    family = FAMILIES["LLaDA2"]
    model = make_model(family)
    tensors = tensors_of(family, model)
    extra = {name.replace("blk.2.", "blk.3."): value for name, value in tensors.items() if name.startswith("blk.2.")}
    extra["blk.3.nextn.eh_proj.weight"] = np.zeros((48, 96), np.float32)
    path = changed(tmp_path, "LLaDA2", extra, block_count=4, nextn_predict_layers=1)
    said = opened(path)
    assert said.startswith("layers that predict further tokens: blk.3.")
    assert "more" in said
    tokens = tokens_of(17)
    plain = write_gguf(tmp_path / "plain.gguf", family.arch, metadata_of(family, model), tensors)
    np.testing.assert_array_equal(engine_logits(path, tokens), engine_logits(plain, tokens))
    assert opened(plain) == ""


def test_unknown_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"does not use: blk\.1\.attn_gate\.weight"):
        opened(changed(tmp_path, "SDAR", {"blk.1.attn_gate.weight": np.ones(48, np.float32)}))


def test_an_encoder_without_its_head_is_refused_in_a_sentence(tmp_path: Path) -> None:
    head = dict.fromkeys(["mlm_dense.weight", "mlm_dense.bias", "mlm_norm.weight", "mlm_norm.bias"])
    with pytest.raises(ModelFileError, match="without its masked-language-model head"):
        opened(changed(tmp_path, "BERT", {**head, "output.bias": None}))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("LLaDA2", {"expert_group_count": 3}, "8 experts in 3 groups"),
        ("LLaDA2", {"expert_group_used_count": 1}, "cannot give 3 experts a row"),
        ("LLaDA2", {"expert_gating_func": 3}, "expert_gating_func is 3, expected 1 to 2"),
        ("RND1", {"expert_used_count": 9}, "expert_used_count is 9, expected 1 to 8"),
        ("RND1", {"expert_feed_forward_length": 24}, r"shape \[8, 20, 48\], expected \[8, 24, 48\]"),
        ("SDAR", {"nextn_predict_layers": 3}, "nextn_predict_layers is 3, expected 0 to 2"),
        ("Ministral 3", {"rope__scaling__type": "longrope"}, "supported: none, linear, yarn"),
        ("Ministral 3", {"rope__scaling__factor": 0.0}, "rope.scaling.factor is 0"),
        ("ModernBERT", {"hidden_activation": "relu"}, "hidden_activation is 'relu', not supported"),
        ("ModernBERT", {"attention__sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("LLaDA2", {"rope__dimension_count": 5}, "expected an even number up to the head's 12 values"),
    ],
)
def test_bad_values_are_refused_by_name(tmp_path: Path, name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        opened(changed(tmp_path, name, **keys))


def test_windows_can_be_listed_layer_by_layer(tmp_path: Path) -> None:
    tokens = tokens_of(30)
    listed = changed(tmp_path, "ModernBERT", attention__sliding_window_pattern=[False, True, True, False, True])
    found = engine_logits(listed, tokens)
    np.testing.assert_array_equal(found, engine_logits(changed(tmp_path, "ModernBERT"), tokens))


@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh", "silu"])
def test_the_file_may_name_the_activation(tmp_path: Path, name: str) -> None:
    path = changed(tmp_path, "BERT", hidden_activation=name)
    reference = Reference(path)
    reference.axes = {**reference.axes, "act": {"gelu_pytorch_tanh": "gelu_tanh"}.get(name, name)}
    tokens = tokens_of(12)
    assert worst(engine_logits(path, tokens), reference.logits(tokens, visible_to("full", 12))) <= BUDGET
