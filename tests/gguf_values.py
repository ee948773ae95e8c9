"""GGUF files by the gguf package, for tests: metadata and tensors as plain values, values written by their type."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize


def read_metadata(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> the values of every tensor as float32."""
    return {each.name: dequantize(each.data, each.tensor_type) for each in gguf.GGUFReader(path).tensors}


def add_values(writer: gguf.GGUFWriter, metadata: dict[str, Any]) -> None:
    """Lists become arrays; general.architecture is the writer's own."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if key != "general.architecture":
            add.get(type(value), writer.add_array)(key, value)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
