"""Text to token ids and back.

A Tokenizer is built from GGUF metadata (ggml.py, huggingface.py) and adds what lies around the encoding of ordinary
text: control tokens, which come from text only where the caller asks for them, the bos token, and decoding byte by
byte, so that text can be shown while it settles. Instances are immutable and may be shared between threads.
Not here: chat templates (chat.py), reading files.
"""

import bisect
import codecs
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from localdiff.errors import LocaldiffError, ModelFileError, OptionError
from localdiff.text.ggml import from_ggml
from localdiff.text.huggingface import from_json
from localdiff.text.vocabulary import BYTE, CONTROL, SPACE, UNKNOWN, USER_DEFINED, Vocabulary

_NO_TOKEN = 2**32 - 1  # what some writers store for "none"
# role -> keys, the first present counts; vocabularies of masked language models begin with cls and end with sep
_ROLES = {
    "bos": ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.cls_token_id"),
    "eos": ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.seperator_token_id"),
    "eot": ("tokenizer.ggml.eot_token_id",),
    "mask": ("tokenizer.ggml.mask_token_id",),
    "pad": ("tokenizer.ggml.padding_token_id",),
}
# Ends of a turn by their usual texts: for files that do not name one, and control tokens whatever type a file gives.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endofturn|>", "<|role_end|>", "<|eot|>")
_ENDS = frozenset({*_TURN_ENDS, "</s>", "<|endoftext|>"})
_SPACE_RUN = re.compile(r"\s*")
_ATTACHED = frozenset(".,!?")  # WordPiece tokens written without a space before them


