"""Conversion of checkpoints to GGUF files with their diffusion record."""
