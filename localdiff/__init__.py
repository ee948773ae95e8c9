"""localdiff: the local runtime for diffusion language models."""

__version__ = "0.1.0"
