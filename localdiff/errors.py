"""The exceptions of localdiff.

Each message is one sentence that names the thing, what was found, what was expected and what to do.
"""


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
