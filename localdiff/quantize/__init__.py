"""Quantising: which tensor is stored as what, and the writing of it.

mixtures.py   the kinds of files and the type that each tensor gets in them
encoding.py   values -> the stored bytes of a type, through the engine
imatrix.py    importance matrices
driver.py     quantize(): a GGUF file becomes a smaller one
"""

from .driver import QuantizeReport, quantize

__all__ = ["QuantizeReport", "quantize"]
