"""Reading a vocabulary out of `tokenizer.huggingface.json`, which says everything that arrays leave to convention.

The JSON is that of `tokenizers`. Control tokens are taken out of what its merging code sees, so that text can never
give one. Everything here comes from a file and is checked before use. Not here: control tokens in templates, decoding.
"""

import base64
import json
import secrets
from collections.abc import Collection
from typing import Any

from localdiff.errors import ModelFileError
from localdiff.text.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    byte_value,
    guarded,
)

_MAX_GROWTH = 64  # times that the replacements of a file's normalizer may lengthen a text
_KEY = "tokenizer.huggingface.json"
_ADDED_DEFAULTS: dict[str, Any] = {"special": False, "lstrip": False, "rstrip": False}


def from_json(source: object, rows: int) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` as `tokenizers` writes it.

    source   the JSON text
    rows     tokens that the model has at least (rows that the JSON does not name get made-up texts)
    raises   ModelFileError where the JSON is damaged, or of a kind whose pieces do not stand for bytes
    """
    try:
        spec = json.loads(source)  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(_KEY, error) from None
    return from_spec(_KEY, spec, rows)


def from_spec(key: str, spec: dict[str, Any], rows: int, unused: Collection[str] = ()) -> Vocabulary:
    """The same for a parsed description; `unused` are texts that stand for no token, `key` is named in errors."""
    try:
        return _from_spec(key, spec, rows, unused)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(key, error) from None


def _damaged(key: str, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{key} is damaged ({type(error).__name__}: {error}), expected a tokenizer; convert the model again"
    )


def _from_spec(key: str, spec: dict[str, Any], rows: int, unused: Collection[str]) -> Vocabulary:
    import tokenizers

    model = spec["model"]
    entries = model["vocab"]
    table = {text: token for token, (text, _) in enumerate(entries)} if isinstance(entries, list) else dict(entries)
    added = [{**_ADDED_DEFAULTS, **entry} for entry in spec.get("added_tokens") or ()]
    tokens = {**table, **{entry["content"]: entry["id"] for entry in added}}
    # The bound on ids keeps a short JSON from asking for a long table.
    bound = max(rows, 2 * len(tokens) + 65_536)
    for text, token in tokens.items():
        if not isinstance(text, str) or not isinstance(token, int) or not text or not 0 <= token < bound:
            raise ValueError(f"the token {text!r} has the id {token!r}")
    steps = list(_nodes(spec.get("decoder")))
    style = _style({step.get("type") for step in steps})
    spread = [step for part in ("normalizer", "pre_tokenizer") for step in _nodes(spec.get(part))]
    growth = 1
    for step in spread:
        growth *= max(1, _longest(step))
    if growth > _MAX_GROWTH:
        raise ValueError(f"a normalizer that lengthens text up to {growth} times")
    unknown = entries[model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")

    texts = [f"[PAD{token}]" for token in range(max(rows, 1 + max(tokens.values(), default=-1)))]
    types = [UNUSED] * len(texts)
    trims = {}
    for text, token in table.items():
        texts[token], types[token] = text, BYTE if style == "spaces" and byte_value(text) is not None else NORMAL
    for entry in added:
        texts[entry["id"]], types[entry["id"]] = entry["content"], CONTROL if entry["special"] else USER_DEFINED
        if entry["special"] and (entry["lstrip"] or entry["rstrip"]):
            trims[entry["id"]] = (bool(entry["lstrip"]), bool(entry["rstrip"]))
    for text in unused:
        types[table[text]] = UNUSED
    if unknown in table:
        types[table[unknown]] = UNKNOWN

    _hide(spec, {*unused, *(entry["content"] for entry in added if entry["special"])}, unknown)
    # Framing, cutting and padding are not the tokenizer's business here, and decoding is done byte by byte.
    spec |= dict.fromkeys(("post_processor", "truncation", "padding", "decoder"))
    backend = guarded(key, lambda: tokenizers.Tokenizer.from_str(json.dumps(spec)))
    later = backend
    schemes = [step for step in spread if step.get("type") == "Metaspace"]
    if any(step.get("prepend_scheme") == "first" for step in schemes):
        for step in schemes:  # text after a control token does not open the prompt, so it gets no space in front
            step["prepend_scheme"] = "never"
        later = guarded(key, lambda: tokenizers.Tokenizer.from_str(json.dumps(spec)))

    def encode(text: str, first: bool) -> list[int]:
        return list((backend if first else later).encode(text, add_special_tokens=False).ids)

    prefixed = style == "words" or any(
        (step.get("type") == "Strip" and step.get("start", 0) > 0)
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return Vocabulary(texts, types, style, False, prefixed, False, encode, trims)


def _longest(step: dict[str, Any]) -> int:
    """Characters that a step of a normalizer may write in place of one."""
    if step.get("type") == "Replace":
        return len(step["content"])
    if step.get("type") == "Precompiled":  # the size of a trie, the trie, and the replacements, each ended by a NUL
        data = base64.b64decode(step["precompiled_charsmap"] or "", validate=True)
        trie = int.from_bytes(data[:4], "little")
        return max(len(text.decode(errors="replace")) for text in data[4 + trie :].split(b"\0"))
    return 1


def _hide(spec: dict[str, Any], control: set[str], unknown: str | None) -> None:
    """Give the control tokens random names in `spec`, so that no text can be encoded as one; their ids stay."""
    hidden = {text: secrets.token_hex(32) for text in (control | {unknown} if unknown is not None else control)}
    model = spec["model"]
    entries = model["vocab"]
    if isinstance(entries, list):
        model["vocab"] = [[hidden.get(text, text), score] for text, score in entries]
    else:
        model["vocab"] = {hidden.get(text, text): token for text, token in entries.items()}
    if unknown is not None and "unk_token" in model:
        model["unk_token"] = hidden[unknown]
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if hidden.keys().isdisjoint((*pair, "".join(pair)))]
    spec["added_tokens"] = [
        {**entry, "content": hidden.get(entry["content"], entry["content"])} for entry in spec.get("added_tokens") or ()
    ]


def _nodes(step: Any) -> Any:
    """`step` and everything in its sequence, flat."""
    if isinstance(step, dict):
        yield step
        for name in ("normalizers", "pretokenizers", "decoders"):
            for inner in step.get(name) or ():
                yield from _nodes(inner)


def _style(decoders: set[Any]) -> str:
    for style, kinds in (("bytes", {"ByteLevel"}), ("words", {"WordPiece"}), ("spaces", {"Metaspace", "ByteFallback"})):
        if decoders & kinds:
            return style
    names = ", ".join(sorted(map(str, decoders))) or "none"
    raise ModelFileError(
        f"tokenizer.huggingface.json has a decoder of kind {names}, "
        "expected ByteLevel, WordPiece, Metaspace or ByteFallback"
    )
