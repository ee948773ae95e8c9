"""Decoding of tensor types, bit for bit against the gguf package and numpy (T20 of the plan for trust).

10^5 random blocks per type in the suite; LOCALDIFF_LONG=1 takes 10^6. NaN counts as equal to NaN: its payload is the
processor's business.
"""

import os

import gguf
import numpy as np
import pytest
from cpp_tools import tool
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES

BLOCKS = 1_000_000 if os.environ.get("LOCALDIFF_LONG") else 100_000
CHUNK = 25_000
HALVES = {  # offsets of the half-precision scales within a block
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
}  # fmt: skip
SPECIAL = np.array(
    # zeros, smallest, largest and other denormals, smallest and largest normals, infinities, NaNs (quiet, signalling)
    [0, 0x8000, 1, 0x8001, 0x3FF, 0x83FF, 0x155, 0x400, 0x8400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01],
    dtype="<u2",
)


def decode(kind: T, blocks: np.ndarray) -> np.ndarray:
    return np.frombuffer(tool("quant_tool", "decode", int(kind), stdin=blocks.tobytes()).stdout, "<f4")


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    same = (found.view("<u4") == expected.view("<u4")) | (np.isnan(found) & np.isnan(expected))
    assert same.all(), f"first difference at value {int(np.argmin(same))} of {same.size}"


def random_blocks(kind: T, count: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [count, bytes of a block]; in about half of the blocks a scale is one of SPECIAL."""
    blocks = rng.integers(0, 256, (count, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for offset in HALVES[kind]:
        chosen = rng.random(count) < 0.4
        values = rng.choice(SPECIAL, int(chosen.sum()))
        blocks[chosen, offset : offset + 2] = values.view(np.uint8).reshape(-1, 2)
    return blocks


def test_table_equals_the_gguf_package() -> None:
    rows = [line.split() for line in tool("quant_tool", "types").stdout.decode().splitlines()]
    found = {int(number): (name, int(block), int(size)) for number, name, block, size, _ in rows}
    never_stored = {T.Q8_1, T.Q8_K}
    assert found == {int(t): (t.name, *GGML_QUANT_SIZES[t]) for t in T if t not in never_stored}
    decodable = {int(row[0]) for row in rows if row[4] == "1"}
    assert decodable == {int(t) for t in [*HALVES, T.MXFP4, T.F32, T.F16, T.BF16]}


@pytest.mark.parametrize("kind", HALVES, ids=lambda kind: kind.name)
def test_random_blocks(kind: T) -> None:
    rng = np.random.default_rng(int(kind))
    infinite = 0
    for start in range(0, BLOCKS, CHUNK):
        blocks = random_blocks(kind, min(CHUNK, BLOCKS - start), rng)
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(blocks, kind).ravel()
        assert_same_bits(decode(kind, blocks), expected)

        scales = np.stack([blocks[:, at : at + 2].copy().view("<f2")[:, 0] for at in HALVES[kind]])
        finite = np.frombuffer(tool("quant_tool", "finite", int(kind), stdin=blocks.tobytes()).stdout, np.uint8)
        assert np.array_equal(finite, np.isfinite(scales).all(axis=0))
        infinite += int((finite == 0).sum())
    assert infinite > BLOCKS / 100


def test_mxfp4() -> None:
    rng = np.random.default_rng(int(T.MXFP4))
    blocks = rng.integers(0, 256, (BLOCKS, 17), dtype=np.uint8)
    blocks[: 256 * 256, 0] = np.repeat(np.arange(256), 256)  # every exponent with every pair of values
    blocks[: 256 * 256, 1] = np.tile(np.arange(256), 256)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, T.MXFP4).ravel()
    assert_same_bits(decode(T.MXFP4, blocks), expected)
    finite = np.frombuffer(tool("quant_tool", "finite", int(T.MXFP4), stdin=blocks.tobytes()).stdout, np.uint8)
    largest = np.full((256, 17), 0x77, np.uint8)  # all values 12
    largest[:, 0] = np.arange(256)
    with np.errstate(over="ignore"):
        holds = np.isfinite(gguf.quants.dequantize(largest, T.MXFP4)).all(axis=1)
    assert np.array_equal(finite, holds[blocks[:, 0]])


@pytest.mark.parametrize("kind", [T.F16, T.BF16], ids=lambda kind: kind.name)
def test_every_16_bit_value(kind: T) -> None:
    values = np.arange(65536, dtype="<u2")
    expected = gguf.quants.dequantize(values.view(np.uint8), kind).ravel()
    assert_same_bits(decode(kind, values), expected)
    finite = np.frombuffer(tool("quant_tool", "finite", int(kind), stdin=values.tobytes()).stdout, np.uint8)
    assert np.array_equal(finite, np.isfinite(expected))


def random_floats() -> np.ndarray:
    """All exponents and signs, ties of both 16-bit formats and their neighbours."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 1 << 32, 1_000_000, dtype=np.uint32)
    halves = np.arange(65536, dtype="<u2").view("<f2").astype("<f4")
    tops = np.arange(65536, dtype=np.uint32) << 16
    with np.errstate(all="ignore"):
        ties = ((halves[:-1] + halves[1:]) / 2).view(np.uint32)
    exact = np.concatenate([halves.view(np.uint32), ties, tops, tops | 0x8000])
    return np.concatenate([anything, exact, exact + 1, exact - 1]).view("<f4")


def test_floats_are_copied() -> None:
    values = random_floats()
    assert decode(T.F32, values).tobytes() == values.tobytes()
    finite = np.frombuffer(tool("quant_tool", "finite", int(T.F32), stdin=values.tobytes()).stdout, np.uint8)
    assert np.array_equal(finite, np.isfinite(values))


def test_rounding_to_16_bits() -> None:
    values = random_floats()
    with np.errstate(all="ignore"):
        half = values.astype("<f2")
    found = np.frombuffer(tool("quant_tool", "to_half", stdin=values.tobytes()).stdout, "<f2")
    assert ((found.view("<u2") == half.view("<u2")) | (np.isnan(found) & np.isnan(half))).all()

    found = np.frombuffer(tool("quant_tool", "to_bfloat", stdin=values.tobytes()).stdout, "<u2")
    assert np.array_equal(found, gguf.quants.quantize(values, T.BF16).view("<u2"))
