"""dkv: a written token's row is computed once more, then kept; masked rows always, all rows every refresh steps.

dKV-Cache-Decode (arXiv:2505.15781): the state of a token changes most in the step in which it is written, so it is
cached one step late. Masked positions are never cached. cache_refresh 0 means that only the first pass is a full one.
"""

from __future__ import annotations

import numpy as np

from ..canvas import MASKED, Int32
from ..decode.decoder import stated
from .state import CachePolicy, View


def refresh_due(view: View, interval: int) -> bool:
    """Whether a row was never computed, or the last full pass lies `interval` steps back (0 = never again)."""
    return not view.state.known.all() or 0 < interval <= view.step - view.full_pass


class Delayed(CachePolicy):
    def rows(self, view: View) -> Int32 | None:
        if refresh_due(view, stated(self.settings.cache_refresh)):
            return None
        return np.flatnonzero((view.canvas.state == MASKED) | view.stale).astype(np.int32)
