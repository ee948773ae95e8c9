"""Schemas and regexes that the tests make, and vocabularies of every kind to write them with.

A seed gives one case. Schemas nest as deep as asked and use every keyword that is translated; regexes use every
construct. Not here: expectations.
"""

import json
import re
from typing import Any

import jsonschema
import numpy as np
from text_metadata import tiny_bpe

Rng = np.random.Generator
_NAMES = ("a", "id", "name", "x y", "größe", 'q"t', "list", "ok")
_WORDS = ("red", "", "a b", 'say "hi"', "back\\slash", "café", "line\nend", "\u2028", "🙂", "null", "\t")
_PATTERNS = ("^[a-c]{2,4}$", "^(yes|no)$", "ab", r"^\d{3}-\d{2}$", r"^[^\"\\]{1,3}$", "x$", "^$", r"^\S+ \S+$", "é|ü")
_FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def random_schema(rng: Rng, depth: int) -> dict[str, Any]:
    """A schema that nests `depth` deep."""
    if depth == 0:
        return _scalar(rng)
    inner = random_schema(rng, depth - 1)
    kind = rng.choice(["object", "object", "array", "array", "anyOf", "oneOf", "allOf", "ref"])
    if kind == "object":
        return _object(rng, inner)
    if kind == "array":
        return _array(rng, inner)
    if kind == "anyOf":
        return {"anyOf": [inner, _scalar(rng)] if rng.random() < 0.5 else [_scalar(rng), inner]}
    if kind == "oneOf":
        return {"oneOf": [_object(rng, inner), {"type": "boolean"}]}
    if kind == "allOf":
        return {"allOf": [{**_object(rng, inner, named=True), "additionalProperties": True}, {"required": ["id"]}]}
    return {"type": "object", "properties": {"ref": inner}, "required": ["ref"], "additionalProperties": False}


def with_references(schema: dict[str, Any]) -> dict[str, Any]:
    """The same with what is named "ref" moved into definitions."""
    definitions: dict[str, Any] = {}

    def moved(part: Any) -> Any:
        if isinstance(part, list):
            return [moved(each) for each in part]
        if not isinstance(part, dict) or "const" in part or "enum" in part:
            return part
        out = {key: moved(value) for key, value in part.items()}
        if isinstance(out.get("properties"), dict) and "ref" in out["properties"]:
            name = f"part/{len(definitions)}~"
            definitions[name] = out["properties"]["ref"]
            pointer = name.replace("~", "~0").replace("/", "~1")
            out["properties"] = {**out["properties"], "ref": {"$ref": f"#/$defs/{pointer}", "title": "one of them"}}
        return out

    whole = moved(schema)
    return {**whole, "$defs": definitions} if definitions else whole


def _scalar(rng: Rng) -> dict[str, Any]:
    kind = rng.choice(
        ["string", "length", "pattern", "format", "integer", "number", "enum", "const", "types", "boolean"]
    )
    low = int(rng.integers(-120, 120))
    if kind == "length":
        least = int(rng.integers(0, 4))
        return {"type": "string", "minLength": least, "maxLength": least + int(rng.integers(0, 6))}
    if kind == "pattern":
        return {"type": "string", "pattern": str(rng.choice(_PATTERNS))}
    if kind == "format":
        return {"type": "string", "format": str(rng.choice(_FORMATS))}
    if kind == "integer":
        limits = {"minimum": low, "maximum": low + int(rng.integers(0, 300)), "exclusiveMaximum": low + 400}
        return {"type": "integer", **{key: limits[key] for key in limits if rng.random() < 0.6}}
    if kind == "number":
        limits = {"minimum": low - 0.5, "exclusiveMaximum": low + 2.25}
        return {"type": "number", **{key: limits[key] for key in limits if rng.random() < 0.6}}
    if kind == "enum":
        values = [*_WORDS, 0, -1.5, 10**12, True, None, [1, "ü"], {"k": []}]
        return {"enum": [values[place] for place in rng.choice(len(values), 3, replace=False)]}
    if kind == "const":
        return {"const": [_WORDS[rng.integers(len(_WORDS))], {"n": 1}][int(rng.integers(2))]}
    if kind == "types":
        return {"type": ["integer", "null", "string"], "maxLength": 5, "minimum": low}
    return {"type": str(kind)}


