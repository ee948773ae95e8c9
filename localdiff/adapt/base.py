"""The checkpoint that training starts from: a transformers model, a tokenizer, and the ids training needs.

An HF folder is read here; GGUF and llama2.c files in base_files.py give the same `Base`. Weights are f32. Families are
the rows of bodies.py; anything else is refused by name. Here too: models from scratch, and the mask token. Not here:
LoRA (lora.py), the forward pass (bodies.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer

from ..convert.vocabulary import load_tokenizer as tokenizer_files
from ..errors import ModelFileError, OptionError
from .bodies import FAMILIES, Family, family_of, first_position

# named shapes for --shape: transformers' field names, the vocabulary comes from the tokenizer
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
    adapted            LoRA adapters were put beside the weights (lora.py)
    """

    model: Any
    tokenizer: Tokenizer
    end_token: int
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    adapted: bool = False

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings) - first_position(self.model)

    @property
    def family(self) -> Family:
        return family_of(self.model)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding; may exceed the tokenizer's."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def token(self, role: str) -> int | None:
        """The id of the token with a role such as `pad_token`; None where there is none."""
        return named_token(self.tokenizer, self.tokenizer_config, role)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write an HF folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.

        weights   in place of the model's own, under the same names; tensors that are tied must share memory
        """
        self.model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
        self.save_tokenizer(folder)

    def save_tokenizer(self, folder: Path) -> None:
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
    files = tokenizer_files(Path(tokenizer) if tokenizer else folder)
    pieces = load_tokenizer_text(files.text, files.origin)
    tokenizer_config = dict(files.config)
    if files.chat_template is not None:
        tokenizer_config["chat_template"] = files.chat_template
    end = end_token_of(pieces, tokenizer_config, config.get("eos_token_id"), folder)
    return checked(Base(model, pieces, end, tokenizer_config), folder)


def load_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such tokenizer file; give one with --tokenizer FILE")
    files = tokenizer_files(path)
    return load_tokenizer_text(files.text, files.origin)


def load_tokenizer_text(text: str, origin: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelFileError(f"{origin}: not a tokenizer.json ({error})") from None


# what vocabularies call the tokens of a role where tokenizer_config.json does not say
_USUAL = {
    "mask_token": ("[MASK]", "<mask>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
}


def named_token(tokenizer: Tokenizer, tokenizer_config: dict[str, Any], role: str) -> int | None:
    name = tokenizer_config.get(role)
    name = name.get("content") if isinstance(name, dict) else name
    names = (name,) if isinstance(name, str) else _USUAL.get(role, ())
    found = (tokenizer.token_to_id(text) for text in names)
    return next((token for token in found if token is not None), None)


def end_token_of(tokenizer: Tokenizer, tokenizer_config: dict[str, Any], eos: Any, path: Path) -> int:
    """The token that ends a document: named in tokenizer_config.json, else by id in the model's config. Where there is
    none, as in BERT, the token that separates texts ends them."""
    token = named_token(tokenizer, tokenizer_config, "eos_token")
    if token is None:
        token = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(token, int):
        token = named_token(tokenizer, tokenizer_config, "sep_token")
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
    if getattr(base.model, "generation_config", None) is not None:  # masked language models have none
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
            raise OptionError(f"--shape {shape}: neither a JSON file nor a named size ({', '.join(SHAPES)})")
        fields = read_json(Path(shape))
    name = (fields.pop("architectures", None) or ["none"])[0]
    if name not in FAMILIES:
        raise OptionError(f'--shape {shape}: "architectures" names {name}, expected one of {", ".join(FAMILIES)}')
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
        raise OptionError(f"--shape {shape}: {str(error).splitlines()[0]}") from None
    torch.manual_seed(seed)
    return checked(Base(family(config), tokenizer, end, tokenizer_config), Path(tokenizer_path))


def choose_mask(base: Base, mask_token: str | None, mask_id: int | None) -> int:
    """The id of the mask token, adding a token and an embedding row where `mask_token` is new; where neither is given
    it is the one that the base's tokenizer names.

    A new row starts as the mean of all rows: no token's meaning, but the scale the network expects.
    """
    if mask_id is not None:
        if not 0 <= mask_id < base.vocabulary:
            last = base.vocabulary - 1
            raise OptionError(f"--mask-id is {mask_id}, but the vocabulary has ids 0 to {last}; give one of them")
        return mask_id
    if mask_token is None:
        own = base.token("mask_token")
        if own is None:
            raise OptionError("no mask token; give --mask-token TEXT (added where absent) or --mask-id N")
        return own
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
