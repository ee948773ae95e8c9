"""GGUF metadata for the tests of localdiff.text, which so need neither the engine nor the slow reference reader."""

import struct
from pathlib import Path
from typing import Any

from real_models import smollm2_file

FORMS = "BbHhIif?__Qqd"  # struct codes of GGUF's value types 0 to 12
STRING, ARRAY = 8, 9


def read(path: Path) -> dict[str, Any]:
    """Every key of the well-formed file at `path`: str, int, float, bool or a list of these."""
    data = path.read_bytes()
    place = 16  # after magic, version and the number of tensors

    def take(form: str) -> Any:
        nonlocal place
        place += struct.calcsize("<" + form)
        return struct.unpack_from("<" + form, data, place - struct.calcsize("<" + form))

    def value(kind: int) -> Any:
        nonlocal place
        if kind == STRING:
            (length,) = take("Q")
            place += length
            return data[place - length : place].decode()
        if kind == ARRAY:
            inner, count = take("IQ")
            return (
                [value(inner) for _ in range(count)]
                if inner in (STRING, ARRAY)
                else list(take(f"{count}{FORMS[inner]}"))
            )
        return take(FORMS[kind])[0]

    (count,) = take("Q")
    return {value(STRING): value(take("I")[0]) for _ in range(count)}


def smollm2() -> dict[str, Any]:
    """The metadata of SmolLM2-135M-Instruct; skips where absent."""
    return read(smollm2_file())


def tiny_bpe(**changes: Any) -> dict[str, Any]:
    """A byte-level BPE vocabulary of 256 bytes, four merged tokens and three control tokens; needs no data folder."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(256 - len(printable))]
    tokens = [*alphabet, "he", "ll", "hell", "hello", "<|im_start|>", "<|im_end|>", "[MASK]"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 260 + [3] * 3,
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o"],
        "tokenizer.ggml.bos_token_id": 260,
        "tokenizer.ggml.eos_token_id": 261,
        "tokenizer.ggml.mask_token_id": 262,
    }
    return {key: value for key, value in (metadata | changes).items() if value is not None}


def tiny_spm(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary with all bytes and a few scored pieces."""
    pieces = {"\u2581": -1.0, "a": -2.0, "b": -3.0, "aa": -4.0, "ab": -4.0, "ba": -4.0, "\u2581a": -5.0, "aba": -6.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "tokenizer.ggml.scores": [0.0] * 259 + list(pieces.values()),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return {key: value for key, value in (metadata | changes).items() if value is not None}