class Tokenizer:
    """The tokenizer of one model.

    vocab_size                   number of ids, padding rows included
    bos, eos, eot, mask, pad     ids of the tokens with a role, None where the model has none
    add_bos                      whether encode() begins with bos unless told otherwise
    """

    def __init__(self, vocab: Vocabulary, roles: Mapping[str, int | None], add_bos: bool) -> None:
        self._vocab = vocab
        self.vocab_size = len(vocab.texts)
        self.bos = roles.get("bos")
        self.eos = roles.get("eos")
        self.eot = roles.get("eot")
        self.mask = roles.get("mask")
        self.pad = roles.get("pad")
        self.add_bos = add_bos
        self._ids = {text: token for token, text in enumerate(vocab.texts)}
        # A file may call its end of text "user defined", which would let users write it; its role or name decides.
        named = {*roles.values(), *(self._ids[text] for text in _ENDS & self._ids.keys())}
        self._special = {
            token
            for token, kind in enumerate(vocab.types)
            if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and token in named)
        }
        added = [token for token, kind in enumerate(vocab.types) if kind == USER_DEFINED and token not in self._special]
        self._added = set(added)
        found_first = added if vocab.split_added else []
        self._plain = _Finder({vocab.texts[token]: token for token in found_first}, vocab.trims)
        self._parsed = _Finder({vocab.texts[token]: token for token in [*found_first, *self._special]}, vocab.trims)

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any]) -> "Tokenizer":
        """Build the tokenizer that a GGUF file describes.

        metadata   key -> str, int, float, bool or list of these, as in the file; `tokenizer.huggingface.json` is used
                   where present, else `tokenizer.ggml.*` of the kinds 'gpt2', 'llama', 'bert' and 't5'
        raises     ModelFileError where the description is damaged, incomplete or of another kind
        """
        source = metadata.get("tokenizer.huggingface.json")
        if source is None:
            vocab = from_ggml(metadata)
        else:
            vocab = from_json(source, len(metadata.get("tokenizer.ggml.tokens") or ()))
        roles = {role: _role(metadata, keys, len(vocab.texts)) for role, keys in _ROLES.items()}
        if roles["eot"] is None:
            control = {text: token for token, text in enumerate(vocab.texts) if vocab.types[token] == CONTROL}
            roles["eot"] = next((control[text] for text in _TURN_ENDS if text in control), None)
        stated = metadata.get("tokenizer.ggml.add_bos_token")
        if stated is True and roles["bos"] is None:
            raise ModelFileError("tokenizer.ggml.add_bos_token is true but the file names no bos token")
        return Tokenizer(vocab, roles, (vocab.add_bos if stated is None else bool(stated)) and roles["bos"] is not None)

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_bos         True, False, or None for what the file says
        parse_special   False: texts of control tokens are ordinary text, so the result has no control token beside
                        bos (and the unknown token of vocabularies without one for every byte); True: they become those
                        tokens. Never True for text that a user wrote; see ChatTemplate for text around it.
        raises          OptionError for lone surrogates, or bos asked of a model that has none

        Bytes for which a byte-level vocabulary has no token are left out, as the models' own tokenizers do.
        """
        return self.encode_parts(self.split(text, parse_special=parse_special), add_bos=add_bos)

    def split(self, text: str, *, parse_special: bool) -> list[str | int]:
        """Cut `text` into ordinary text and the ids of tokens that are matched as a whole, the longest first."""
        return (self._parsed if parse_special else self._plain).split(text)

    def encode_parts(self, parts: Iterable[str | int], *, add_bos: bool | None = None) -> list[int]:
        """Token ids of what split() gave; strings are ordinary text, whatever they hold."""
        if add_bos and self.bos is None:
            raise OptionError("add_bos is True, but the model has no bos token; leave it out")
        ids = [self.bos] if self.bos is not None and (self.add_bos if add_bos is None else add_bos) else []
        first = True
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += self._encode_plain(part, first)
            first = False
        return ids

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        try:
            text.encode()
            return self._vocab.encode(text, first)
        except UnicodeEncodeError as error:
            raise OptionError(
                f"the text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
                "expected Unicode text; decode the input as UTF-8 first"
            ) from None
        except (LocaldiffError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a Rust panic does not derive from Exception
            raise OptionError(f"the tokenizer of the model cannot encode this text ({error})") from None

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        skip_special   leave control tokens out instead of writing their names
        continues      the text stands after other text: keep the space that its first token may begin with
        raises         OptionError for an id outside the vocabulary
        """
        stream = TextStream(self, skip_special=skip_special, continues=continues)
        return stream.push(ids) + stream.finish()

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for; OptionError for an id outside the vocabulary."""
        if not 0 <= token < self.vocab_size:
            raise OptionError(f"token id {token} is outside the vocabulary, expected 0 to {self.vocab_size - 1}")
        text = self._vocab.texts[token]
        kind = self._vocab.types[token]
        if kind in (CONTROL, USER_DEFINED, UNKNOWN):
            return text.encode(errors="replace")
        if self._vocab.style == "bytes":
            return b"".join(_ALPHABET.get(char) or char.encode(errors="replace") for char in text)
        if self._vocab.style == "words":
            return (text[2:] if text.startswith("##") else text if text in _ATTACHED else " " + text).encode()
        return bytes([int(text[3:5], 16)]) if kind == BYTE else text.replace(SPACE, " ").encode(errors="replace")

    @cached_property
    def pieces(self) -> list[bytes]:
        """piece() of every token."""
        return [self.piece(token) for token in range(self.vocab_size)]

    def beginning_with(self, text: bytes) -> list[int]:
        """The tokens whose piece begins with `text` and is longer, without control tokens."""
        return self._further(self._by_beginning, text)

    def ending_with(self, text: bytes) -> list[int]:
        """The tokens whose piece ends with `text` and is longer, without control tokens."""
        return self._further(self._by_end, text[::-1])

    @cached_property
    def _by_beginning(self) -> tuple[list[bytes], list[int]]:
        return _sorted(self.pieces)

    @cached_property
    def _by_end(self) -> tuple[list[bytes], list[int]]:
        return _sorted([piece[::-1] for piece in self.pieces])

    def _further(self, order: tuple[list[bytes], list[int]], text: bytes) -> list[int]:
        pieces, tokens = order
        first = bisect.bisect_right(pieces, text)
        longer = itertools.takewhile(lambda at: pieces[at].startswith(text), range(first, len(pieces)))
        return [tokens[at] for at in longer if tokens[at] not in self._special]

    def is_special(self, token: int) -> bool:
        """Whether `token` is a control token: one that users' text never gives and that decode() leaves out."""
        return token in self._special

    def token_id(self, text: str) -> int | None:
        """The id of the token whose vocabulary text is exactly `text`, None where there is none."""
        return self._ids.get(text)

    def token_text(self, token: int | None) -> str:
        """The vocabulary text of `token`, "" for None."""
        return "" if token is None else self._vocab.texts[token]

    @property
    def special_tokens(self) -> list[int]:
        """The ids of all control tokens, ascending."""
        return sorted(self._special)

    @property
    def special_texts(self) -> list[str]:
        """The texts of all control tokens."""
        return [self._vocab.texts[token] for token in self.special_tokens]

    @property
    def space_prefix(self) -> bool:
        """Whether encode() puts a space before the text, which decode() takes away."""
        return self._vocab.space_prefix

    def restarts(self, token: int) -> bool:
        """Whether encode() puts a space before the text that follows `token`."""
        return self._vocab.split_added and self._vocab.space_prefix and token in self._added


