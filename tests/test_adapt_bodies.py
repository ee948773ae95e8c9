"""Every kind of base: trained a little, converted, run; the engine then gives what transformers gives."""

import json
from dataclasses import replace

import numpy as np
import pytest
from family_checkpoints import ENCODER, QWEN3
from tiny import SHAPES, TEXT, VOCAB, tiny_tokenizer

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import localdiff  # noqa: E402
from localdiff.adapt import AdaptOptions, adapt, bodies, objective  # noqa: E402
from localdiff.adapt.base import load_base  # noqa: E402
from localdiff.adapt.batch import Batch  # noqa: E402
from localdiff.convert import convert  # noqa: E402
from localdiff.errors import OptionError  # noqa: E402

MASKED = ENCODER | {"pad_token_id": 5, "layer_norm_eps": 1e-5, "type_vocab_size": 1}
# class -> configuration, method and settings of the run, record expected
BASES = {
    "GPT2LMHeadModel": (SHAPES["gpt2"][1], {"method": "diffugpt", "anneal_steps": 2}),
    "LlamaForCausalLM": (SHAPES["llama"][1], {"method": "bd3lm", "block_length": 8}),
    "Qwen2ForCausalLM": (SHAPES["qwen2"][1], {"method": "mdlm", "shift": "on"}),
    "Qwen3ForCausalLM": (QWEN3, {"method": "bd3lm", "block_length": 4, "shift": "on"}),
    "BertForMaskedLM": (MASKED, {"method": "rdm"}),
    "RobertaForMaskedLM": (MASKED, {"method": "rdm", "weight": "constant", "label_smoothing": 0.1}),
    "XLMRobertaForMaskedLM": (MASKED, {"method": "mdlm"}),
    "XLMRobertaXLForMaskedLM": (MASKED, {"method": "rdm", "mask_ratio": 0.5}),
    "ModernBertForMaskedLM": (
        MASKED | {"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 0},
        {"method": "mdlm", "weight": "uniform"},
    ),
}


def make_base(name, folder):
    torch.set_num_threads(1)
    torch.manual_seed(3)
    family = getattr(transformers, name)
    config = family.config_class(**{"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, **BASES[name][0]})
    model = family(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.1
            parameter.copy_(noise + 1 if parameter.ndim == 1 and key.endswith("weight") else noise)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)


def options_for(name, tmp_path, **settings):
    make_base(name, tmp_path / "base")
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(TEXT * 2))
    return AdaptOptions(
        base=str(tmp_path / "base"), output=str(tmp_path / "out"), data=(str(tmp_path / "text.txt"),), length=24,
        batch=2, steps=3, warmup=0, lr=1e-3, dtype="f32", threads=1, **(settings or BASES[name][1]),
    )  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_adapted_converted_and_run(name, tmp_path):
    options = options_for(name, tmp_path)
    result = adapt(options)
    before = load_base(tmp_path / "base", None).model.state_dict()
    model = load_base(result.folder, None).model.eval()
    after = model.state_dict()
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(moved) > 0.8 * len(before)
    convert(result.folder, tmp_path / "model.gguf", type="f32")
    ours = localdiff.load(tmp_path / "model.gguf", threads=1)
    masked = bodies.FAMILIES[name].masked
    block = options.block_length or 0
    assert (ours.spec.mask_token, ours.spec.canvas_max, ours.spec.block_length) == (1, 24, block)
    shifted = options.shift == "on" or options.method == "diffugpt"
    assert ours.spec.logit_shift == shifted
    assert ours.spec.attention == ("block_causal" if block else "full")
    assert ours.spec.decoder == ("rdm" if options.method == "rdm" else None)
    tokens = np.array([0, 7, 1, 9, 30, 1, 1, 12], np.int32)
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        blocks = torch.arange(8) // (block or 8)
        hidden = torch.zeros(8, 8).masked_fill(blocks[None] > blocks[:, None], torch.finfo(torch.float32).min)
        attention = {} if masked else {"attention_mask": hidden[None, None]}
        expected = model(ids, **attention).logits[0].numpy()
    np.testing.assert_allclose(ours.logits(tokens), expected, rtol=2e-3, atol=2e-3)
    out = ours.generate("The cat", max_new_tokens=8, steps=None if block else 4, seed=1)
    assert out.nfe >= 1


def block_attention(model, length, block):
    """What a masked model takes as attention, so that each row sees the blocks up to its own, and no further than a
    layer's window."""
    seen = np.zeros((2, length, length), bool)  # by the layers that see everything, and by those with a window
    window = getattr(model.config, "local_attention", 2 * length) // 2
    for row in range(length):
        for column in range(length):
            seen[0, row, column] = column // block <= row // block
            seen[1, row, column] = seen[0, row, column] and abs(row - column) <= window
    masks = [torch.where(torch.from_numpy(each), 0.0, torch.finfo(torch.float32).min)[None, None] for each in seen]
    if type(model).__name__ != "ModernBertForMaskedLM":
        return masks[0]
    return {"full_attention": masks[0], "sliding_attention": masks[1]}


@pytest.mark.parametrize("name", [name for name, family in bodies.FAMILIES.items() if family.masked])
def test_a_masked_base_is_trained_in_blocks_and_run(name, tmp_path):
    """Its pass over noised and clean halves equals, block by block, passes over clean blocks and a noised one; after
    training the engine gives what transformers gives under that mask. 22 tokens, a window of 8 to either side."""
    options = options_for(name, tmp_path, method="bd3lm", block_length=6)
    model = load_base(tmp_path / "base", None).model.eval()
    generator = torch.Generator().manual_seed(2)
    setting = objective.Objective("bd3lm", 1, "1/t", shift=False, masked_base=True, block=6)
    tokens = torch.randint(7, 300, (2, 22), generator=generator)
    noised = objective.NOISES["bd3lm"](Batch(tokens), setting, generator)
    inputs = objective.lay_out(noised, setting, 1.0, generator, torch.float32)
    with torch.no_grad():
        _, found, _ = bodies.Scorer(model)(inputs, torch.zeros(len(inputs.targets)))
        expected = []
        for sequence, place in noised.scored.nonzero().tolist():
            start, end = place // 6 * 6, min(22, place // 6 * 6 + 6)
            canvas = torch.cat([tokens[sequence, :start], noised.tokens[sequence, start:end]])[None]
            logits = model(canvas, attention_mask=block_attention(model, end, 6)).logits[0, place]
            expected.append(float(torch.nn.functional.cross_entropy(logits, tokens[sequence, place])))
    assert len(expected) > 10
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    result = adapt(options)
    convert(result.folder, tmp_path / "model.gguf", type="f32")
    ours = localdiff.load(tmp_path / "model.gguf", threads=1)
    assert (ours.spec.attention, ours.spec.block_length, ours.spec.logit_shift) == ("block_causal", 6, False)
    model = load_base(result.folder, None).model.eval()
    with torch.no_grad():
        wanted = model(tokens[:1], attention_mask=block_attention(model, 22, 6)).logits[0].numpy()
    np.testing.assert_allclose(ours.logits(tokens[0].numpy().astype(np.int32)), wanted, rtol=2e-3, atol=2e-3)
    out = ours.generate("The cat", max_new_tokens=8, seed=1)
    assert out.decoder["decoder"] == "threshold"
    assert out.nfe >= 1


def test_every_class_has_a_base_here():
    assert list(BASES) == list(bodies.FAMILIES)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "ModernBertForMaskedLM", "RobertaForMaskedLM"])
