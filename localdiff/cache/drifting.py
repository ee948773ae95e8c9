"""dllm: the rows whose values moved most when they were last computed are computed again; all rows every few steps.

After dLLM-Cache (arXiv:2506.06295), where between full passes each layer recomputes the tokens whose values drifted
most from the kept ones. Here the choice is made once for all layers, before the pass, from what the engine reported
when a row was last computed. Written tokens and scored rows are computed in any case, cache_window rows besides.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Int32
from ..decode.decoder import stated
from .delayed import refresh_due
from .state import CachePolicy, View


class Drifting(CachePolicy):
    measures = True

    def rows(self, view: View) -> Int32 | None:
        if refresh_due(view, stated(self.settings.cache_refresh)):
            return None
        needed = np.union1d(np.flatnonzero(view.stale), view.source)
        drift = view.state.drift.copy()
        drift[needed] = -1.0
        window = min(stated(self.settings.cache_window), len(drift) - len(needed))
        most = np.argsort(-drift, kind="stable")[:window]  # of equal ones the leftmost
        return np.union1d(needed, most).astype(np.int32)
