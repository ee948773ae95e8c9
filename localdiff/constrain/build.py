"""From what is asked for to the constraint of one canvas.

Regexes and schemas become automata where they are regular and small enough, else, and grammars always, llguidance
follows them. Tables are kept with the tokenizer, so that the same constraint is compiled once. Not here: how either
kind works.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..canvas import Int32
from ..errors import OptionError
from . import automaton, schema, table
from .completion import Choices
from .constraint import Constraint
from .language import Node, OneOf, Repeat, Unsupported
from .matching import Matching
from .regex import parse
from .regular import Regular
from .tokens import TokenTree

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from ..options import GenerateOptions
    from ..text import Tokenizer

KINDS = ("json_schema", "json_object", "regex", "grammar")
AVOID = "avoid"
_KEPT = 64  # tables per tokenizer
_MAX_SIZE = {"json_schema": 1 << 20, "regex": 1 << 15, "grammar": 1 << 15}  # characters


@dataclass(frozen=True)
class Asked:
    """A constraint as the caller gave it.

    kind     one of KINDS, or AVOID where any other text will do
    what     how messages call it
    value    the schema as an object, else text
    key      the same as text
    avoided  texts that must not be in it
    """

    kind: str
    what: str
    value: Any
    key: str
    avoided: tuple[str, ...] = ()


def asked_for(options: GenerateOptions) -> Asked | None:
    """What the options ask for; files are read. OptionError for one that cannot be read."""
    asked = _matching(options)
    if not options.avoid:
        return asked
    if asked is None:
        return Asked(AVOID, AVOID, None, "", options.avoid)
    return replace(asked, what=f"{asked.what} with {AVOID}", avoided=options.avoid)


def _matching(options: GenerateOptions) -> Asked | None:
    if options.json_schema is not None:
        value, what = options.json_schema, "the JSON schema"
        if isinstance(value, Path):
            what = f"the JSON schema {value}"
            text = _read(value, what)
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise OptionError(f"{what} is no JSON ({error}); give a JSON schema") from None
        if not isinstance(value, Mapping | bool):
            raise OptionError(f"{what} is a {type(value).__name__}, expected an object; give a JSON schema")
        try:
            key = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(f"{what} cannot be written as JSON ({error}); give a JSON schema") from None
        return _checked(Asked("json_schema", what, value, key))
    if options.json_object:
        return Asked("json_object", "a JSON object", {"type": "object"}, '{"type": "object"}')
    if options.regex is not None:
        shown = options.regex if len(options.regex) <= 60 else options.regex[:60] + "..."
        return _checked(Asked("regex", f"the regex {shown!r}", options.regex, options.regex))
    if options.grammar is not None:
        grammar, what = options.grammar, "the grammar"
        if isinstance(grammar, Path):
            what = f"the grammar {grammar}"
            grammar = _read(grammar, what)
        return _checked(Asked("grammar", what, grammar, grammar))
    return None


def _checked(asked: Asked) -> Asked:
    most = _MAX_SIZE[asked.kind]
    if len(asked.key) > most:
        raise OptionError(f"{asked.what} has {len(asked.key)} characters, expected at most {most}; shorten it")
    return asked


def _read(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(max(_MAX_SIZE.values()) + 1).decode()
    except OSError as error:
        raise OptionError(f"{what} cannot be read: {error.strerror}; name a readable file") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{what}: byte {error.start} is not UTF-8 text; convert the file first") from None


def constraint_for(
    asked: Asked,
    tokenizer: Tokenizer,
    vocab: int,
    forbidden: Int32,
    stop_tokens: Sequence[int],
    place: tuple[int, int],
    swallows: bool,
    unfit: str | None,
) -> Constraint:
    """The constraint of one canvas; OptionError where no text fits or the constraint cannot be used.

    vocab, forbidden   rows of the model, and those that are never written
    stop_tokens        none where the text fills its place
    place              first position of the text, and one past the last
    swallows           a space at the beginning of the text is taken away when it is read
    unfit              why the decoder cannot write from left to right, None where it can
    """
    words = _words(tokenizer, vocab, forbidden, stop_tokens)
    try:
        found: Regular | Matching = Regular(words.table(asked, swallows), words.encode, *place)
    except Unsupported as reason:
        if not stop_tokens:
            raise _unfit_for_holes(asked, reason) from None
        if asked.avoided:
            raise OptionError(
                f"{asked.what} is no small finite automaton ({reason}), and only those keep texts out; "
                f"{'shorten it' if asked.kind == AVOID else 'leave avoid out'}"
            ) from None
        matcher = words.matcher(asked)
        if unfit is not None:
            raise OptionError(
                f"{asked.what} is no small finite automaton ({reason}), so it is written left to right, and {unfit}"
            ) from None
        found = Matching(matcher, words.choices, stop_tokens, *place, swallows)
    found.check(asked.what)
    return found


def hole_lengths(
    asked: Asked, tokenizer: Tokenizer, vocab: int, forbidden: Int32, swallows: bool, most: int
) -> list[int]:
    """How many tokens a text in a hole may have, ascending up to `most`; other arguments as for constraint_for."""
    try:
        found = _words(tokenizer, vocab, forbidden, ()).table(asked, swallows)
    except Unsupported as reason:
        raise _unfit_for_holes(asked, reason) from None
    lengths = [length for length in range(1, most + 1) if found.possible(length)[0]]
    if not lengths:
        raise OptionError(f"no text of 1 to {most} tokens matches {asked.what}; change it or give the hole more room")
    return lengths


def _unfit_for_holes(asked: Asked, reason: Unsupported) -> OptionError:
    return OptionError(
        f"{asked.what} is no small finite automaton ({reason}), and only those can fill a hole; simplify it"
    )


class _Words:
    """The tokens that may be part of a text, and what was made of them."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, forbidden: Int32, stop_tokens: tuple[int, ...]) -> None:
        never = {*forbidden.tolist(), *stop_tokens}
        usable = [token for token in range(min(vocab, tokenizer.vocab_size)) if token not in never]
        usable = [token for token in usable if not (tokenizer.is_special(token) or tokenizer.restarts(token))]
        found = {token: tokenizer.piece(token) for token in usable}
        self.pieces = {token: piece for token, piece in found.items() if piece}
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer.encode_parts(["", text], add_bos=False)
        self._vocab = vocab
        self._stop_tokens = stop_tokens
        self._tables: dict[tuple[str, str, tuple[str, ...], bool], table.TokenAutomaton | Unsupported] = {}

    @cached_property
    def choices(self) -> Choices:
        return Choices(self.pieces, self._vocab)

    def table(self, asked: Asked, swallows: bool) -> table.TokenAutomaton:
        """The automaton of a constraint; Unsupported where it is none."""
        key = asked.kind, asked.key, asked.avoided, swallows
        found = self._tables.get(key)
        if found is None:
            try:
                made = automaton.compile(self._language(asked))
                if asked.avoided:
                    made = made.avoiding([text.encode("utf-8", "surrogatepass") for text in asked.avoided])
                made = made.swallowing_space() if swallows else made
                found = table.build(made, self._tree, self._vocab, self._stop_tokens)
            except Unsupported as reason:
                found = reason
            if len(self._tables) >= _KEPT:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = found
        if isinstance(found, Unsupported):
            raise found
        return found

    def _language(self, asked: Asked) -> Node:
        if asked.kind == AVOID:
            return Repeat(OneOf((1 << 256) - 1))
        if asked.kind == "grammar":
            raise Unsupported("a grammar may nest without end")
        if asked.kind != "regex":
            try:
                return schema.language(asked.value, spaced=b"{" not in self.pieces.values())
            except (TypeError, ValueError, AttributeError, KeyError, RecursionError):
                raise Unsupported("a keyword has a value of another kind than expected") from None
        try:
            return parse(asked.value)
        except re.error as error:
            raise Unsupported(f"Python reads no regular expression: {error}") from None

    def matcher(self, asked: Asked) -> LLMatcher:
        """llguidance's matcher; OptionError where it has none."""
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise OptionError(
                f"{asked.what} needs llguidance, which is not installed; run pip install 'localdiff[constrain]'"
            ) from None
        made = {
            "grammar": LLMatcher.grammar_from_lark,
            "regex": LLMatcher.grammar_from_regex,
        }.get(asked.kind)
        try:
            if made is None:
                text = LLMatcher.grammar_from_json_schema(asked.key, overrides={"whitespace_pattern": " ?"})
            else:
                text = made(asked.value)
        except ValueError as error:
            raise OptionError(f"{asked.what} cannot be used: {_line(str(error))}; change it") from None
        matcher = LLMatcher(self._parsed, text, log_level=0)
        if matcher.is_error():
            raise OptionError(f"{asked.what} cannot be used: {_line(matcher.get_error())}; change it")
        return matcher

    @cached_property
    def _tree(self) -> TokenTree:
        return TokenTree.of(self.pieces)

    @cached_property
    def _parsed(self) -> LLTokenizer:
        """The vocabulary for llguidance, with an end of its own behind the last row."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Source(self)), n_vocab=self._vocab + 1)

    @property
    def vocab(self) -> int:
        return self._vocab


class _Source:
    """What llguidance wants to know of a vocabulary."""

    bos_token_id = None

    def __init__(self, words: _Words) -> None:
        self._encode = words.encode
        self.eos_token_id = words.vocab
        self.special_token_ids = [words.vocab]
        self.tokens = [words.pieces.get(token, b"") for token in range(words.vocab)] + [b"<|end|>"]

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text is wanted")
        return self._encode(text)


_KNOWN: weakref.WeakKeyDictionary[Tokenizer, dict[tuple[Any, ...], _Words]] = weakref.WeakKeyDictionary()


def _words(tokenizer: Tokenizer, vocab: int, forbidden: Int32, stop_tokens: Sequence[int]) -> _Words:
    kept = _KNOWN.setdefault(tokenizer, {})
    key = vocab, forbidden.tobytes(), tuple(stop_tokens)
    if key not in kept:
        kept[key] = _Words(tokenizer, vocab, forbidden, tuple(stop_tokens))
    return kept[key]


def _line(message: str) -> str:
    """The first line of a message that may have many."""
    return next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")[:200]
