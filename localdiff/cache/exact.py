"""exact: every row is recomputed in every pass. No approximation, nothing saved; what the others are compared with."""

from __future__ import annotations

from ..decode.table import Settings
from .state import View


class Exact:
    exact = True
    narrows = False

    def __init__(self, settings: Settings) -> None:
        """It has no parameters."""

    def rows(self, view: View) -> None:
        return None
