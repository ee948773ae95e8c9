"""Quantising: which tensor is stored as what, and the writing of it.

mixtures.py   the kinds of files and the type that each tensor gets in them
encoding.py   values -> the stored bytes of a type, through the engine
imatrix.py    files of importance matrices
gathering.py  gather_imatrix(): an importance matrix from texts
driver.py     quantize(): a GGUF file becomes a smaller one
"""

from .driver import QuantizeReport, quantize
from .gathering import GatherReport, gather_imatrix

__all__ = ["GatherReport", "QuantizeReport", "gather_imatrix", "quantize"]
