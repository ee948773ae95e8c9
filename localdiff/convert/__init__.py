"""Conversion of checkpoints to GGUF files with their diffusion record.

driver.py       convert(): the order of work   families.py    the table of families; family.py what a family states
checkpoint.py   folders, shards, names         tensors.py     tensors whose values are read on demand
safetensors_file.py, torch_file.py, llama2c.py, gguf_file.py the files
vocabulary.py   tokenizers as metadata         rope.py        row orders of Q and K
writing.py      GGUF, streamed and validated   ../quantize/   which tensor is stored as what, encoding
pickled.py      pickles as data                lora.py        PEFT adapters, merged
matching.py     which tensor goes where        record.py      the diffusion record
"""

from .driver import ConvertReport, convert

__all__ = ["ConvertReport", "convert"]
