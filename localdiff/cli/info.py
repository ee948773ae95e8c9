"""`localdiff info`: what a GGUF file holds - any GGUF file, also of architectures that cannot be run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from ..errors import LocaldiffError

if TYPE_CHECKING:
    from ..engine import File

LONG_ARRAY = 16  # longer arrays are shown by their length


@click.command(short_help="show what a GGUF file holds")
@click.argument("file", metavar="FILE.gguf")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def command(file: str, as_json: bool) -> None:
    """Show metadata, tensor types and the diffusion record of FILE.gguf."""
    from ..engine import File

    with File.open(file) as opened:
        facts = _facts(opened)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print(facts)


def _facts(file: File) -> dict[str, Any]:
    metadata = {key: _short(file, key) for key in file.metadata}
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        counts[tensor.type] += 1
        sizes[tensor.type] += tensor.nbytes
    return {
        "path": str(file.path),
        "file_bytes": file.path.stat().st_size,
        "arch": metadata.get("general.architecture"),
        "name": metadata.get("general.name"),
        "parameters": sum(math.prod(tensor.shape) for tensor in file.tensors),
        "types": {name: {"tensors": counts[name], "bytes": sizes[name]} for name in sizes},
        "diffusion": _record(file),
        "metadata": metadata,
        "tensors": [
            {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            for tensor in file.tensors
        ],
    }


def _record(file: File) -> dict[str, Any] | None:
    from ..spec import DiffusionSpec

    try:
        spec = DiffusionSpec.from_gguf(file.metadata)
    except LocaldiffError as error:  # the rest of the file can still be shown
        return {"error": str(error)}
    return None if spec is None else dataclasses.asdict(spec)


def _short(file: File, key: str) -> Any:
    count = file.metadata.count(key)
    return f"[{count} values]" if count is not None and count > LONG_ARRAY else file.metadata[key]


def _print(facts: dict[str, Any]) -> None:
    lines = [
        ("file", f"{facts['path']}, {facts['file_bytes']:,} bytes"),
        ("architecture", f"{facts['arch']}"),
        ("name", f"{facts['name']}"),
        ("parameters", f"{facts['parameters']:,} in {len(facts['tensors'])} tensors"),
    ]
    lines += [
        (f"  {name}", f"{each['tensors']:,} tensors, {each['bytes']:,} bytes") for name, each in facts["types"].items()
    ]
    record = facts["diffusion"]
    if record is None:
        lines.append(("diffusion", "no record; to run it give --diffusion mask=ID,shift=0|1 or a preset"))
    else:
        lines.append(("diffusion", ""))
        lines += [(f"  {name}", _value(value)) for name, value in record.items() if value is not None]
    lines.append(("metadata", f"{len(facts['metadata'])} keys"))
    lines += [(f"  {key}", _value(value)) for key, value in facts["metadata"].items()]
    width = max(len(name) for name, _ in lines if len(name) <= 48)
    for name, value in lines:
        print(f"{name:{width}}  {value}".rstrip())


def _value(value: Any) -> str:
    """One line of at most 100 characters that a terminal can show."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | list | tuple | bool) else str(value)
    text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return text if len(text) <= 100 else f"{text[:99]}…"
