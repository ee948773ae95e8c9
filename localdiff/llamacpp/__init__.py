"""The optional backend of llama.cpp: its forward pass, in a process of its own, behind the engine's own interface.

For machines whose GPU localdiff has no kernels for (Apple's and AMD's). localdiff validates the file, reads vocabulary
and record, and scores the logits; of llama.cpp comes the forward pass alone. Its process (child.py) may abort without
taking this one along, and may be of another Python.
"""

from .backend import ARCHITECTURES, LlamaModel, check_job, check_loading
from .process import Found, Process, look

__all__ = ["ARCHITECTURES", "Found", "LlamaModel", "Process", "check_job", "check_loading", "look"]
