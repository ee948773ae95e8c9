"""Text in and out: tokenizers and chat templates, both built from the metadata of a GGUF file.

Importing this package loads neither `tokenizers` nor `minijinja`; they are imported when a tokenizer is built and in
the process that renders a template.
"""

from localdiff.text.chat import ChatTemplate, RenderedChat
from localdiff.text.tokenizer import TextStream, Tokenizer

__all__ = ["ChatTemplate", "RenderedChat", "TextStream", "Tokenizer"]