class TextStream:
    """Decodes tokens as they settle; what push() and finish() return adds up to what decode() gives.

    Never gives half a character: bytes of an unfinished UTF-8 sequence wait for the next token, and become U+FFFD
    where finish() finds them still unfinished.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = tokenizer.space_prefix and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` add; OptionError for an id outside the vocabulary."""
        text: list[str] = []
        for token in ids:
            piece = self._tokenizer.piece(token)
            if self._skip_special and self._tokenizer.is_special(token):
                continue
            if self._strip:
                piece = piece.removeprefix(b" ")
            self._strip = self._tokenizer.restarts(token)
            text.append(self._decoder.decode(piece))
        return "".join(text)

    def finish(self) -> str:
        """What is left: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", True)


class _Finder:
    """Finds token texts in a text, leftmost first and then the longest; time linear in the text."""

    def __init__(self, tokens: Mapping[str, int], trims: Mapping[int, tuple[bool, bool]]) -> None:
        self._tokens = tokens
        self._trims = trims
        self._lengths: dict[str, list[int]] = {}  # first character -> lengths, descending
        for text in sorted(tokens, key=len, reverse=True):
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths:
                lengths.append(len(text))
        self._starts = re.compile("[" + re.escape("".join(self._lengths)) + "]") if tokens else None

    def split(self, text: str) -> list[str | int]:
        parts: list[str | int] = []
        start = 0  # of the ordinary text not yet in parts
        for match in self._starts.finditer(text) if self._starts else ():
            at = match.start()
            if at < start:
                continue
            for length in self._lengths[text[at]]:
                token = self._tokens.get(text[at : at + length])
                if token is None:
                    continue
                left, right = self._trims.get(token, (False, False))
                before = text[start:at].rstrip() if left else text[start:at]
                parts += [before, token] if before else [token]
                start = at + length
                if right:
                    start = _SPACE_RUN.match(text, start).end()  # type: ignore[union-attr]
                break
        if start < len(text):
            parts.append(text[start:])
        return parts


def _sorted(pieces: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Pieces in ascending order, and whose they are."""
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    return [pieces[token] for token in order], order


def _role(metadata: Mapping[str, Any], keys: Iterable[str], size: int) -> int | None:
    key = next((key for key in keys if metadata.get(key, _NO_TOKEN) != _NO_TOKEN), None)
    if key is None:
        return None
    token = metadata[key]
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
        raise ModelFileError(
            f"{key} is {token!r:.80}, expected a token id from 0 to {size - 1}; convert the model again"
        )
    return token


def _alphabet() -> dict[str, bytes]:
    """Character -> byte of byte-level BPE: printable bytes as themselves, the rest as U+0100 onwards in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + place): bytes([byte]) for place, byte in enumerate(other)}


_ALPHABET = _alphabet()
