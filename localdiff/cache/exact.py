"""exact: every row is recomputed in every pass. No approximation, nothing saved; what the others are compared with."""

from __future__ import annotations

from .state import CachePolicy, View


class Exact(CachePolicy):
    exact = True

    def rows(self, view: View) -> None:
        return None
