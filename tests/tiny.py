"""Tiny random HF checkpoints with a real byte-level BPE, made on the spot by transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXT = [
    "Once upon a time there was a little mill by the river, and in the mill lived a cat.",
    "The cat said: 'I am going to the market to buy 12 eggs, 3 loaves and a pot of honey.'",
    "Nobody knew where the river began; everybody knew where it ended.",
] * 4
VOCAB = 320
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "llama": (
        "Llama",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        },
    ),
    "qwen2": (
        "Qwen2",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
        },
    ),
}


def tiny_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE of VOCAB pieces, with `<|endoftext|>` and `<mask>`, as an HF tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", mask_token="<mask>"
    )
    fast.save_pretrained(folder)


def tiny_checkpoint(arch: str, folder: Path, seed: int = 0, scale: float = 0.2, **overrides: Any) -> Any:
    """Write a random checkpoint of `arch` with a tokenizer to `folder` and return the transformers model (float32).

    scale    standard deviation of the weights: large enough that attention and activations matter
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    name, shape = SHAPES[arch]
    config = getattr(transformers, name + "Config")(**{"vocab_size": VOCAB, **shape, **overrides})
    config._attn_implementation = "eager"
    model = getattr(transformers, name + ("LMHeadModel" if arch == "gpt2" else "ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * scale
            parameter.copy_(noise + 1 if parameter.ndim == 1 and "bias" not in str(parameter) else noise)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return model


def hf_logits(model: Any, tokens: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """float32 [length, vocab]: transformers' logits where row p sees positions [0, ends[p])."""
    import torch

    closed = torch.from_numpy(np.arange(len(tokens))[None, :] >= np.asarray(ends)[:, None])
    mask = torch.zeros(closed.shape).masked_fill(closed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        out = model(torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None], attention_mask=mask[None, None])
    return out.logits[0].numpy()


def assert_refused(checkpoint: Path, folder: Path, edit: dict[str, Any], message: str) -> None:
    """The checkpoint with fields of its config.json changed is not converted, and nothing is left in `folder`."""
    from localdiff.convert import convert
    from localdiff.errors import ModelFileError

    shutil.copytree(checkpoint, folder / "hf")
    config = json.loads((folder / "hf" / "config.json").read_text())
    (folder / "hf" / "config.json").write_text(json.dumps(config | edit))
    with pytest.raises(ModelFileError) as caught:
        convert(folder / "hf", folder / "out.gguf")
    assert message in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["hf"]
