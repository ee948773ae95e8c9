"""Random changes of files and descriptions, for tests that read what a stranger may have made.

`change_bytes` knows nothing of a format, `change_value` walks into what JSON can hold. Everything comes from a
random.Random, so a seed repeats it. Not here: GGUF, whose changes are those of gguf_cases.py and fuzz/mutator.h.
"""

import copy
import random
from typing import Any

# where arithmetic, types and recursion turn
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**46, 2**63, -(2**63), 2**64, 10**400,
    0.0, -0.5, 1e-45, 1e38, 1e308, float("inf"), float("-inf"), float("nan"),
    "", "a", "0", "-1", "\u2581", "\udcff", "\x00", "../../x", "x" * 300, "Sequence", "Replace", "(a+)+$",
    [], {}, [[]], [None], [0, 0], {"": 0}, {"type": "Sequence"}, {"type": None},
]  # fmt: skip


# those that a GGUF file can hold for a key
GGUF_VALUES = [
    value for value in VALUES
    if isinstance(value, (bool, float, str)) or (isinstance(value, int) and abs(value) < 2**64) or value in ([], [0, 0])
]  # fmt: skip


def change_bytes(data: bytes, draw: random.Random, most: int = 4) -> bytes:
    """One to `most` changes: bits, numbers of 1 to 8 bytes, parts cut, doubled, swapped or cut off at the end."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, most)):
        at = draw.randrange(len(changed) + 1)
        size = min(draw.choice((1, 2, 4, 8, 16, 64, 300)), len(changed) - at)
        match draw.randrange(7):
            case 0 if size:
                changed[at] ^= 1 << draw.randrange(8)
            case 1 if size:
                changed[at] = draw.randrange(256)
            case 2:
                number = draw.choice((0, 1, -1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1))
                width = draw.choice((1, 2, 4, 8))
                changed[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))
            case 3:
                del changed[at : at + size]
            case 4:
                changed[at:at] = changed[at : at + size]
            case 5:
                to = draw.randrange(len(changed) + 1)
                changed[to : to + size] = changed[at : at + size]
            case 6 if draw.random() < 0.3:
                del changed[at:]
    return bytes(changed)


def change_value(value: Any, draw: random.Random, most: int = 3, values: list[Any] = VALUES) -> Any:
    """A copy with one to `most` changes anywhere in it: values replaced, entries dropped, doubled, swapped, renamed."""
    holder = [copy.deepcopy(value)]
    for _ in range(draw.randint(1, most)):
        node: Any = holder
        while True:
            place = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[place], (dict, list)) or not node[place] or draw.random() < 0.15:
                break
            node = node[place]
        _change_entry(node, place, draw, values)
        if not holder:
            holder.append(None)
    return holder[0]


def _change_entry(node: Any, place: Any, draw: random.Random, values: list[Any]) -> None:
    old, names = node[place], list(node) if isinstance(node, dict) else range(len(node))
    match draw.randrange(8):
        case 0:
            del node[place]
        case 1 if isinstance(node, dict):
            node[draw.choice(["", "type", str(place) + "s", *map(str, names)])] = node.pop(place)
        case 1:
            node.insert(draw.randrange(len(node) + 1), copy.deepcopy(old))
        case 2:
            other = draw.choice(list(names))
            node[place], node[other] = node[other], node[place]
        case 3 if isinstance(old, int) and not isinstance(old, bool):
            node[place] = draw.choice((old + 1, old - 1, -old, old * 2, old / 2 if abs(old) < 2**64 else 0.5, [old]))
        case 3 if isinstance(old, str):
            node[place] = draw.choice((old[1:], old * 2, old + "\x00", old.upper(), [old], {old: old}))
        case 4:
            for _ in range(draw.choice((1, 3, 200))):
                node[place] = [node[place]]
        case _:
            node[place] = copy.deepcopy(draw.choice(values))
