"""`localdiff info`: what a GGUF file holds - any GGUF file, also of architectures that cannot be run.

First what a user asks (family, tokenizer, weights, how it is denoised, memory), then every key. The record shown is the
one that `run` would use with the same --diffusion, with where it comes from. Not here: memory for a given length
(`plan`), the values of tensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import LocaldiffError, counted
from .flags import Command
from .generating import LORA, MODEL, file_of

if TYPE_CHECKING:
    from ..engine import File
    from ..spec import DiffusionSpec

LENGTHS = "length_head.classes.weight"  # [classes, ffn]
LONG_ARRAY = 16  # longer arrays are shown by their length
LONG_TEXT = 20_000  # and longer texts; chat templates are shorter
_TOKENIZERS = {
    "gpt2": "byte-level BPE", "llama": "SentencePiece BPE", "bert": "WordPiece", "t5": "Unigram"
}  # fmt: skip
# what 0 means
_NONE = {"block_length": "none", "canvas_max": "the context length", "canvas_length": "all that is asked for"}


@click.command(cls=Command)
@MODEL
@click.option("--diffusion", help="preset or mask=ID,shift=0|1,...: show the record with these values")
@LORA
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(model: str | None, diffusion: str | None, lora: tuple[str, ...], as_json: bool) -> None:
    """Show family, tokenizer, weight types, diffusion record, memory need and metadata of MODEL.gguf.

    Any GGUF file can be shown; without one the embedded model is.
    """
    from ..adapters import opened, scaled_paths
    from ..engine import File

    path = file_of(model)
    with File.open(path) as file, opened(lora) as adapters:
        facts = _facts(file, diffusion) | {"adapters": [_adapter(each, scale) for each, scale in adapters]}
    facts["memory"] = _memory(path, lora)
    files = [(path, 1.0), *scaled_paths(lora)]
    facts["arithmetic"] = _arithmetic(files)
    facts["tuned"] = _tuned(files)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print(facts)


def _facts(file: File, diffusion: str | None) -> dict[str, Any]:
    metadata = {key: _short(file, key) for key in file.metadata}
    return {
        "path": str(file.path),
        "file_bytes": sum(part.stat().st_size for part in _parts(file)),
        "arch": metadata.get("general.architecture"),
        "name": metadata.get("general.name"),
        "parameters": sum(math.prod(tensor.shape) for tensor in file.tensors),
        "types": _types(file),
        "tokenizer": _tokenizer(file),
        "lengths": next((tensor.shape[0] for tensor in file.tensors if tensor.name == LENGTHS), 0),
        **_record(file, diffusion),
        "metadata": metadata,
        "tensors": [
            {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            for tensor in file.tensors
        ],
    }


def _parts(file: File) -> list[Path]:
    """The file, or all parts of a split model; that they exist was checked on opening."""
    count = file.metadata.get("split.count", 1)
    stem = re.sub(r"-\d{5}-of-\d{5}\.gguf$", "", file.path.name)
    if count < 2 or stem == file.path.name:
        return [file.path]
    return [file.path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def _types(file: File) -> dict[str, dict[str, Any]]:
    """Per tensor type, the most used first: tensors, bytes, and the share of all weights."""
    found: dict[str, dict[str, Any]] = {}
    for tensor in file.tensors:
        entry = found.setdefault(tensor.type, {"tensors": 0, "bytes": 0, "weights": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.nbytes
        entry["weights"] += math.prod(tensor.shape)
    total = sum(entry["weights"] for entry in found.values())
    for entry in found.values():
        entry["share"] = round(entry["weights"] / total, 6) if total else 0.0
    return dict(sorted(found.items(), key=lambda item: -item[1]["weights"]))


def _tokenizer(file: File) -> dict[str, Any] | None:
    tokens = file.metadata.count("tokenizer.ggml.tokens") if "tokenizer.ggml.tokens" in file.metadata else None
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind is None and tokens is None:
        return None
    return {
        "kind": kind,
        "pre": file.metadata.get("tokenizer.ggml.pre"),
        "tokens": tokens,
        "huggingface": "tokenizer.huggingface.json" in file.metadata,
        "chat_template": "tokenizer.chat_template" in file.metadata,
    }


def _record(file: File, diffusion: str | None) -> dict[str, Any]:
    """The record in force, the family it belongs to, and how it decodes."""
    from ..presets import recognise, record_in_force
    from ..spec import has_record

    family = recognise(file.metadata)
    facts: dict[str, Any] = {"family": family, "diffusion": None, "sampler": None, "notices": []}
    try:
        found = record_in_force(file.metadata, diffusion)
    except LocaldiffError as error:
        if diffusion is not None:
            raise
        return facts | {"diffusion": {"error": str(error)}}  # the rest of the file can still be shown
    if found.spec is None:
        return facts
    return facts | {
        "family": found.preset or family,
        "sources": [
            *([f"preset {found.preset}"] if found.preset else []),
            *(["the file"] if has_record(file.metadata) else []),
            *(["--diffusion"] if diffusion is not None else []),
        ],
        "diffusion": dataclasses.asdict(found.spec),
        "sampler": _sampler(found.spec),
        "mask_text": _token(file, found.spec.mask_token),
        "notices": list(found.notices),
    }


def _sampler(spec: DiffusionSpec) -> dict[str, Any]:
    """The settings in force where the caller gives none; steps None = one for each token."""
    from ..decode.table import settings_for
    from ..options import GenerateOptions

    endless = 2**31 - 1
    try:
        shown = settings_for(GenerateOptions(), spec, endless).shown()
    except LocaldiffError as error:
        return {"error": str(error)}
    return shown | ({"steps": None} if shown.get("steps") == endless else {})


def _token(file: File, token: int) -> str | None:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return str(tokens[token]) if isinstance(tokens, list) and token < len(tokens) else None


def _adapter(file: File, scale: float) -> dict[str, Any]:
    """What a LoRA adapter changes; whether it fits the model is told where the memory is planned."""
    factors = [tensor for tensor in file.tensors if tensor.name.endswith(".lora_a")]
    return {
        "path": str(file.path),
        "scale": scale,
        "matrices": len(factors),
        "ranks": sorted({tensor.shape[0] for tensor in factors}),
        "parameters": sum(math.prod(tensor.shape) for tensor in file.tensors),
    }


def _memory(file: Path, lora: Sequence[str]) -> dict[str, Any]:
    """What one canvas as long as the context takes; the reason where the model cannot be run."""
    from ..planning import plan_memory

    try:
        return dataclasses.asdict(plan_memory(file, lora=lora))
    except LocaldiffError as error:
        return {"error": str(error)}


def _arithmetic(files: Sequence[tuple[Path, float]]) -> str:
    """What `--math auto` does with quantised weights of a model and its adapters, as far as it was measured."""
    from ..arithmetic import ON_GPU, fingerprint, judge, recall
    from ..devices import choose

    if choose("auto").name == "cuda":
        return f"exact: {ON_GPU}"
    divergence = recall(fingerprint(files))
    if divergence is None:
        return "measured when the model first generates"
    found = judge(divergence)
    return f"{found.math} ({found.reason})"


def _tuned(files: Sequence[tuple[Path, float]]) -> str:
    """What `--preset tuned` does with a model and its adapters."""
    from ..profiles import recall

    try:
        profile = recall(files)
    except LocaldiffError as error:
        return str(error)
    return "not yet; localdiff tune finds the fastest settings" if profile is None else profile.described()


def _short(file: File, key: str) -> Any:
    """A value as it is shown: long arrays and texts by their size, float32 by the digits that it has."""
    count = file.metadata.count(key)
    if count is not None and count > LONG_ARRAY:
        return f"[{count} values]"
    value = file.metadata[key]
    if isinstance(value, str) and len(value) > LONG_TEXT:
        return f"[{len(value):,} characters]"
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _print(facts: dict[str, Any]) -> None:
    lines = [*_summary(facts), ("metadata", f"{len(facts['metadata'])} keys")]
    lines += [(f"  {key}", _value(value)) for key, value in facts["metadata"].items()]
    width = max(len(name) for name, _ in lines if len(name) <= 48)
    for name, value in lines:
        print(f"{name:{width}}  {value}".rstrip())


def _summary(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", _plain(f"{facts['path']}, {facts['file_bytes']:,} bytes")
    yield "name", _plain(str(facts["name"] or "none"))
    yield "architecture", _plain(str(facts["arch"]))
    own = "the file" in facts.get("sources", ())
    unnamed = "a diffusion model by its own record" if own else "no known diffusion model"
    yield "family", facts["family"] or unnamed
    tokenizer = facts["tokenizer"]
    if tokenizer is None:
        yield "tokenizer", "none"
    else:
        kind = _TOKENIZERS.get(tokenizer["kind"], f"of kind {tokenizer['kind']}")
        cut = f", cut as {tokenizer['pre']}" if tokenizer["kind"] == "gpt2" else ""
        chat = ", with a chat template" if tokenizer["chat_template"] else ""
        yield "tokenizer", _plain(f"{kind}{cut}, {tokenizer['tokens'] or 0:,} tokens{chat}")
    bits = 8 * sum(each["bytes"] for each in facts["types"].values()) / max(1, facts["parameters"])
    yield "weights", f"{facts['parameters']:,} in {len(facts['tensors'])} tensors, {bits:.2f} bits each"
    for name, each in facts["types"].items():
        tensors = counted(each["tensors"], "tensor")
        yield f"  {name}", f"{100 * each['share']:5.1f} %  {tensors}, {each['bytes']:,} bytes"
    if facts["lengths"]:
        yield "length head", f"for answers of up to {facts['lengths']:,} tokens; --length-beam tries the likeliest"
    for each in facts["adapters"]:
        ranks = " and ".join(map(str, each["ranks"]))
        what = f"rank {ranks} on {each['matrices']} matrices" if ranks else "no factors"
        yield "adapter", _plain(f"{each['path']} times {each['scale']:g}: {what}")
    yield from _denoising(facts)
    yield "arithmetic", facts["arithmetic"]
    yield "tuned", _plain(facts["tuned"])
    memory = facts["memory"]
    if "error" in memory:
        yield "memory", _plain(memory["error"])
    else:
        mib = {name: f"{memory[name] / 2**20:,.0f} MiB" for name in ("total", "weights", "session")}
        yield (
            "memory",
            (
                f"{mib['total']} at {memory['length']} positions: weights {mib['weights']}, session {mib['session']}; "
                "other lengths: localdiff plan"
            ),
        )


def _denoising(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    record, sampler = facts["diffusion"], facts["sampler"]
    if record is None:
        ways = "a diffusion model runs with --diffusion mask=ID,shift=0|1 or a preset, others after localdiff adapt"
        yield "diffusion", f"no record; {ways}"
        return
    if "error" in record:
        yield "diffusion", _plain(record["error"])
        return
    later = "; what stands later wins" if len(facts["sources"]) > 1 else ""
    yield "diffusion", f"from {', '.join(facts['sources'])}{later}"
    for notice in facts["notices"]:
        yield "  notice", _plain(notice)
    of_sampler = ("decoder", "steps", "temperature", "top_p", "threshold", "repetition_penalty")
    for name, value in record.items():
        if value is None or value == () or name in of_sampler:
            continue
        text = f" {_value(facts['mask_text'])}" if name == "mask_token" and facts["mask_text"] is not None else ""
        yield f"  {name}", (_NONE.get(name) if value == 0 else None) or _value(value) + text
    if sampler is not None:
        settings = [f"{name} {_plain(str(value))}" for name, value in sampler.items() if name != "decoder"]
        settings = ["one step for each token" if each == "steps None" else each for each in settings]
        yield "  sampler", ", ".join([str(sampler.get("decoder", "")), *settings]).lstrip(", ")


def _value(value: Any) -> str:
    """One line of at most 100 characters that a terminal can show."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | list | tuple | bool) else str(value)
    text = _plain(text)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _plain(text: str) -> str:
    """`text` without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
