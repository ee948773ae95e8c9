"""The kinds of files that are written, and the type that each tensor gets in them.

A mixture spends more bits where an error costs more: on the head, on V and on the second matrix of the feed-forward
layer, and there in the first and last layers. The choices are llama.cpp's, tensor for tensor, so that a file's name
means the same everywhere; its exceptions for the architecture falcon are not here. Pure: names and shapes in, types
out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gguf

from ..errors import OptionError

T: TypeAlias = gguf.GGMLQuantizationType
FileType: TypeAlias = gguf.LlamaFileType


@dataclass(frozen=True)
class Facts:
    """What mixtures ask of a model."""

    arch: str
    layers: int
    heads: int
    kv_heads: int
    experts: int

    @property
    def shared_by(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0


def facts_of(metadata: Mapping[str, Any]) -> Facts:
    """From the metadata of a file; what it lacks or says oddly counts as 0, lists by layer by their first element."""
    arch = str(metadata.get("general.architecture", ""))

    def number(key: str, absent: int) -> int:
        value = metadata.get(f"{arch}.{key}", absent)
        first = value[0] if isinstance(value, list) and value else value
        return first if isinstance(first, int) else absent

    heads = number("attention.head_count", 0)
    kv_heads = number("attention.head_count_kv", heads)
    return Facts(arch, number("block_count", 0), heads, kv_heads, number("expert_count", 0))


# ---- where a choice applies ----


@dataclass(frozen=True)
class _Place:
    index: int  # which of the tensors of this kind, in the order of layers
    count: int  # how many there are
    facts: Facts
    importance: bool


_Where = Callable[[_Place], bool]


def _everywhere(at: _Place) -> bool:
    return True


def _outer_and_every_third(at: _Place) -> bool:
    eighth = at.count // 8
    return at.index < eighth or at.index >= 7 * at.count // 8 or (at.index - eighth) % 3 == 2


def _first(tensors: int) -> _Where:
    return lambda at: at.index < tensors


def _first_part(parts: int) -> _Where:
    return lambda at: at.index < at.count // parts


def _shared_by_4(at: _Place) -> bool:
    return at.facts.shared_by >= 4


def _first_eighth_with_importance(at: _Place) -> bool:
    return at.importance and at.index < at.count // 8


def _first_eighth_without_importance(at: _Place) -> bool:
    return not at.importance and at.index < at.count // 8


# ---- mixtures ----

_Choices: TypeAlias = "tuple[tuple[_Where, T], ...]"  # the first that applies; none: the base


@dataclass(frozen=True)
class Mixture:
    name: str
    file_type: FileType  # general.file_type
    base: T
    attn_v: _Choices = ()  # V, also as a part of one matrix for Q, K and V
    attn_output: _Choices = ()
    ffn_down: _Choices = ()
    attn_output_of_8: T | None = None  # attn_output where there are 8 experts

    @property
    def quantized(self) -> bool:
        return bool(gguf.GGML_QUANT_SIZES[self.base][0] > 1)


def _all(kind: T) -> _Choices:
    return ((_everywhere, kind),)


_MORE = ((_outer_and_every_third, T.Q6_K),)
_IQ4 = {
    "attn_v": ((_shared_by_4, T.Q5_K),),
    "ffn_down": ((_first_eighth_without_importance, T.Q5_K),),
    "attn_output_of_8": T.Q5_K,
}

MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture("f32", FileType.ALL_F32, T.F32),
        Mixture("f16", FileType.MOSTLY_F16, T.F16),
        Mixture("bf16", FileType.MOSTLY_BF16, T.BF16),
        Mixture("q8_0", FileType.MOSTLY_Q8_0, T.Q8_0),
        Mixture("q4_0", FileType.MOSTLY_Q4_0, T.Q4_0, ffn_down=((_first_eighth_with_importance, T.Q4_1),)),
        Mixture("q4_1", FileType.MOSTLY_Q4_1, T.Q4_1),
        Mixture("q5_0", FileType.MOSTLY_Q5_0, T.Q5_0, ffn_down=((_first_eighth_with_importance, T.Q5_1),)),
        Mixture("q5_1", FileType.MOSTLY_Q5_1, T.Q5_1),
        Mixture("q2_k", FileType.MOSTLY_Q2_K, T.Q2_K, ((_shared_by_4, T.Q4_K), (_everywhere, T.Q3_K)),
                _all(T.Q3_K), _all(T.Q3_K), T.Q5_K),
        Mixture("q3_k_s", FileType.MOSTLY_Q3_K_S, T.Q3_K, attn_output_of_8=T.Q5_K),
        Mixture("q3_k_m", FileType.MOSTLY_Q3_K_M, T.Q3_K, ((_first(2), T.Q5_K), (_everywhere, T.Q4_K)),
                _all(T.Q4_K), ((_first_part(16), T.Q5_K), (_everywhere, T.Q4_K)), T.Q5_K),
        Mixture("q3_k_l", FileType.MOSTLY_Q3_K_L, T.Q3_K, _all(T.Q5_K), _all(T.Q5_K), _all(T.Q5_K)),
        Mixture("q4_k_s", FileType.MOSTLY_Q4_K_S, T.Q4_K, ((_first(4), T.Q5_K),),
                ffn_down=((_first_part(8), T.Q5_K),), attn_output_of_8=T.Q5_K),
        Mixture("q4_k_m", FileType.MOSTLY_Q4_K_M, T.Q4_K, _MORE, ffn_down=_MORE, attn_output_of_8=T.Q5_K),
        Mixture("q5_k_s", FileType.MOSTLY_Q5_K_S, T.Q5_K),
        Mixture("q5_k_m", FileType.MOSTLY_Q5_K_M, T.Q5_K, _MORE, ffn_down=_MORE),
        Mixture("q6_k", FileType.MOSTLY_Q6_K, T.Q6_K),
        Mixture("iq4_nl", FileType.MOSTLY_IQ4_NL, T.IQ4_NL, **_IQ4),
        Mixture("iq4_xs", FileType.MOSTLY_IQ4_XS, T.IQ4_XS, **_IQ4),
    )
}  # fmt: skip
_SHORT = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}


def find_mixture(name: str) -> Mixture:
    """By name, in any case. Raises OptionError with the names that there are."""
    mixture = MIXTURES.get(_SHORT.get(name.lower(), name.lower()))
    if mixture is None:
        raise OptionError(f"type '{name}' cannot be written; choose one of {', '.join(MIXTURES)}")
    return mixture


# ---- tensors ----

# Tensors with one of these in their names are small or steer others (routers), or are no matrices that are multiplied.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight",
    "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", ".position_embd", ".rel_pos", ".patch_embd", ".patch_merger",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_HEAD = "output.weight"
_ROLES = {  # part of a name -> role, in this order
    "attn_qkv.weight": "attn_v", "attn_kv_b.weight": "attn_v", "attn_v.weight": "attn_v", "attn_k.weight": "attn_k",
    "attn_output.weight": "attn_output", "ffn_down": "ffn_down",
}  # fmt: skip
_FALLBACK = {  # where rows do not divide into blocks of 256
    T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0, T.IQ4_XS: T.IQ4_NL,
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    name: str
    shape: tuple[int, ...]  # of the values, slowest first
    kept: T  # its type where it is not quantised: vectors, norms, routers, position embeddings


@dataclass(frozen=True)
class Chosen:
    kind: T
    wanted: T  # differs where the rows do not divide into its blocks


def is_matrix(candidate: Candidate) -> bool:
    """Whether a mixture decides the type; others are kept."""
    name = candidate.name
    matrix = len(candidate.shape) > 1 and max(candidate.shape[:-1]) > 1
    return matrix and name.endswith("weight") and name not in _KEPT_NAMES and not any(part in name for part in _KEPT)


def choose_types(
    candidates: Sequence[Candidate], mixture: Mixture, facts: Facts, importance: bool = False
) -> dict[str, Chosen]:
    """The type of every tensor by its name. importance: whether an importance matrix is at hand."""
    counts = Counter(_role(each.name) for each in candidates) | {"ffn_down": facts.layers}
    tied = all(each.name != _HEAD for each in candidates)
    seen: Counter[str] = Counter()
    chosen: dict[str, Chosen] = {}
    for each in sorted(candidates, key=lambda each: (_layer(each.name), each.name)):
        if not is_matrix(each):
            chosen[each.name] = Chosen(each.kept, each.kept)
            continue
        wanted = mixture.base
        if mixture.quantized:
            role = _role(each.name)
            index = _layer(each.name) if role == "ffn_down" and facts.experts > 1 else seen[role]
            place = _Place(index, counts[role], facts, importance)
            seen[role] += 1
            wanted = _wanted(each, role, place, mixture, tied)
        chosen[each.name] = Chosen(_fitting(wanted, each.shape[-1]), wanted)
    return chosen


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _role(name: str) -> str:
    if name.startswith("length_head."):  # no layer of the model: its matrices are counted with none of theirs
        return ""
    return next((role for part, role in _ROLES.items() if part in name), "")


def _wanted(each: Candidate, role: str, place: _Place, mixture: Mixture, tied: bool) -> T:
    """The type that the mixture wants for a matrix, whatever its rows."""
    facts, base = place.facts, mixture.base
    if each.name == _HEAD or (tied and each.name in _EMBEDDINGS):
        fits = each.shape[-1] % gguf.GGML_QUANT_SIZES[base][0] == 0
        return T.Q6_K if fits and base != T.Q8_0 else T.Q8_0
    if role in ("attn_v", "attn_k") and facts.experts == 8:
        return T.Q8_0
    if role == "attn_output" and facts.experts == 8:
        return mixture.attn_output_of_8 or base
    choices: _Choices = getattr(mixture, role, ()) if role else ()
    kind = next((kind for where, kind in choices if where(place)), base)
    if role == "attn_v" and facts.arch == "llama" and facts.layers == 80 and facts.heads != facts.kv_heads:
        kind = T.Q5_K if kind in (T.Q3_K, T.Q4_K) else kind  # the 70B model: its V is an eighth of Q
    return kind


def _fitting(kind: T, columns: int) -> T:
    """`kind`, or what stands in for it where rows of `columns` do not divide into its blocks."""
    for fitting in (kind, _FALLBACK.get(kind, T.F16), T.F16):
        if columns % gguf.GGML_QUANT_SIZES[fitting][0] == 0:
            return fitting
    raise AssertionError("blocks of F16 hold one value")


def substitutes(chosen: Mapping[str, Chosen]) -> list[str]:
    """A sentence for each type that had to stand in for another."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, choice in chosen.items():
        if choice.kind != choice.wanted:
            names.setdefault((choice.wanted.name.lower(), choice.kind.name.lower()), []).append(name)
    sentences = []
    for (wanted, kind), which in names.items():
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted.upper()]][0]
        shown = ", ".join(which[:3]) + (f" and {len(which) - 3} more" if len(which) > 3 else "")
        sentences.append(f"rows not divisible by {block}, stored as {kind} instead of {wanted}: {shown}")
    return sentences
