"""One record for every kind of vocabulary, and checked reading of metadata; ggml.py and huggingface.py make it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localdiff.errors import ModelFileError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # values of tokenizer.ggml.token_type
SPACE = "\u2581"  # how pieces of SentencePiece vocabularies write a space


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model and the encoding of ordinary text, which can never give a control token.

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


def byte_value(text: str) -> int | None:
    """The value of a byte piece such as <0x0A>, None for any other text."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return int(text[3:5], 16)
        except ValueError:
            pass
    return None


def guarded(key: str, build: Callable[[], Any]) -> Any:
    """build(), with every failure of the Rust library, its panics included, as a ModelFileError that names `key`."""
    try:
        return build()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic does not derive from Exception
        raise ModelFileError(f"{key} cannot be used ({error}), expected a tokenizer; convert the model again") from None
