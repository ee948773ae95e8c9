"""DiffusionGemma against transformers: what the file holds, logits of prompt and canvas, what a step tells the next
one, and whole generations. The budget is that of all architectures: 1e-5 of the largest logit at float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from emulated import PLUGIN, needs_plugin
from tiny import VOCAB
from tiny_gemma import CANVAS, TEXT, WINDOW, TinyGemma, make_gemma

import localdiff
from localdiff.canvas import Canvas
from localdiff.convert import convert
from localdiff.decode.decoder import NO_POSITIONS
from localdiff.decode.loop import denoise
from localdiff.engine import EngineModel, File, Request, isa_rows
from localdiff.errors import EngineError, ModelFileError
from localdiff.options import GenerateOptions
from localdiff.presets import resolve

ISAS = [name for name, supported in isa_rows() if supported]
BUDGET = 1e-5
ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "localdiff" / "models" / "localdiff-stories.gguf"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> TinyGemma:
    return make_gemma(tmp_path_factory.mktemp("gemma") / "tiny-diffusiongemma")


@pytest.fixture(scope="module")
def file(gemma: TinyGemma) -> Path:
    return convert(gemma.folder, gemma.folder / "f32.gguf", type="f32").path


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[EngineModel]:
    with File.open(file) as opened, EngineModel(opened, threads=2) as model:
        yield model


def opened(path: Path, **options: Any) -> EngineModel:
    with File.open(path) as source:
        return EngineModel(source, threads=1, **options)


def drawn(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, VOCAB, length, dtype=np.int32)


def asked(prompt: np.ndarray, canvas: np.ndarray, **more: Any) -> Request:
    score = np.arange(len(prompt), len(prompt) + len(canvas), dtype=np.int32)
    tokens = np.concatenate([prompt, canvas])
    return Request(tokens, score, attention="prefix_causal", prefix=len(prompt), **more)


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# ---- logits ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("length", [3, WINDOW + 11])
def test_logits_equal_transformers(gemma: TinyGemma, file: Path, isa: str, length: int) -> None:
    prompt, first, second = drawn(length, 1), drawn(CANVAS, 2), drawn(CANVAS, 3)
    expected = gemma.logits(prompt, first)
    told = gemma.logits(prompt, second, expected / np.float32(0.7))
    with opened(file, isa=isa) as model, model.session(slot_length=64, threads=1) as session:
        assert worst(session.logits([asked(prompt, first)])[0], expected) <= BUDGET
        session.propose([asked(prompt, first, temperature=0.7, feedback="leave")])
        request = asked(prompt, second, feedback="take")
        assert worst(session.logits([request])[0], told) <= BUDGET
        untold = session.logits([replace(request, feedback="")])[0]
    assert worst(untold, gemma.logits(prompt, second)) <= BUDGET < worst(untold, told)


def test_a_prompt_has_the_logits_of_the_encoder(gemma: TinyGemma, engine: EngineModel) -> None:
    import torch

    prompt = drawn(21, 4)
    with torch.no_grad():
        hidden = gemma.model.model.encoder(input_ids=torch.tensor(prompt[None]).long()).last_hidden_state
        raw = gemma.model.lm_head(hidden)[0]
        expected = (torch.tanh(raw / 30) * 30).numpy()
    with engine.session(slot_length=64, threads=1) as session:
        every = np.arange(len(prompt), dtype=np.int32)
        found = session.logits([Request(prompt, every, attention="causal")])[0]
    assert float(raw.abs().max()) > 15  # where the cap bends them
    assert worst(found, expected) <= BUDGET


def test_a_cached_prompt_changes_nothing(engine: EngineModel) -> None:
    prompt, canvas = drawn(19, 5), drawn(CANVAS, 6)
    request = asked(prompt, canvas)
    with engine.session(slot_length=64, threads=2) as session:
        whole = session.logits([request])[0]
        session.logits([asked(prompt, drawn(CANVAS, 7))])
        assert np.array_equal(session.logits([replace(request, compute=request.score)])[0], whole)
        state = session.state(len(prompt))
    with engine.session(slot_length=64, threads=1) as session:
        session.restore(state)
        assert np.array_equal(session.logits([replace(request, compute=request.score)])[0], whole)


def test_a_canvas_does_not_depend_on_its_neighbours(engine: EngineModel) -> None:
    steps = [
        [
            asked(
                drawn(n, n), drawn(CANVAS, n + step), slot=slot, temperature=0.6, seed=n, step=step, feedback=feedback
            )
            for slot, n in enumerate((2, 17, 9))
        ]
        for step, feedback in ((1, "leave"), (2, "take+leave"), (3, "take"))
    ]
    with engine.session(slots=3, slot_length=32, threads=2) as session:
        together = [session.propose(step) for step in steps]
    for slot in range(3):
        with engine.session(slots=3, slot_length=32, threads=1) as session:
            alone = [session.propose([step[slot]])[0] for step in steps]
        for one, many in zip(alone, together, strict=True):
            assert np.array_equal(one.token, many[slot].token)
            assert np.array_equal(one.entropy, many[slot].entropy)


@needs_plugin
def test_a_gpu_gives_the_processors_logits(file: Path, engine: EngineModel) -> None:
    prompt, canvas = drawn(11, 8), drawn(CANVAS, 9)
    found = []
    for model in (engine, opened(file, device=PLUGIN)):
        with model.session(slot_length=32) as session:
            session.propose([asked(prompt, canvas, temperature=0.5, feedback="leave")])
            found.append(session.logits([asked(prompt, canvas[::-1], feedback="take")])[0])
    assert worst(found[1], found[0]) <= BUDGET


@pytest.mark.parametrize(("kind", "bound"), [("q8_0", 0.1), ("q4_0", 0.6)])
def test_quantised_files_open(tmp_path: Path, kind: str, bound: float) -> None:
    gemma = make_gemma(tmp_path / "all", top_k_experts=8)  # no rounding changes which experts are chosen
    path = convert(gemma.folder, tmp_path / f"{kind}.gguf", type=kind).path
    prompt, canvas = drawn(17, 10), drawn(CANVAS, 11)
    exact = gemma.logits(prompt, canvas)
    told = gemma.logits(prompt, canvas, exact)
    with opened(path) as model, model.session(slot_length=64, threads=1) as session:
        session.propose([asked(prompt, canvas, feedback="leave")])
        found = session.logits([asked(prompt, canvas, feedback="take")])[0]
    assert 0 < float(np.linalg.norm(found - told) / np.linalg.norm(told)) <= bound


def test_feedback_that_was_never_left_is_refused(engine: EngineModel) -> None:
    prompt, canvas = drawn(5, 12), drawn(CANVAS, 13)
    with engine.session(slot_length=32) as session:
        with pytest.raises(EngineError, match="position 5 is to be told what was expected there, but no call left it"):
            session.propose([asked(prompt, canvas, feedback="take")])
        with pytest.raises(EngineError, match="raw logits leave no feedback"):
            session.logits([asked(prompt, canvas, feedback="leave")])
    none = pytest.raises(EngineError, match="feedback is not for this model, which takes none")
    with opened(BUNDLED).session(slot_length=32) as session, none:
        session.propose([asked(prompt, canvas, feedback="leave")])


# ---- generation ----


@pytest.mark.parametrize("bound", [0.1, 6.0])
def test_generations_equal_transformers(gemma: TinyGemma, file: Path, bound: float, monkeypatch: Any) -> None:
    """Two canvases, the first one being prompt to the second; the reference is handed our random numbers."""
    import torch
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as reference

    prompt, steps = drawn(15, 14), 5
    with localdiff.load(file) as model:
        options = GenerateOptions(max_new_tokens=2 * CANVAS, steps=steps, entropy_bound=bound, seed=3)
        (page,) = model._composer().prompt(prompt.tolist(), options)
        job = page.job
        assert (job.grow, job.feedback, job.settings.cache) == (CANVAS, True, "block")
        decoder = job.decoder
        decoder.facts = replace(decoder.facts, forbidden=NO_POSITIONS, stop_tokens=())
        begun = Canvas(job.canvas.tokens, job.canvas.state, -1, job.canvas.origin)  # no token is out of bounds
        job = replace(job, canvas=begun, forbidden=NO_POSITIONS, stop_tokens=())
        with opened(file).session(slot_length=64, threads=1) as session:
            made = list(denoise(session, [job]))
    assert len(made) == 2 * steps
    drew = iter([step.proposal.token for step in made])
    counted = {"canvas": -1, "step": 0}

    def noise(self: Any, batch_size: int, device: Any) -> Any:
        first = len(prompt) + counted["canvas"] * CANVAS
        positions = np.arange(first, first + CANVAS, dtype=np.int32)
        counted["step"] += 1
        return torch.tensor(decoder._noise(counted["step"] - 1, positions)[None]).long()

    prepare = reference.DiffusionGemmaGenerationMixin._prepare_denoiser_inputs

    def prepared(self: Any, **named: Any) -> Any:
        counted.update(canvas=counted["canvas"] + 1, step=0)
        return prepare(self, **named)

    monkeypatch.setattr(reference.EntropyBoundSampler, "initialize_canvas", noise)
    monkeypatch.setattr(reference.DiffusionGemmaGenerationMixin, "_prepare_denoiser_inputs", prepared)
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: torch.tensor(next(drew)).long()[:, None])
    config = reference.DiffusionGemmaGenerationConfig(
        max_new_tokens=2 * CANVAS,
        max_denoising_steps=steps,
        sampler_config=reference.EntropyBoundSamplerConfig(bound),
        t_min=0.4,
        t_max=0.8,
        stability_threshold=1,
        confidence_threshold=0.005,
    )
    expected = gemma.model.generate(torch.tensor(prompt[None]).long(), generation_config=config).sequences[0].numpy()
    assert made[-1].canvas.tokens.tolist() == expected.tolist()


def test_texts_are_made_by_the_record_of_the_file(file: Path) -> None:
    with localdiff.load(file) as model:
        stream = model.stream("Once upon a time", max_new_tokens=12, steps=3, seed=5)
        again = model.generate("Once upon a time", max_new_tokens=12, steps=3, seed=5)
        events = list(stream)
    assert stream.result.text == again.text
    assert again.decoder["decoder"] == "entropy-bound"
    assert again.decoder["grow"] == CANVAS
    assert len(events) == again.nfe <= 6


# ---- files ----


def test_the_file_is_laid_out_as_llama_cpp_has_it(gemma: TinyGemma, file: Path) -> None:
    reader = gguf.GGUFReader(file)
    arch = "diffusion-gemma"
    expected = {
        "attention.head_count_kv": [2, 1, 2, 1],
        "attention.key_length": 32,
        "attention.key_length_swa": 16,
        "attention.value_length_swa": 16,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [True, False, True, False],
        "attention.causal": False,
        "expert_feed_forward_length": 32,
        "final_logit_softcapping": 30.0,
        "rope.dimension_count": 32,
        "rope.dimension_count_swa": 16,
        "rope.freq_base": 1000000.0,
        "rope.freq_base_swa": 10000.0,
    }
    assert {key: reader.get_field(f"{arch}.{key}").contents() for key in expected} == expected
    assert reader.get_field("diffusion.canvas_length").contents() == CANVAS
    assert reader.get_field("diffusion.eb_max_steps").contents() == 48
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    state = gemma.model.state_dict()
    for name, source in {
        "blk.1.ffn_gate_up_exps.weight": "decoder.layers.1.experts.gate_up_proj",
        "blk.1.ffn_down_exps.scale": "decoder.layers.1.router.per_expert_scale",
        "blk.2.ffn_gate_inp.scale": "decoder.layers.2.router.scale",
        "blk.2.layer_output_scale.weight": "decoder.layers.2.layer_scalar",
        "blk.2.enc_layer_output_scale.weight": "encoder.language_model.layers.2.layer_scalar",
        "blk.0.post_ffw_norm.weight": "decoder.layers.0.post_feedforward_layernorm.weight",
        "blk.0.post_ffw_norm_1.weight": "decoder.layers.0.post_feedforward_layernorm_1.weight",
        "blk.0.pre_ffw_norm_2.weight": "decoder.layers.0.pre_feedforward_layernorm_2.weight",
        "self_cond_down.weight": "decoder.self_conditioning.down_proj.weight",
    }.items():
        assert np.array_equal(tensors[name].data.reshape(state[f"model.{source}"].shape), state[f"model.{source}"])
    assert [f"blk.{layer}.attn_v.weight" in tensors for layer in range(4)] == [True, False, True, False]
    assert tensors["rope_freqs.weight"].data.tolist() == [1.0] * 4 + [np.float32(1e30)] * 12


def test_a_file_of_other_people_opens(file: Path, engine: EngineModel, tmp_path: Path) -> None:
    """Experts in two tensors, and no record but llama.cpp's keys."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "diffusion-gemma")
    for field in reader.fields.values():
        own = field.name.startswith(("localdiff.", "GGUF.", "general.arch", "diffusion.shift"))
        if not own:
            kinds = [*field.types, None]
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-2] if len(kinds) > 2 else None)
    writer.add_float32("diffusion.eb_confidence_threshold", 0.005)
    for tensor in reader.tensors:
        values = tensor.data
        if "gate_up" in tensor.name:
            half = values.shape[1] // 2
            for part, rows in (("gate", values[:, :half]), ("up", values[:, half:])):
                writer.add_tensor(tensor.name.replace("gate_up", part), np.ascontiguousarray(rows))
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with File.open(tmp_path / "other.gguf") as source:
        spec = resolve(source.metadata, None)
        assert spec is not None
        assert (spec.process, spec.attention, spec.decoder) == ("uniform", "prefix_causal", "entropy-bound")
        assert (spec.canvas_length, spec.steps, spec.entropy_bound) == (CANVAS, 48, 0.1)
        with pytest.raises(ModelFileError, match="eb_stability_threshold is 3, which is not supported; supported: 1"):
            resolve({**source.metadata, "diffusion.eb_stability_threshold": 3}, None)
        request = asked(drawn(9, 15), drawn(CANVAS, 16))
        with EngineModel(source, threads=1) as other, other.session(slot_length=32) as session:
            found = session.logits([request])[0]
    with engine.session(slot_length=32) as session:
        assert np.array_equal(session.logits([request])[0], found)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types is not a list of 4 of sliding_attention and"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "gives layer 0, which has a window, heads of its own"),
        ({"num_attention_heads": 3}, "2 key and value heads, expected a divisor of the 3 heads"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers is 2"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
    ],
)
def test_configurations_that_cannot_be_honoured(
    gemma: TinyGemma, tmp_path: Path, edit: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(gemma.folder, folder, ignore=shutil.ignore_patterns("*.gguf"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= edit
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError) as caught:
        convert(folder, tmp_path / "out.gguf")
    assert message in str(caught.value)


def test_older_configurations_and_the_sampler_of_the_checkpoint(gemma: TinyGemma, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(gemma.folder, folder, ignore=shutil.ignore_patterns("*.gguf"))
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["per_layer_config"]
    config["text_config"] |= {name: TEXT[name] for name in ("global_head_dim", "num_global_key_value_heads")}
    (folder / "config.json").write_text(json.dumps(config))
    generation = {
        "max_denoising_steps": 20,
        "t_max": 0.9,
        "sampler_config": {"entropy_bound": 0.2},
        "eos_token_id": [7],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    spec = convert(folder, tmp_path / "out.gguf", type="f32").spec
    assert spec is not None
    assert (spec.steps, spec.temperature, spec.end_temperature, spec.entropy_bound) == (20, 0.9, 0.4, 0.2)
    assert (spec.canvas_length, spec.stop_tokens) == (CANVAS, (7,))
    with opened(tmp_path / "out.gguf") as model:
        assert model.info.feedback
