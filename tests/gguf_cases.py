"""Generated GGUF files: valid ones, and valid ones with one number, name or byte changed.

Assembled byte by byte, because no writer would write them. The same number gives the same file everywhere.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

# value type -> how struct packs it; 8 is a string, 9 an array
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# All but Q8_1 and Q8_K, which exist only while computing. Stated here: a newer package may know more.
TYPES = [0, 1, 2, 3, 6, 7, 8, *range(10, 15), *range(16, 31), 34, 35, 39, 40, 41]
WORDS = ["general.name", "x", "tokenizer.ggml.tokens", "schlüssel", "キー", "a b", "llama.vocab_size", "y.z", "k" * 60]


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int
    size: int


@dataclass
class File:
    """Everything that a file states, before it is laid out."""

    version: int = 3
    alignment: int = 32
    metadata: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # key, type, value
    tensors: list[Tensor] = field(default_factory=list)
    kv_count: int | None = None  # None: the true one
    tensor_count: int | None = None
    padding: bytes | None = None
    cut: int = 0  # bytes off the end
    tail: bytes = b""

    def to_bytes(self) -> bytes:
        counts = [self.tensor_count, self.kv_count]
        true = [len(self.tensors), len(self.metadata)]
        found = [own if count is None else count for count, own in zip(counts, true, strict=True)]
        out = b"GGUF" + struct.pack("<IQQ", self.version, *found)
        for key, kind, value in self.metadata:
            out += text(key) + struct.pack("<I", kind) + value
        for tensor in self.tensors:
            out += text(tensor.name) + struct.pack("<I", len(tensor.dims))
            out += struct.pack(f"<{len(tensor.dims)}QIQ", *tensor.dims, tensor.kind, tensor.offset)
        out += b"\0" * (-len(out) % self.alignment) if self.padding is None else self.padding
        end = max((tensor.offset + tensor.size for tensor in self.tensors), default=0)
        end = min(end, 1 << 16)  # of an offset that was changed
        out += bytes(end + -end % self.alignment) + self.tail
        return out[: len(out) - self.cut]


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def valid(draw: random.Random) -> File:
    file = File(version=draw.choice([2, 3, 3, 3]), alignment=draw.choice([8, 16, 32, 32, 64, 256, 4096]))
    if file.alignment != 32 or draw.random() < 0.3:
        file.metadata.append((b"general.alignment", 4, struct.pack("<I", file.alignment)))
    file.metadata.append((b"general.architecture", 8, text(b"llama")))
    for number, word in enumerate(draw.sample(WORDS, draw.randrange(2, 6))):
        kind = draw.choice([*SCALARS, 8, 9, 9])
        file.metadata.append((f"{word}.{number}".encode(), kind, value(draw, kind)))
    offset = 0
    for number in range(draw.randrange(2, 6)):
        kind = draw.choice(TYPES)
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        dims = [block * draw.randrange(1, 3), *(draw.randrange(1, 4) for _ in range(draw.randrange(0, 4)))]
        count = size
        for extent in [dims[0] // block, *dims[1:]]:
            count *= extent
        file.tensors.append(Tensor(f"blk.{number}.weight".encode(), dims, kind, offset, count))
        offset += count + -count % file.alignment
    return file


def value(draw: random.Random, kind: int) -> bytes:
    if kind in SCALARS:
        return struct.pack("<" + SCALARS[kind], draw.choice([0, 1]))
    if kind == 8:
        return text(draw.choice(["", "text", "naïve ▁", "x" * 300]).encode())
    element, count = draw.choice([*SCALARS, 8]), draw.randrange(1, 5)
    return struct.pack("<IQ", element, count) + b"".join(value(draw, element) for _ in range(count))


Change = Callable[[random.Random, File], None]
CHANGES: dict[str, Change] = {}


def change(name: str) -> Callable[[Change], Change]:
    def register(function: Change) -> Change:
        CHANGES[name] = function
        return function

    return register


def setting(attribute: str, **values: object) -> None:
    for name, found in values.items():
        CHANGES[f"{attribute} {name}"] = lambda _, file, found=found: setattr(file, attribute, found)


def key(**names: bytes) -> None:
    def put(data: bytes) -> Change:
        return lambda _, file: file.metadata.append((data, 4, struct.pack("<I", 1)))

    CHANGES.update({f"key {name.replace('_', ' ')}": put(data) for name, data in names.items()})


def entry(**values: tuple[int, bytes]) -> None:
    def put(kind: int, data: bytes) -> Change:
        return lambda _, file: file.metadata.append((b"added", kind, data))

    CHANGES.update({f"value {name.replace('_', ' ')}": put(*found) for name, found in values.items()})


def aligned(**values: tuple[int, bytes]) -> None:
    def put(kind: int, data: bytes) -> Change:
        def apply(_: random.Random, file: File) -> None:
            file.metadata = [item for item in file.metadata if item[0] != b"general.alignment"]
            file.metadata.append((b"general.alignment", kind, data))

        return apply

    CHANGES.update({f"alignment {name.replace('_', ' ')}": put(*found) for name, found in values.items()})


def tensor(**changes: Callable[[Tensor, File], object]) -> None:
    def put(apply: Callable[[Tensor, File], object]) -> Change:
        return lambda draw, file: apply(file.tensors[draw.randrange(1, len(file.tensors))], file)  # type: ignore[func-returns-value]

    CHANGES.update({f"tensor {name.replace('_', ' ')}": put(apply) for name, apply in changes.items()})


setting("version", zero=0, one=1, four=4, big_endian=3 << 24, largest=2**32 - 1)
setting("kv_count", zero=0, one=1, huge=2**40, largest=2**64 - 1, half=2**63)
setting("tensor_count", zero=0, one=1, huge=2**40, largest=2**64 - 1, half=2**63)
setting("padding", absent=b"", of_ones=b"\1" * 4096)
setting("cut", one=1, some=40, most=400)
setting("tail", one=b"1", long=bytes(10_000))
key(empty=b"", invalid_utf8=b"a\xff", control=b"a\nb", nul=b"a\0b", long=b"k" * 65536, too_long=b"k" * 65537)
key(plain=b"added", one_of_another=b"general.architecture")
entry(type_13=(13, b"\0" * 8), type_255=(255, b"\0" * 8), bool_of_two=(7, b"\2"))
entry(nan=(6, struct.pack("<f", float("nan"))))
entry(array_of_arrays=(9, struct.pack("<IQIQB", 9, 1, 0, 1, 7)), array_of_type_13=(9, struct.pack("<IQI", 13, 1, 7)))
entry(empty_array=(9, struct.pack("<IQ", 4, 0)), bools_of_two=(9, struct.pack("<IQBB", 7, 2, 1, 2)))
entry(array_too_long=(9, struct.pack("<IQI", 4, 2**40, 7)), array_of_all=(9, struct.pack("<IQI", 4, 2**64 - 1, 7)))
entry(array_that_wraps=(9, struct.pack("<IQI", 4, 2**62 + 1, 7)), strings_too_many=(9, struct.pack("<IQ", 8, 2**40)))
entry(string_too_long=(8, struct.pack("<Q", 2**40)), string_of_all=(8, struct.pack("<Q", 2**64 - 1)))
entry(string_not_utf8=(8, text(b"\xff\xfe")))
aligned(zero=(4, struct.pack("<I", 0)), three=(4, struct.pack("<I", 3)), four=(4, struct.pack("<I", 4)))
aligned(huge=(4, struct.pack("<I", 1 << 31)), other=(4, struct.pack("<I", 8192)))
aligned(of_type_u64=(10, struct.pack("<Q", 32)), of_type_string=(8, text(b"32")))
tensor(
    name_empty=lambda one, _: setattr(one, "name", b""),
    name_of_63=lambda one, _: setattr(one, "name", b"n" * 63),
    name_of_64=lambda one, _: setattr(one, "name", b"n" * 64),
    name_not_utf8=lambda one, _: setattr(one, "name", b"\xff"),
    name_twice=lambda one, file: setattr(one, "name", file.tensors[0].name),
    without_dims=lambda one, _: setattr(one, "dims", []),
    five_dims=lambda one, _: setattr(one, "dims", [*one.dims, 1, 1, 1, 1][:5]),
    dim_zero=lambda one, _: setattr(one, "dims", [0, *one.dims[1:]]),
    last_dim_zero=lambda one, _: setattr(one, "dims", [one.dims[0], 0]),
    dim_largest=lambda one, _: setattr(one, "dims", [2**64 - 1]),
    dim_half=lambda one, _: setattr(one, "dims", [2**63]),
    dims_that_wrap=lambda one, _: setattr(one, "dims", [2**32, 2**32]),
    dims_of_terabytes=lambda one, _: setattr(one, "dims", [2**40]),
    part_of_a_block=lambda one, _: (setattr(one, "kind", 2), setattr(one, "dims", [31])),
    type_4=lambda one, _: setattr(one, "kind", 4),
    type_31=lambda one, _: setattr(one, "kind", 31),
    type_99=lambda one, _: setattr(one, "kind", 99),
    type_largest=lambda one, _: setattr(one, "kind", 2**32 - 1),
    offset_misaligned=lambda one, _: setattr(one, "offset", one.offset + 1),
    offset_of_another=lambda one, _: setattr(one, "offset", 0),
    offset_after_a_gap=lambda one, file: setattr(one, "offset", one.offset + file.alignment),
    offset_outside=lambda one, _: setattr(one, "offset", 2**40),
    offset_largest=lambda one, _: setattr(one, "offset", 2**64 - 32),
)


@change("tensors in another order")
def _(draw: random.Random, file: File) -> None:
    file.tensors.reverse()


@change("one byte of the metadata")
def _(draw: random.Random, file: File) -> None:
    key, kind, data = file.metadata[-1]
    at = draw.randrange(len(data))
    file.metadata[-1] = (key, kind, data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :])


def case(number: int) -> tuple[str, bytes]:
    """(what was changed, the file); a third of the files are valid."""
    draw = random.Random(number)
    file = valid(draw)
    if number % 3 == 0:
        return "valid", file.to_bytes()
    name = draw.choice(list(CHANGES))
    CHANGES[name](draw, file)
    return name, file.to_bytes()
