"""active: between full passes only the set of rows that the next steps will likely use.

After a full pass, the rows of tokens just written are computed, and those that predict the cache_window masked
positions which were surest when they were last scored; the other masked positions keep their proposals. All rows every
cache_refresh steps. That few undecoded positions matter at a time is what Window-Diffusion and others observe; this is
the plain form of the idea, not one of theirs.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Int32
from ..decode.decoder import stated
from .delayed import refresh_due
from .state import CachePolicy, View


class Active(CachePolicy):
    narrows = True

    def rows(self, view: View) -> Int32 | None:
        if refresh_due(view, stated(self.settings.cache_refresh)):
            return None
        never = np.isnan(view.confidence)  # a position that has no proposal to keep
        count = max(stated(self.settings.cache_window), int(never.sum()))
        surest = np.argsort(np.where(never, -np.inf, -view.confidence), kind="stable")[:count]
        return np.union1d(np.flatnonzero(view.stale), view.source[surest]).astype(np.int32)
