"""A computed prompt as a file: what the engine holds of its positions, and everything that must be equal to reuse it.

Little-endian: magic, uint32 size of the header, header (JSON), tokens int32 [length], state (Session.state). Only rows
that do not see the answer can be kept: with block-causal attention whole blocks of the prompt, with a causal prompt all
of it; where every row sees the whole canvas there is nothing to keep, and that is refused. The file holds for the same
model file, adapters, arithmetic and kernel row. Not here: sessions, and when a prompt is saved (model.py).
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..atomic import atomic_file
from ..canvas import Int32
from ..engine import Request, Session
from ..errors import ModelFileError, OptionError
from ..spec import DiffusionSpec
from .state import State, reach
from .table import CACHES

_MAGIC = b"LDPROMPT"
_FORMAT = 1
_MOST_HEADER = 1 << 16  # bytes

# what must be equal -> how people call it
_SAME = {
    "model": "another model",
    "attention": "another attention",
    "block_length": "another block length",
    "math": "another arithmetic (--math)",
    "isa": "another kernel row (--isa)",
}


@dataclass(frozen=True)
class Identity:
    """What a state depends on besides its tokens; model is a fingerprint of the file and its adapters."""

    model: str
    attention: str
    block_length: int
    math: str
    isa: str


@dataclass(frozen=True)
class SavedPrompt:
    """The state of int32 tokens [length], the beginning of a prompt."""

    identity: Identity
    tokens: Int32
    state: bytes

    def restore(self, session: Session, slot: int) -> State:
        """Put it into a slot; what the slot then holds."""
        length = session.restore(self.state, slot)
        if length != len(self.tokens):
            raise ModelFileError(f"the saved prompt has {len(self.tokens)} tokens, but the state of {length}")
        request = prompt_request(self.identity.attention, self.identity.block_length, self.tokens)
        rows = np.arange(length, dtype=np.int32)
        return State.empty(length).computed(rows, self.tokens, reach(request), 0)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tokens = self.tokens.astype("<i4").tobytes()
        header = {
            "format": _FORMAT,
            **asdict(self.identity),
            "length": len(self.tokens),
            "bytes": len(self.state),
            "sha256": hashlib.sha256(tokens + self.state).hexdigest(),
        }
        text = json.dumps(header).encode()
        with atomic_file(path) as temporary:
            temporary.write_bytes(_MAGIC + struct.pack("<I", len(text)) + text + tokens + self.state)


def check_attention(spec: DiffusionSpec) -> None:
    """Raise OptionError for models whose prompts cannot be kept."""
    if spec.attention not in CACHES["block"].attention:
        why = (
            "every row of the prompt sees the whole canvas and is computed anew at each step"
            if spec.attention == "full"
            else "no cache keeps rows of this attention"
        )
        raise OptionError(
            f"a prompt cannot be saved with {spec.attention} attention: {why}; it can with "
            f"{' or '.join(CACHES['block'].attention)} attention"
        )


def prompt_request(attention: str, block_length: int, tokens: Int32) -> Request:
    """The forward pass of a prompt alone, nothing scored."""
    return Request(
        tokens, np.empty(0, np.int32), attention=attention, block_length=block_length, prefix=len(tokens)
    )  # fmt: skip


def keepable(spec: DiffusionSpec, length: int) -> int:
    """How many positions of a prompt do not see what follows it."""
    return length // spec.block_length * spec.block_length if spec.attention == "block_causal" else length


def load_prompt(path: Path, identity: Identity, vocab: int) -> SavedPrompt:
    """Read and check a file; ModelFileError where it is damaged or not of this model as it runs now."""
    data = path.read_bytes()
    begin = len(_MAGIC) + 4
    if len(data) < begin or not data.startswith(_MAGIC):
        raise ModelFileError(f"{path}: not a saved prompt; name another file, or one that does not exist yet")
    (size,) = struct.unpack_from("<I", data, len(_MAGIC))
    if size > min(_MOST_HEADER, len(data) - begin):
        raise ModelFileError(f"{path}: the header of the saved prompt is cut off; remove the file")
    try:
        header = json.loads(data[begin : begin + size])
        form = header["format"]
        found = {name: header[name] for name in _SAME}
        length, state_bytes, digest = int(header["length"]), int(header["bytes"]), header["sha256"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise ModelFileError(f"{path}: the header of the saved prompt cannot be read; remove the file") from None
    if form != _FORMAT:
        raise ModelFileError(f"{path}: a saved prompt of format {form}, expected {_FORMAT}; remove the file")
    for name, value in asdict(identity).items():
        if found[name] != value:
            raise ModelFileError(f"{path}: the prompt was saved with {_SAME[name]}; remove the file or name another")
    body = data[begin + size :]
    if length < 1 or len(body) != 4 * length + state_bytes or hashlib.sha256(body).hexdigest() != digest:
        raise ModelFileError(f"{path}: the saved prompt is damaged; remove the file")
    tokens = np.frombuffer(body, "<i4", length).astype(np.int32)
    if np.any((tokens < 0) | (tokens >= vocab)):
        raise ModelFileError(f"{path}: the saved prompt holds tokens outside the vocabulary; remove the file")
    return SavedPrompt(identity, tokens, body[4 * length :])
