"""The exceptions of localdiff.

Each message is one sentence that names the thing, what was found, what was expected and what to do. counted() is for
the numbers in them.
"""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 token`, `2 tokens`, `12,000 tokens`: a number in a sentence; plural where it is not made with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


class LocaldiffError(Exception):
    """Base of every error that localdiff raises on purpose."""


class ModelFileError(LocaldiffError):
    """A model file or checkpoint is missing, damaged, unsupported or incomplete."""


class OptionError(LocaldiffError, ValueError):
    """An option has a value that cannot be honoured."""


class EngineError(LocaldiffError):
    """The engine refused a request or could not finish it."""


class Cancelled(LocaldiffError):
    """The caller cancelled the work; the session stays usable."""