def _object(rng: Rng, inner: dict[str, Any], named: bool = False) -> dict[str, Any]:
    names = ["id", *rng.choice([name for name in _NAMES if name != "id"], 2, replace=False).tolist()]
    values = [inner, _scalar(rng), _scalar(rng)]
    order = rng.permutation(3)
    properties = {names[place]: values[place] for place in order.tolist()}
    required = [name for name in properties if name == "id" or rng.random() < 0.4]
    if rng.random() < 0.2 and not named:
        return {"type": "object", "additionalProperties": inner, "maxProperties": 2}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: Rng, inner: dict[str, Any]) -> dict[str, Any]:
    least = int(rng.integers(0, 2))
    if rng.random() < 0.3:
        first = [_scalar(rng), inner]
        return {"type": "array", "prefixItems": first, "items": False, "minItems": int(rng.integers(0, 3))}
    limits = {"minItems": least, "maxItems": least + int(rng.integers(1, 3))} if rng.random() < 0.7 else {}
    return {"type": "array", "items": inner, **limits}


def schema_case(seed: int) -> dict[str, Any]:
    """Depths 0 to 5 in turn."""
    rng = np.random.default_rng([seed, 1])
    return with_references(random_schema(rng, seed % 6))


def is_valid(text: str, schema: Any) -> bool:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    return bool(validator.is_valid(json.loads(text)))


# ---- regexes ----

_ATOMS = (
    "a", "the", r"\.", r"\d", r"\w", r"\s", ".", "[a-z]", "[^a-z]", "[^\\s\\d]", r"[\w-]", "é", "[а-я]", "🙂", r"\D",
    " ", r"\x41", r"[\]\\^]", r"\u20ac",
)  # fmt: skip
_GROUP_COUNTS = ("", "", "?", "{2}")  # of what may hold repeats, which re would try in all ways
_COUNTS = ("", "", "", "?", "*", "+", "{2}", "{1,3}", "{2,}", "*?", "+?")


def random_regex(rng: Rng, depth: int) -> str:
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        if depth and rng.random() < 0.5:
            inside = random_regex(rng, depth - 1)
            opening = str(rng.choice(["(", "(?:", f"(?P<n{rng.integers(10**9)}>"]))
            part = f"{opening}{inside})" + str(rng.choice(_GROUP_COUNTS))
        else:
            part = str(rng.choice(_ATOMS))
            part = part if len(part) == 1 or part[0] in "[\\" else f"(?:{part})"
            part += str(rng.choice(_COUNTS))
        parts.append(part)
    text = "".join(parts)
    if rng.random() < 0.3:
        text += "|" + str(rng.choice(_ATOMS))
    return text


def regex_case(seed: int) -> str:
    rng = np.random.default_rng([seed, 2])
    pattern = random_regex(rng, seed % 5)
    return f"^(?:{pattern})$" if rng.random() < 0.2 else pattern


def fits(text: str, pattern: str) -> bool:
    return re.fullmatch(pattern, text) is not None


# ---- vocabularies ----


def bytes_vocabulary() -> dict[str, Any]:
    """Byte-level BPE: all bytes, a few words."""
    return tiny_bpe()


def spaces_vocabulary() -> dict[str, Any]:
    """SentencePiece: <0xNN> for every byte, and pieces with U+2581 for a space."""
    pieces = [
        "\u2581",
        "a",
        "b",
        "e",
        "x",
        "1",
        "2",
        '"',
        "{",
        "}",
        ":",
        ",",
        '\u2581"',
        "\u2581a",
        "\u2581the",
        "ab",
        "é",
        "\u2581{",
        '":',
    ]
    tokens = ["<unk>", "<s>", "</s>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.scores": [0.0] * 260 + [-float(place) for place in range(len(pieces))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.mask_token_id": 3,
    }


def words_vocabulary() -> dict[str, Any]:
    """WordPiece: words with a space before them, and their tails (written ##x)."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "red",
        "green",
        "a",
        "b",
        "1",
        "2",
        "{",
        "}",
        '"',
        ":",
        ",",
        ".",
    ]
    tails = ["##" + each for each in ("ed", "a", "b", "1", "2", '"', ":", "{", "}", "red", "green")]
    tokens = [*pieces, *tails]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [_marked(text) for text in tokens],
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.mask_token_id": 4,
    }


def _marked(text: str) -> str:
    """As such files write it: U+2581 before a word, a tail without ##."""
    if text.startswith("["):
        return text
    return text.removeprefix("##") if text.startswith("##") else "\u2581" + text
