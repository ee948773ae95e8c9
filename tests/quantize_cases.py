"""Models and tensors on which the quantiser is compared with llama.cpp, shared by the tests and the tool that records
llama.cpp's answers (tools/record_quantize_goldens.py).
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf_values import add_values, finish

from localdiff.quantize.imatrix import Sums, read_imatrix, write_imatrix
from localdiff.quantize.mixtures import MIXTURES

T = gguf.GGMLQuantizationType
MIXTURE_NAMES = [name for name in MIXTURES if name != "f32"]


@dataclass(frozen=True)
class ModelCase:
    """A model of which only names and shapes matter."""

    arch: str = "llama"
    layers: int = 2
    heads: int = 8
    kv_heads: int = 8
    dim: int = 256
    ffn: int = 512
    tied: bool = False
    experts: int = 0

    @property
    def name(self) -> str:
        parts = [self.arch, f"{self.layers}l", f"{self.heads}h{self.kv_heads}", f"{self.dim}x{self.ffn}"]
        return "-".join(parts + ["tied"] * self.tied + [f"{self.experts}e"] * (self.experts > 0))

    @property
    def metadata(self) -> dict[str, object]:
        """Keys below the architecture's, and the architecture."""
        head_dim = self.dim // self.heads
        keys: dict[str, object] = {
            "context_length": 64, "embedding_length": self.dim, "block_count": self.layers,
            "feed_forward_length": self.ffn, "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads, "rope.dimension_count": head_dim,
            "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
        }  # fmt: skip
        if self.experts:
            keys |= {"expert_count": self.experts, "expert_used_count": 2, "expert_feed_forward_length": self.ffn}
        return {"general.architecture": self.arch} | {f"{self.arch}.{key}": value for key, value in keys.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape, slowest first."""
        dim, ffn, kv = self.dim, self.ffn, self.dim // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (96, dim), "output_norm.weight": (dim,)}
        if not self.tied:
            shapes["output.weight"] = (96, dim)
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (dim,), "ffn_norm.weight": (dim,), "attn_output.weight": (dim, dim),
        }  # fmt: skip
        if self.arch == "gpt2":
            shapes["position_embd.weight"] = (64, dim)
            layer |= {"attn_qkv.weight": (3 * dim, dim), "attn_qkv.bias": (3 * dim,), "ffn_up.weight": (ffn, dim)}
            layer |= {"ffn_down.weight": (dim, ffn), "ffn_down.bias": (dim,)}
        else:
            layer |= {"attn_q.weight": (dim, dim), "attn_k.weight": (kv, dim), "attn_v.weight": (kv, dim)}
            part, many = ("_exps", (self.experts,)) if self.experts else ("", ())
            layer |= {f"ffn_{name}{part}.weight": (*many, ffn, dim) for name in ("gate", "up")}
            layer[f"ffn_down{part}.weight"] = (*many, dim, ffn)
            if self.experts:
                layer["ffn_gate_inp.weight"] = (self.experts, dim)
        for index in range(self.layers):
            shapes |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
        return shapes


CASES = [
    *(ModelCase(layers=layers) for layers in (2, 3, 5, 8, 12, 16, 22, 28, 32, 36, 40)),
    *(ModelCase(layers=layers, kv_heads=2) for layers in (2, 24, 32, 80)),
    ModelCase(layers=80),
    ModelCase(layers=3, kv_heads=4, tied=True),
    ModelCase(layers=30, heads=9, kv_heads=3, dim=576, ffn=1536, tied=True),  # SmolLM2
    ModelCase(layers=9, dim=288, heads=9, kv_heads=9, ffn=800),
    ModelCase(layers=9, dim=224, ffn=544, tied=True),
    ModelCase("gpt2", layers=12, tied=True),
    ModelCase("gpt2", layers=12, dim=288, heads=9, kv_heads=9),
    ModelCase("qwen2", layers=28, kv_heads=2),
    ModelCase(layers=32, kv_heads=2, experts=8),
    ModelCase("qwen3moe", layers=16, kv_heads=2, experts=16),
]


def write_model(case: ModelCase, path: Path, kind: T = T.F16) -> None:
    """The case as a file whose matrices are holes: zeros that take no room."""
    writer = gguf.GGUFWriter(path, case.arch)
    add_values(writer, case.metadata)
    total = 0
    for name, shape in case.shapes.items():
        stored = kind if len(shape) > 1 and "ffn_gate_inp" not in name else T.F32
        nbytes = int(np.prod(shape)) * (2 if stored == T.F16 else 4)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, stored)
        total += -nbytes % gguf.GGUF_DEFAULT_ALIGNMENT + nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(start + -start % gguf.GGUF_DEFAULT_ALIGNMENT + total)


def compact(types: dict[str, str], mixture: str) -> dict[str, str]:
    """Types by tensor name, layers folded: role -> its type, or one per run of layers, as "q6_k*5 q4_k*2".

    Left out: roles that are f32 or the mixture's base throughout.
    """
    rows: dict[str, list[str]] = {}
    for name in sorted(types, key=lambda name: (int(name.split(".")[1]) if name.startswith("blk.") else -1, name)):
        role = name.split(".", 2)[2] if name.startswith("blk.") else name
        rows.setdefault(role, []).append(types[name].lower())
    folded = {}
    for role, kinds in rows.items():
        runs: list[tuple[str, int]] = []
        for kind in kinds:
            if runs and runs[-1][0] == kind:
                runs[-1] = (kind, runs[-1][1] + 1)
            else:
                runs.append((kind, 1))
        text = runs[0][0] if len(runs) == 1 else " ".join(f"{kind}*{count}" for kind, count in runs)
        if text not in ("f32", MIXTURES[mixture].base.name.lower()):
            folded[role] = text
    return folded


ENCODED = [T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS]


def samples() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> values float32 [48, 1024] and the importance of their columns; the same wherever they are made."""
    random = np.random.Generator(np.random.PCG64(20))
    shape = (48, 1024)
    values = {
        "gaussian": random.standard_normal(shape) * 0.03,
        "student t, 4": random.standard_t(4, shape) * 0.02,
        "student t, 2": random.standard_t(2, shape) * 0.01,
        "off centre": random.standard_normal(shape) * 0.02 + 0.03,
    }
    return {
        name: (array.astype(np.float32), np.exp(1.5 * random.standard_normal(shape[1])).astype(np.float32))
        for name, array in values.items()
    }


SMOLLM2_TENSORS = ("blk.3.ffn_down.weight", "blk.10.attn_q.weight", "blk.20.ffn_up.weight", "token_embd.weight")


def smollm2_samples(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Parts of real matrices, 128 rows of 512; those of Q4_1 lie on a grid of 4 bits per block of 32 already."""
    random = np.random.Generator(np.random.PCG64(21))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    parts = {}
    for name in SMOLLM2_TENSORS:
        values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        importance = np.exp(1.5 * random.standard_normal(512)).astype(np.float32)
        parts[name] = (np.ascontiguousarray(values[:128, :512], np.float32), importance)
    return parts


# ---- a whole model with an importance matrix ----

WEIGHTED_CASE = ModelCase(kv_heads=4)
WEIGHTED_MIXTURES = ("q4_0", "q4_k_m", "q2_k", "iq4_xs")
DATASET, CHUNKS, CHUNK_LENGTH = "texts.txt", 7, 32


def write_weighted_case(model: Path, imatrix: Path) -> None:
    """The case as f32, and the matrix that `imatrix` would write, of random inputs; the same wherever they are made."""
    random = np.random.Generator(np.random.PCG64(22))
    writer = gguf.GGUFWriter(model, WEIGHTED_CASE.arch)
    add_values(writer, WEIGHTED_CASE.metadata)
    sums = {}
    for name, shape in WEIGHTED_CASE.shapes.items():
        writer.add_tensor(name, (random.standard_t(4, shape) * 0.03).astype(np.float32))
        if len(shape) > 1 and not name.startswith("token_embd"):
            squares = np.exp(1.5 * random.standard_normal((1, shape[1]))) * CHUNKS * CHUNK_LENGTH
            sums[name] = Sums(squares, np.array([CHUNKS * CHUNK_LENGTH], np.uint64))
    finish(writer)
    write_imatrix(imatrix, WEIGHTED_CASE.arch, sums, [DATASET], CHUNKS, CHUNK_LENGTH)


def weighted_result(model: Path, imatrix: Path, out: Path) -> tuple[dict[str, str], float]:
    """Type by tensor of a quantised file, and the root of its mean squared error, weighted by importance."""
    importance = read_imatrix(imatrix).entries
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(model).tensors}
    types, squares, count = {}, 0.0, 0
    for tensor in gguf.GGUFReader(out).tensors:
        types[tensor.name] = tensor.tensor_type.name
        if tensor.name in importance:
            decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            squares += float((np.square(decoded - before[tensor.name].data) * importance[tensor.name]).sum())
            count += decoded.size
    return types, float(np.sqrt(squares / count))


def errors(blocks: np.ndarray, kind: T, values: np.ndarray, importance: np.ndarray) -> tuple[float, float]:
    """Root of the mean squared error, plain and weighted by importance."""
    decoded = gguf.quants.dequantize(blocks.reshape(len(values), -1), kind).astype(np.float64)
    squares = np.square(decoded - values)
    return float(np.sqrt(squares.mean())), float(np.sqrt((squares * importance).mean()))
