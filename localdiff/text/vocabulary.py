"""Reading a vocabulary out of GGUF metadata, as one record whatever its source.

`from_ggml` reads the arrays `tokenizer.ggml.*`; `from_json` reads `tokenizer.huggingface.json`, which is preferred
where present, since it says everything that the arrays leave to convention. Both give a Vocabulary: the table of tokens
and a function from ordinary text to ids. That function can never give a control token: those are taken out of what the
merging code sees. Everything here comes from a file and is checked before use. Not here: control tokens in templates,
decoding.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localdiff.errors import ModelFileError
from localdiff.text.pretokenizers import BY_NAME
from localdiff.text.spm import SpmEncoder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # values of tokenizer.ggml.token_type
SPACE = "\u2581"  # how pieces of SentencePiece vocabularies write a space
_MAX_GROWTH = 64  # times that the replacements of a file's normalizer may lengthen a text
_JSON_KEY = "tokenizer.huggingface.json"
_ADDED_DEFAULTS: dict[str, Any] = {"special": False, "lstrip": False, "rstrip": False}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model and the encoding of ordinary text.

    texts          token texts, index = id
    types          NORMAL, UNKNOWN, ... per id
    style          how texts stand for bytes: "bytes" (GPT-2 alphabet), "spaces" (U+2581, <0xNN>), "words" (##)
    add_bos        whether prompts begin with bos where the file does not say
    space_prefix   encoding puts a space before the text, and decoding removes it
    split_added    USER_DEFINED tokens are found before encode() is called (else encode() finds them)
    trims          id -> (left, right): a control token that swallows the white space beside it
    encode         (text, first) -> ids; first: nothing stands before the text in the prompt
    """

    texts: list[str]
    types: list[int]
    style: str
    add_bos: bool
    space_prefix: bool
    split_added: bool
    encode: Callable[[str, bool], list[int]]
    trims: dict[int, tuple[bool, bool]] = field(default_factory=dict)


def array(metadata: Mapping[str, Any], key: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any]:
    """The list under `key`, each value of type `kind`; ModelFileError where it is absent or otherwise."""
    values = metadata.get(key)
    if values is None:
        raise ModelFileError(f"the file has no {key}, which its tokenizer needs; convert the model again")
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ModelFileError(f"{key} is {type(values).__name__}, expected an array; convert the model again")
    if length is not None and len(values) != length:
        raise ModelFileError(f"{key} has {len(values)} values, expected {length}, one per token")
    wrong = next((value for value in values if not isinstance(value, kind)), None)
    if wrong is not None:
        raise ModelFileError(f"{key} holds a value of type {type(wrong).__name__}; convert the model again")
    return list(values)


