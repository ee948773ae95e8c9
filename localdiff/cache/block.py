"""block: rows whose state cannot have changed are kept. Exact, for attention that does not reach to the end.

With block-causal attention the state of a position depends on its own and earlier blocks only, with a causal prompt
that of the prompt on nothing behind it (SDAR, arXiv:2510.06303; BD3-LM, arXiv:2503.09573). What saw no stale position
is kept; later blocks are not computed before something in them is scored. The same rule makes a prompt that an earlier
generation has computed cost nothing, and recomputes what a decoder changes in a finished block.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Int32
from .state import CachePolicy, View


class Block(CachePolicy):
    exact = True

    def rows(self, view: View) -> Int32:
        stale = np.flatnonzero(view.stale)
        first = stale[0] if len(stale) else len(view.canvas)
        needed = np.arange(len(view.canvas)) < view.reach[view.source[-1]]
        return np.flatnonzero((view.reach > first) & (needed | view.state.known)).astype(np.int32)
