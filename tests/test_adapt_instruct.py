"""Prompts and answers, chat templates, LoRA, length heads, config files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from family_checkpoints import ENCODER
from tiny import tiny_checkpoint, tiny_tokenizer

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")

from test_adapt_train import interrupt, log_of  # noqa: E402

import localdiff  # noqa: E402
from localdiff.adapt import AdaptOptions, adapt, lora  # noqa: E402
from localdiff.adapt.base import load_base, load_folder  # noqa: E402
from localdiff.adapt.bodies import Scorer  # noqa: E402
from localdiff.adapt.checkpoint import list_checkpoints  # noqa: E402
from localdiff.adapt.config_file import read_config  # noqa: E402
from localdiff.adapt.instruct import InstructData, Layout, encode_examples, read_examples, runtime_tokenizer  # noqa: E402
from localdiff.adapt.length_head import LengthHead, length_head_for, likeliest_lengths, load_length_head  # noqa: E402
from localdiff.cli.info import command as info  # noqa: E402
from localdiff.convert import convert  # noqa: E402
from localdiff.errors import OptionError  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>assistant:{% endif %}"
)
ANSWERS = ["a cat", "the river by the mill", "nobody"]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"who lives in mill {n} ?", "answer": ANSWERS[n % 3]} for n in range(12)]
    lines.append({"messages": [{"role": "user", "content": "what <mask> is it ?"},
                               {"role": "assistant", "content": "honey <mask>"}]})  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


@pytest.fixture
def base(tmp_path):
    tiny_checkpoint("llama", tmp_path / "base", scale=0.05, tie_word_embeddings=True)
    return tmp_path / "base"


@pytest.fixture
def options(base, pairs, tmp_path):
    return AdaptOptions(
        base=str(base), output=str(tmp_path / "out"), data=(str(pairs),), instruct=True, mask_token="<mask>",
        method="mdlm", shift="on", length=48, batch=4, steps=6, warmup=0, lr=1e-2, save_every=3, dtype="f32", threads=1,
    )  # fmt: skip


def test_plain_examples_are_bos_prompt_separator_answer_end_and_pads(base, pairs):
    held = load_base(base, None)
    tokenizer, template = runtime_tokenizer(held)
    assert template is None
    layout = Layout(False, separator=9, end=0, pad=5, begin=True, length=48)
    examples = list(encode_examples(list(read_examples(pairs)), layout, tokenizer, None))
    data = InstructData(examples, layout, seed=1, pads_scored=True)
    assert data.left_out == 0
    batch = data.rows(range(13))
    for row, (tokens, given) in enumerate(zip(batch.tokens.tolist(), batch.given.tolist(), strict=True)):
        prompt = held.tokenizer.encode(f"who lives in mill {row} ?").ids if row < 12 else None
        count = sum(given)
        assert given == [True] * count + [False] * (48 - count)
        assert (tokens[0], tokens[count - 1]) == (0, 9)
        if prompt:
            assert tokens[1 : count - 1] == prompt
            answer = held.tokenizer.encode(ANSWERS[row % 3]).ids
            assert tokens[count:] == [*answer, 0] + [5] * (48 - count - len(answer) - 1)
    assert 1 not in batch.tokens[12].tolist()  # a mask token spelled in the text stays text
    assert batch.valid is None
    hidden = InstructData(examples, layout, seed=1, pads_scored=False).rows([0])
    assert int(hidden.valid.sum()) == 48 - int((hidden.tokens == 5).sum())
    orders = [data.batch(0, 13).tokens, InstructData(examples, layout, 1, True).batch(0, 13).tokens]
    assert torch.equal(*orders)
    assert not torch.equal(data.batch(13, 13).tokens, orders[0])
    short = InstructData(examples, replace(layout, length=int(batch.given.sum(1).max()) + 2), 0, True)
    assert 0 < short.left_out < 13
    with pytest.raises(OptionError, match="none of 13 examples fits into 4 tokens"):
        InstructData(examples, replace(layout, length=4), 0, True)


def test_chat_examples_begin_with_the_tokens_that_the_runtime_sends(base, pairs, tmp_path):
    held = load_base(base, None)
    held.tokenizer_config["chat_template"] = TEMPLATE
    (tmp_path / "chat").mkdir()
    held.save(tmp_path / "chat")
    convert(tmp_path / "chat", tmp_path / "chat.gguf", type="f32", diffusion="mask=1,shift=1")
    model = localdiff.load(tmp_path / "chat.gguf", threads=1)
    tokenizer, template = runtime_tokenizer(load_base(tmp_path / "chat", None))
    layout = Layout(True, None, end=0, pad=0, begin=True, length=64)
    conversations = list(read_examples(pairs))
    for messages, example in zip(
        conversations, encode_examples(conversations, layout, tokenizer, template), strict=True
    ):
        assert example.prompt == model.chat_tokens(messages[:-1])
        assert 1 not in example.prompt


def test_answers_are_learnt_and_padding_ends_them(options, tmp_path):
    result = adapt(replace(options, steps=60, save_every=60, eval_data=options.data, eval_every=60, template="plain",
                           sep_token="<|endoftext|>", pad_token="Ġ"))  # fmt: skip
    losses = [entry[2] for entry in log_of(result.folder)]
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:3])
    convert(result.folder, tmp_path / "model.gguf", type="f32")
    model = localdiff.load(tmp_path / "model.gguf", threads=1)
    assert model.spec.pad_token == load_base(result.folder, None).tokenizer.token_to_id("Ġ")
    assert model.spec.sep_token == 0
    held = [json.loads(line) for line in (result.folder / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in held if "held_out" in line] == [60]


def test_lora_trains_adapters_and_embeddings_resumes_exactly_and_is_merged(options, base, tmp_path):
    options = replace(options, lora=4)
    adapt(options)
    halves = replace(options, output=str(tmp_path / "halves"))
    interrupt(halves, 4)
    newest = list_checkpoints(Path(halves.output))[-1]
    assert not (newest / "model.safetensors").exists()
    adapt(replace(halves, resume=True))
    assert log_of(halves.output) == log_of(options.output)
    before, after, again = (load_folder(Path(o)).model for o in (base, options.output, halves.output))
    states = [model.state_dict() for model in (before, after, again)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[1][key], states[2][key]) for key in states[1])
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight
    for key in states[0]:
        assert torch.equal(states[0][key], states[1][key]) == ("norm" in key)  # all matrices and the embedding move
    change = (states[1]["model.layers.0.mlp.up_proj.weight"] - states[0]["model.layers.0.mlp.up_proj.weight"]).double()
    values = torch.linalg.svdvals(change)
    assert values[3] > 1e-5
    assert values[4] < 1e-6 * values[0] + 1e-7  # of rank 4
    log = json.loads((Path(options.output) / "adapt.json").read_text())
    assert log["lora"] == 4
    convert(options.output, tmp_path / "merged.gguf", type="f32")


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_merged_weights_give_what_the_adapters_gave(arch, tmp_path):
    tiny_checkpoint(arch, tmp_path)
    held = load_base(tmp_path, None)
    lora.attach(held.model, 3, alpha=5.0, dropout=0.0)
    with torch.no_grad():
        for name, parameter in held.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    tokens = torch.arange(7, 27)[None]
    held.model.eval()
    with torch.no_grad():
        adapted = held.model(tokens).logits
        plain = load_base(tmp_path, None).model.eval()
        assert not torch.allclose(plain(tokens).logits, adapted, atol=0.1)
        plain.load_state_dict(lora.merged(held.model, held.model.state_dict()))
        torch.testing.assert_close(plain(tokens).logits, adapted, rtol=1e-4, atol=1e-4)
    trained = lora.trained(held.model, held.model.state_dict())
    assert len(trained) == {"llama": 2 * 7 * 2 + 1, "gpt2": 2 * 4 * 2 + 1}[arch]


def test_a_length_head_is_trained_beside_rdm_and_kept(pairs, tmp_path):
    torch.manual_seed(1)
    fields = ENCODER | {"vocab_size": 320, "pad_token_id": 5, "type_vocab_size": 1, "eos_token_id": 0}
    transformers.RobertaForMaskedLM(transformers.RobertaConfig(**fields)).save_pretrained(tmp_path / "base")
    tiny_tokenizer(tmp_path / "base")
    options = AdaptOptions(
        base=str(tmp_path / "base"), output=str(tmp_path / "out"), data=(str(pairs),), instruct=True, method="rdm",
        length=48, batch=13, steps=30, warmup=0, lr=3e-3, save_every=10, dtype="f32", threads=1, length_head=True,
        pad_token="!",
    )  # fmt: skip
    interrupt(options, 12)
    adapt(replace(options, resume=True))
    lines = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    losses = [line["length_loss"] for line in lines if "length_loss" in line]
    assert losses[0] == pytest.approx(np.log(80), rel=0.15)
    assert losses[-1] < 0.3 * losses[0]
    model = load_folder(tmp_path / "out").model
    head = load_length_head(model, tmp_path / "out")
    held = load_base(tmp_path / "out", None)
    prompt = [*held.tokenizer.encode("who lives in mill 4 ?").ids]
    lengths = likeliest_lengths(model, head, [0, *prompt], limit=20, count=3)
    assert len(held.tokenizer.encode(ANSWERS[1]).ids) in lengths
    convert(tmp_path / "out", tmp_path / "model.gguf", type="f32")
    with localdiff.load(tmp_path / "model.gguf", threads=1) as run, torch.no_grad():
        assert run.spec.decoder == "rdm"
        tokens = torch.tensor([[0, *prompt]])
        features = model.eval().base_model(tokens).last_hidden_state
        expected = head.eval()(features, torch.ones_like(tokens, dtype=torch.bool))[0].numpy()
        np.testing.assert_allclose(run.length_logits(tokens[0].numpy()), expected, atol=1e-5)
        stream = run.stream([0, *prompt], length_beam=3, steps=4)
        kept = {len(event.canvas) - len(prompt) - 2 for event in stream}
        assert len(kept) == 1
        assert kept <= set(lengths)
        assert stream.result.nfe == 4 + 1
        assert stream.result.decoder["length_beam"] == 3
    shown = CliRunner().invoke(info, [str(tmp_path / "model.gguf")]).output
    assert "length head" in shown
    assert "for answers of up to 80 tokens" in shown
    tiny_checkpoint("llama", tmp_path / "grouped")
    with pytest.raises(OptionError, match="--length-head needs a base .* has 2 of 4 heads of 16 at a width of 64"):
        adapt(replace(options, base=str(tmp_path / "grouped"), output=str(tmp_path / "b"), mask_token="<mask>"))


def test_the_length_head_sees_no_padding_and_sends_no_gradient_to_the_model(tmp_path):
    model = tiny_checkpoint("llama", tmp_path)
    head = length_head_for(model).eval()
    scorer = Scorer(model, head)
    tokens = torch.tensor([[7, 8, 9, 10, 11], [7, 8, 9, 0, 0]])
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    classes = torch.tensor([3, 4])
    together = scorer._length_loss(tokens, valid, classes)
    apart = scorer._length_loss(tokens[1:, :3], valid[1:, :3], classes[1:])
    first = scorer._length_loss(tokens[:1], valid[:1], classes[:1])
    torch.testing.assert_close(together, (first + apart) / 2)
    together.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert isinstance(head, LengthHead)


def test_a_config_file_gives_the_settings_and_is_kept_beside_the_result(options, base, pairs, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(
        f'base = "{base}"\noutput = "{tmp_path / "made"}"\ndata = ["{pairs}"]\ninstruct = true\nmethod = "bd3lm"\n'
        'mask-token = "<mask>"\nblock_length = 8\nlength = 48\nsteps = 1\nlr = 1e-3\nthreads = 1\n'
    )
    from localdiff.cli.adapt import command

    done = CliRunner().invoke(command, ["--config", str(config), "--steps", "2"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "made" / "adapt.json").read_text())["steps"] == 2  # what is typed wins
    assert (tmp_path / "made" / "config.toml").read_text() == config.read_text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = [", "cannot be read as TOML"),
        ("stepps = 3", "'stepps' is no setting"),
        ('steps = "3"', "steps is '3', expected a whole number"),
        ("instruct = 1", "instruct is 1, expected true or false"),
        ("data = [1]", r"data is \[1\], expected a text or a list of texts"),
        ("resume = true", "'resume' is no setting"),
    ],
)
def test_a_config_file_that_cannot_be_honoured_is_refused(text, sentence, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(OptionError, match=sentence):
        read_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": "a"}', "line 1 is no prompt and answer"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "end with one of the role assistant"),
        ("[", "line 1 is no prompt and answer"),
    ],
)
def test_lines_that_are_no_examples_are_refused(line, sentence, tmp_path):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(OptionError, match=sentence):
        list(read_examples(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"template": "chat"}, "the base has no chat template"),
        ({"sep_token": "absent token"}, "--sep-token is 'absent token', which is no token of the base"),
        ({"data": (__file__,)}, "expected .jsonl, alone or with .xz, .gz or .bz2"),
    ],
)
def test_instruction_settings_that_cannot_be_honoured_are_refused(options, change, sentence):
    with pytest.raises(OptionError, match=sentence):
        adapt(replace(options, **change))
    assert not Path(options.output).exists()


def test_shipped_recipes_can_be_read():
    recipes = Path(localdiff.__file__).parent / "adapt" / "recipes"
    found = sorted(recipes.glob("*.toml"))
    assert [path.stem for path in found] == ["gsm8k-diffugpt", "gsm8k-diffullama"]
    for path in found:
        AdaptOptions(**{"base": "b", "output": "o", "data": ("d",), **read_config(path)})