def from_ggml(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of `tokenizer.ggml.*`; ModelFileError where it is damaged or of a kind that is not supported."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        found = "has no tokenizer.ggml.model" if kind is None else f"has a tokenizer of kind {kind!r}"
        raise ModelFileError(
            f"the file {found}, expected 'gpt2' (byte-level BPE), 'llama' (SentencePiece BPE) "
            "or a tokenizer.huggingface.json; convert the model again with localdiff convert"
        )
    texts: list[str] = array(metadata, "tokenizer.ggml.tokens", str)
    if not texts:
        raise ModelFileError("tokenizer.ggml.tokens is empty; convert the model again")
    texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
    if len(set(texts)) != len(texts):
        seen: set[str] = set()
        twice = next(text for text in texts if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise ModelFileError(f"tokenizer.ggml.tokens has {twice!r} twice, expected each token once")
    types = [NORMAL] * len(texts)
    if "tokenizer.ggml.token_type" in metadata:
        types = array(metadata, "tokenizer.ggml.token_type", int, len(texts))
    return (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, texts, types)


def _byte_level(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Vocabulary:
    import tokenizers

    name = metadata.get("tokenizer.ggml.pre", "default")
    row = BY_NAME.get(name)
    if row is None:
        raise ModelFileError(
            f"tokenizer.ggml.pre is {name!r}, expected one of {', '.join(sorted(BY_NAME))}; "
            "convert the model with localdiff convert, which also writes tokenizer.huggingface.json"
        )
    if metadata.get("tokenizer.ggml.add_space_prefix", False) is True:
        raise ModelFileError("tokenizer.ggml.add_space_prefix is true, expected false with byte-level BPE")
    vocab = {text: token for token, text in enumerate(texts) if types[token] not in (CONTROL, UNKNOWN)}
    merges: list[tuple[str, str]] = []
    for merge in dict.fromkeys(array(metadata, "tokenizer.ggml.merges", str)):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise ModelFileError(f"tokenizer.ggml.merges holds {merge!r}, expected two tokens with a space between")
        if left + right in vocab and left in vocab and right in vocab:
            merges.append((left, right))
    model = _guarded(
        "tokenizer.ggml.merges", lambda: tokenizers.models.BPE(vocab, merges, ignore_merges=row.ignore_merges)
    )
    backend = tokenizers.Tokenizer(model)
    split, cut = tokenizers.pre_tokenizers.Split, tokenizers.Regex
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split(cut(pattern), "isolated") for pattern in row.patterns]
        + [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )

    def encode(text: str, first: bool) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    return Vocabulary(texts, types, "bytes", row.add_bos, space_prefix=False, split_added=True, encode=encode)


def _sentencepiece(metadata: Mapping[str, Any], texts: list[str], types: list[int]) -> Vocabulary:
    scores = array(metadata, "tokenizer.ggml.scores", (float, int), len(texts))
    if any(score != score for score in scores):
        raise ModelFileError("tokenizer.ggml.scores holds a NaN, expected numbers; convert the model again")
    pieces: dict[str, tuple[float, int]] = {}
    byte_ids = [-1] * 256
    unknown = None
    for token, (text, kind) in enumerate(zip(texts, types, strict=True)):
        if kind == BYTE:
            byte_ids[_byte_value(text)] = token
        elif kind == UNKNOWN:
            unknown = token if unknown is None else unknown
        elif kind != CONTROL:
            pieces[text] = (scores[token], token)
    encoder = SpmEncoder(pieces, byte_ids, unknown)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is True

    def encode(text: str, first: bool) -> list[int]:
        return encoder.encode((SPACE if prefix else "") + text.replace(" ", SPACE))

    return Vocabulary(texts, types, "spaces", True, space_prefix=prefix, split_added=True, encode=encode)


def _byte_value(text: str) -> int:
    """The value of a byte piece such as <0x0A>."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return int(text[3:5], 16)
        except ValueError:
            pass
    raise ModelFileError(f"tokenizer.ggml.tokens has the byte token {text!r}, expected <0x00> to <0xFF>")


def from_json(source: object, rows: int) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` as `tokenizers` writes it.

    source   the JSON text
    rows     tokens that the model has at least (rows that the JSON does not name get made-up texts)
    raises   ModelFileError where the JSON is damaged, or of a kind whose pieces do not stand for bytes
    """
    try:
        return _from_spec(json.loads(source), rows)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelFileError(
            f"{_JSON_KEY} is damaged ({type(error).__name__}: {error}), expected a tokenizer; convert the model again"
        ) from None


def _from_spec(spec: dict[str, Any], rows: int) -> Vocabulary:
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
        growth *= max(1, len(step["content"])) if step.get("type") == "Replace" else 1
    if growth > _MAX_GROWTH:
        raise ValueError(f"a normalizer that lengthens text up to {growth} times")
    unknown = entries[model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")

    texts = [f"[PAD{token}]" for token in range(max(rows, 1 + max(tokens.values(), default=-1)))]
    types = [UNUSED] * len(texts)
    trims = {}
    for text, token in table.items():
        texts[token], types[token] = text, BYTE if style == "spaces" and _is_byte(text) else NORMAL
    for entry in added:
        texts[entry["id"]], types[entry["id"]] = entry["content"], CONTROL if entry["special"] else USER_DEFINED
        if entry["special"] and (entry["lstrip"] or entry["rstrip"]):
            trims[entry["id"]] = (bool(entry["lstrip"]), bool(entry["rstrip"]))
    if unknown in table:
        types[table[unknown]] = UNKNOWN

    _hide(spec, {entry["content"] for entry in added if entry["special"]}, unknown)
    # Framing, cutting and padding are not the tokenizer's business here, and decoding is done byte by byte.
    spec |= dict.fromkeys(("post_processor", "truncation", "padding", "decoder"))
    backend = _guarded(_JSON_KEY, lambda: tokenizers.Tokenizer.from_str(json.dumps(spec)))
    later = backend
    schemes = [step for step in spread if step.get("type") == "Metaspace"]
    if any(step.get("prepend_scheme") == "first" for step in schemes):
        for step in schemes:  # text after a control token does not open the prompt, so it gets no space in front
            step["prepend_scheme"] = "never"
        later = _guarded(_JSON_KEY, lambda: tokenizers.Tokenizer.from_str(json.dumps(spec)))

    def encode(text: str, first: bool) -> list[int]:
        return list((backend if first else later).encode(text, add_special_tokens=False).ids)

    prefixed = style == "words" or any(
        (step.get("type") == "Strip" and step.get("start", 0) > 0)
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return Vocabulary(texts, types, style, False, prefixed, False, encode, trims)


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


def _is_byte(text: str) -> bool:
    try:
        return _byte_value(text) >= 0
    except ModelFileError:
        return False


def _guarded(key: str, build: Callable[[], Any]) -> Any:
    """build(), with every failure of the Rust library, its panics included, as a ModelFileError that names `key`."""
    try:
        return build()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic does not derive from Exception
        raise ModelFileError(f"{key} cannot be used ({error}), expected a tokenizer; convert the model again") from None
