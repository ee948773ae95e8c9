"""active: between full passes only the set of rows that the next steps will likely use.

After a full pass, the rows of tokens just written are computed, and those that predict the cache_window masked
positions which were surest when they were last scored; the other masked positions keep their proposals. All rows every
cache_refresh steps. That few undecoded positions matter at a time is what Window-Diffusion and others observe; this is
the plain form of the idea, not one of theirs.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Int32
from ..decode.table import Settings
from .delayed import refresh_due
from .state import View


class Active:
    exact = False
    narrows = True

    def __init__(self, settings: Settings) -> None:
        assert settings.cache_window is not None
        assert settings.cache_refresh is not None
        self._window, self._refresh = settings.cache_window, settings.cache_refresh

    def rows(self, view: View) -> Int32 | None:
        if refresh_due(view, self._refresh):
            return None
        never = np.isnan(view.confidence)  # a position that has no proposal to keep
        count = max(self._window, int(never.sum()))
        surest = np.argsort(np.where(never, -np.inf, -view.confidence), kind="stable")[:count]
        return np.union1d(np.flatnonzero(view.stale), view.source[surest]).astype(np.int32)