def test_the_head_before_the_output_matrix_is_the_models_own(name, tmp_path):
    make_base(name, tmp_path)
    model = load_base(tmp_path, None).model.eval()
    tokens = torch.arange(7, 27)[None]
    inputs = bodies.Inputs(tokens, None, torch.arange(20), tokens[0])
    with torch.no_grad():
        _, found, _ = bodies.Scorer(model)(inputs, torch.ones(20))
        expected = torch.nn.functional.cross_entropy(model(tokens).logits[0], tokens[0], reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_padding_of_a_masked_model_changes_nothing(tmp_path):
    make_base("RobertaForMaskedLM", tmp_path)
    scorer = bodies.Scorer(load_base(tmp_path, None).model.eval())
    tokens = torch.tensor([[0, 7, 8, 9, 5, 5], [0, 7, 8, 9, 10, 11]])
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    with torch.no_grad():
        padded = scorer.hidden(tokens, valid, None)
        alone = scorer.hidden(tokens[:1, :4], None, None)
    torch.testing.assert_close(padded[:1, :4], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("BertForMaskedLM", {"method": "diffugpt"}, "--method diffugpt does not go with a BertForMaskedLM; choose one"),
        ("BertForMaskedLM", {"method": "ar"}, "choose one of mdlm, rdm, bd3lm"),
        ("BertForMaskedLM", {"shift": "on"}, "--shift is for models with causal attention"),
        ("BertForMaskedLM", {"anneal_steps": 5}, "--anneal-steps is for models with causal attention"),
        ("RobertaForMaskedLM", {"length": 80}, "--length is 80, but the base has a context of 74 tokens"),
        ("LlamaForCausalLM", {"diffusion": "block=4"}, "block_length follows from the training"),
    ],
)
def test_what_does_not_go_together_is_refused(name, change, sentence, tmp_path):
    options = replace(options_for(name, tmp_path), **{"weight": None, "label_smoothing": None, **change})
    if change.get("method") == "diffugpt":
        options = replace(options, mask_ratio=None)
    with pytest.raises(OptionError, match=sentence):
        adapt(options)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_without_tokenizer_json_is_converted(tmp_path):
    make_base("BertForMaskedLM", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    base = load_base(tmp_path, None)
    assert base.end_token == 0  # of config.json
    assert [base.token(role) for role in ("mask_token", "sep_token", "pad_token")] == [4, 3, 0]
