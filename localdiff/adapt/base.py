"""The checkpoint that training starts from: a transformers model, a tokenizer, and the ids training needs.

An HF folder is read here; GGUF and llama2.c files in base_files.py give the same `Base`. Weights are f32. Families are
rows of FAMILIES; anything else is refused by name. Here too: models from scratch, and the mask token. Not here: LoRA,
masked language models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer

from ..errors import ModelFileError, OptionError

FAMILIES = ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM")
INITIAL_STD = 0.02

# named shapes for --config: transformers' field names, the vocabulary comes from the tokenizer
SHAPES: dict[str, dict[str, Any]] = {
    "stories": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "smoke": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
}

transformers.utils.logging.disable_progress_bar()  # one bar per run is ours


@dataclass
class Base:
    """A model under training and what is written beside it.

    tokenizer_config   content of tokenizer_config.json; chat template and token names travel in it
    """

    model: Any
    tokenizer: Tokenizer
    end_token: int
    tokenizer_config: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding; may exceed the tokenizer's."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def save(self, folder: Path) -> None:
        """Write an HF folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
        self.model.save_pretrained(folder)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        text = json.dumps(self.tokenizer_config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def load_base(path: Path, tokenizer: str | None) -> Base:
    """Read an HF folder, a .gguf or a llama2.c .bin. Raises ModelFileError where it cannot be used."""
    if not path.exists():
        raise ModelFileError(f"{path}: no such file or folder; give an HF folder, a .gguf or a llama2.c .bin")
    if path.is_dir():
        return load_folder(path, tokenizer)
    from .base_files import load_gguf, load_llama2c

    readers = {".gguf": load_gguf, ".bin": load_llama2c}
    if path.suffix not in readers:
        raise ModelFileError(f"{path}: expected an HF folder, a .gguf or a llama2.c .bin")
    return readers[path.suffix](path, tokenizer)


def load_folder(folder: Path, tokenizer: str | None = None) -> Base:
    config = read_json(folder / "config.json")
    found = (config.get("architectures") or ["none"])[0]
    if found not in FAMILIES:
        raise ModelFileError(f"{folder}: architecture {found} is not supported; expected one of {', '.join(FAMILIES)}")
    try:
        model = getattr(transformers, found).from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{folder}: the weights cannot be read ({str(error).splitlines()[0]})") from None
    own_config = folder / "tokenizer_config.json"
    tokenizer_config = read_json(own_config) if own_config.is_file() else {}
    pieces = load_tokenizer(Path(tokenizer) if tokenizer else folder / "tokenizer.json")
    end = end_token_of(pieces, tokenizer_config, config.get("eos_token_id"), folder)
    return checked(Base(model, pieces, end, tokenizer_config), folder)


def load_tokenizer(path: Path) -> Tokenizer:
    if path.suffix == ".bin":
        from ..convert.llama2c import llama2c_tokenizer

        return llama2c_tokenizer(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such tokenizer file; give one with --tokenizer FILE")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelFileError(f"{path}: not a tokenizer.json ({error})") from None


def end_token_of(tokenizer: Tokenizer, tokenizer_config: dict[str, Any], eos: Any, path: Path) -> int:
    """The token that ends a document: named in tokenizer_config.json, else by id in the model's config."""
    name = tokenizer_config.get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    token = tokenizer.token_to_id(name) if isinstance(name, str) else None
    if token is None:
        token = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(token, int):
        raise ModelFileError(f"{path}: no end-of-text token (eos) is named, so documents cannot be joined")
    return token


def checked(base: Base, path: Path) -> Base:
    rows = base.vocabulary
    size = base.tokenizer.get_vocab_size(with_added_tokens=True)
    if size > rows or base.end_token >= rows:
        raise ModelFileError(
            f"{path}: the tokenizer has {size} tokens but the embedding only {rows} rows; they do not fit"
        )
    base.tokenizer_config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    base.tokenizer_config.setdefault("eos_token", base.tokenizer.id_to_token(base.end_token))
    base.model.config.eos_token_id = base.end_token
    base.model.generation_config.eos_token_id = base.end_token
    return base


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelFileError(f"{path}: no such file") from None
    except ValueError as error:
        raise ModelFileError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: expected a JSON object")
    return content


def from_scratch(shape: str, tokenizer_path: str, length: int, seed: int) -> Base:
    """A model with fresh weights: `shape` is a named size or a JSON file with transformers' field names."""
    fields = dict(SHAPES[shape]) if shape in SHAPES else None
    if fields is None:
        if not Path(shape).is_file():
            raise OptionError(f"--config {shape}: neither a JSON file nor a named size ({', '.join(SHAPES)})")
        fields = read_json(Path(shape))
    name = (fields.pop("architectures", None) or ["none"])[0]
    if name not in FAMILIES:
        raise OptionError(f'--config {shape}: "architectures" names {name}, expected one of {", ".join(FAMILIES)}')
    tokenizer = load_tokenizer(Path(tokenizer_path))
    beside = Path(tokenizer_path).with_name("tokenizer_config.json")
    tokenizer_config = read_json(beside) if beside.is_file() else {}
    end = tokenizer.token_to_id("<|endoftext|>")
    end = end_token_of(tokenizer, tokenizer_config, fields.get("eos_token_id", end), Path(tokenizer_path))
    fields.update(vocab_size=tokenizer.get_vocab_size(with_added_tokens=True), bos_token_id=None, eos_token_id=end)
    if length:
        fields["max_position_embeddings"] = length
    family = getattr(transformers, name)
    try:
        config = family.config_class(**fields)
    except Exception as error:  # transformers raises its own validation errors
        raise OptionError(f"--config {shape}: {str(error).splitlines()[0]}") from None
    torch.manual_seed(seed)
    return checked(Base(family(config), tokenizer, end, tokenizer_config), Path(tokenizer_path))


def choose_mask(base: Base, mask_token: str | None, mask_id: int | None) -> int:
    """The id of the mask token, adding a token and an embedding row where `mask_token` is new.

    A new row starts as the mean of all rows: no token's meaning, but the scale the network expects.
    """
    if mask_id is not None:
        if not 0 <= mask_id < base.vocabulary:
            last = base.vocabulary - 1
            raise OptionError(f"--mask-id is {mask_id}, but the vocabulary has ids 0 to {last}; give one of them")
        return mask_id
    assert mask_token is not None
    known = base.tokenizer.token_to_id(mask_token)
    if known is not None:
        return int(known)
    base.tokenizer.add_special_tokens([AddedToken(mask_token, special=True, normalized=False)])
    token = base.tokenizer.token_to_id(mask_token)
    assert token is not None
    rows = base.vocabulary
    if token >= rows:
        base.model.resize_token_embeddings(token + 1, mean_resizing=False)
    tables = {table.weight for table in (base.model.get_input_embeddings(), base.model.get_output_embeddings())}
    with torch.no_grad():
        for weight in tables:  # one where the head is tied
            weight[token] = weight[:rows].mean(dim=0)
    base.tokenizer_config["mask_token"] = mask_token
    return token
