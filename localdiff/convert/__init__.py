"""Conversion of checkpoints to GGUF files with their diffusion record.

driver.py      convert(): the order of work     families.py    the table of families; family.py what a family states
checkpoint.py  where tensors are read from      vocabulary.py  tokenizers as metadata
storage.py     weight types and encoding        writing.py     the GGUF file, streamed and validated
llama2c.py     llama2.c checkpoints             rope.py        row orders of Q and K
"""

from .driver import ConvertReport, convert

__all__ = ["ConvertReport", "convert"]
