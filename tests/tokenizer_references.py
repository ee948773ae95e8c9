"""Independent tokenizers made from the arrays of a GGUF file: Hugging Face's classes, sentencepiece, llama.cpp.

The first two are built without localdiff. llama.cpp runs in a child process, since it may abort: of the interpreter in
LOCALDIFF_LLAMA_PYTHON, else that of `tools/dev peers`, else this one. Each gives texts -> lists of ids.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
T = "tokenizer.ggml."
Encode = Callable[[list[str]], list[list[int]]]


# sentencepiece: its model file, written field by field (sentencepiece_model.proto)


def _field(number: int, value: bytes | str | int | float | bool) -> bytes:
    if isinstance(value, bool | int):
        return _varint(number << 3) + _varint(int(value))
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def sentencepiece(metadata: Mapping[str, Any]) -> Encode:
    """The library itself with the pieces, scores and character map of a file of kind 'llama' or 't5'."""
    library = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    tokens, scores, types = (metadata[T + name] for name in ("tokens", "scores", "token_type"))
    unigram = metadata[T + "model"] == "t5"
    unknown = metadata[T + "unknown_token_id"]
    model = b""
    for index, (text, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        kind = 2 if index == unknown else 5 if kind == 2 else kind  # one token alone may be the unknown one
        model += _field(1, _field(1, text) + _field(2, float(score)) + _field(3, kind))
    names = {number: tokens[i] for number, i in ((45, unknown), (46, metadata[T + "bos_token_id"]))}
    spec = _field(3, 1 if unigram else 2) + b"".join(_field(number, text) for number, text in names.items())
    model += _field(2, spec + _field(40, unknown) + _field(35, 6 in types))
    charsmap = bytes(value & 255 for value in metadata.get(T + "precompiled_charsmap", ()))
    trim = metadata.get(T + "remove_extra_whitespaces", False)
    prefix = metadata.get(T + "add_space_prefix", True)
    model += _field(3, _field(2, charsmap) + _field(3, prefix) + _field(4, trim) + _field(5, True))
    processor = library.SentencePieceProcessor(model_proto=model)
    return lambda texts: [processor.encode(text) for text in texts]


# Hugging Face


def _word_piece_text(text: str) -> str:
    return text[1:] if text.startswith("\u2581") else text if text.startswith("[") and text[-1] == "]" else "##" + text


def huggingface(metadata: Mapping[str, Any]) -> Any:
    """The tokenizer class of transformers that models with this vocabulary name, built from tokens and merges."""
    from tokenizers import AddedToken

    made = _bare(metadata)
    added = [
        AddedToken(text, normalized=False, special=kind == 3)
        for text, kind in zip(metadata[T + "tokens"], metadata[T + "token_type"], strict=True)
        if kind in (3, 4) and not text.startswith("[PAD")
    ]
    made.add_tokens(added)
    return made


def _bare(metadata: Mapping[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    tokens, types = metadata[T + "tokens"], metadata[T + "token_type"]
    kind, pre = metadata[T + "model"], metadata.get(T + "pre")
    if kind == "bert":
        return transformers.BertTokenizer({_word_piece_text(text): i for i, text in enumerate(tokens)})
    if kind == "t5":
        rows = zip(tokens, metadata[T + "scores"], types, strict=True)
        pieces = [(text, 0.0 if of == 5 else score) for text, score, of in rows]
        charsmap = bytes(value & 255 for value in metadata[T + "precompiled_charsmap"])
        return transformers.XLMRobertaTokenizer(pieces, _spm_precompiled_charsmap=charsmap)
    vocab = {text: i for i, text in enumerate(tokens)}
    if kind == "llama":
        scores = metadata[T + "scores"]
        ordinary = {text: scores[i] for text, i in vocab.items() if types[i] in (1, 4)}
        pairs = [
            (-score, i, text[:cut], text[cut:])
            for i, (text, score) in enumerate(ordinary.items())
            for cut in range(1, len(text))
            if text[:cut] in ordinary and text[cut:] in ordinary
        ]
        merges = [(left, right) for _, _, left, right in sorted(pairs, key=lambda pair: pair[0])]
        return transformers.LlamaTokenizer(vocab, merges)
    merges = [tuple(merge.split(" ")) for merge in metadata[T + "merges"]]
    name = {"gpt-2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}[pre]
    return getattr(transformers, name)(vocab, merges)


def encode_plain(tokenizer: Any) -> Encode:
    """Ids without framing."""
    backend = tokenizer.backend_tokenizer
    return lambda texts: [backend.encode(text, add_special_tokens=False).ids for text in texts]


# llama.cpp

_CHILD = """
import ctypes, json, sys
import llama_cpp as C
quiet = C.llama_log_callback(lambda *a: None)
C.llama_log_set(quiet, ctypes.c_void_p(0))
parameters = C.llama_model_default_params(); parameters.vocab_only = True
for line in sys.stdin:
    path, texts = json.loads(line)
    model = C.llama_model_load_from_file(path.encode(), parameters)
    answer = None
    if model:
        vocab, answer = C.llama_model_get_vocab(model), []
        for text in texts:
            data = text.encode()
            room = (C.llama_token * (len(data) + 16))()
            n = C.llama_tokenize(vocab, data, len(data), room, len(room), False, False)
            answer.append(list(room[:n]))
        C.llama_model_free(model)
    print(json.dumps(answer), flush=True)
"""


class LlamaCpp:
    """A child process that tokenizes with GGUF files; encode() gives None for a file that it refuses."""

    def __init__(self) -> None:
        python = Path(os.environ.get("LOCALDIFF_LLAMA_PYTHON", ROOT / ".venv-peers" / "bin" / "python"))
        python = python if python.is_file() else Path(sys.executable)
        has = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, check=False).returncode == 0
        if not has:
            pytest.skip("llama-cpp-python is not here: name an interpreter that has it in LOCALDIFF_LLAMA_PYTHON")
        self._child = subprocess.Popen(
            [python, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def encode(self, path: Path, texts: list[str]) -> list[list[int]] | None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(json.dumps([str(path), texts]), file=self._child.stdin, flush=True)
        answer: list[list[int]] | None = json.loads(self._child.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)

