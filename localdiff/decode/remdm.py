"""remdm: ancestral sampling in which written tokens can be masked again, so that errors are corrected.

ReMDM (arXiv:2503.00307). With a(t) the share that is written at time t, from 0 at t = 1 to 1 at t = 0, a step from t to
s masks a written token again with probability sigma <= min(1, (1 - a(s)) / a(t)) and writes a masked one with
probability (a(s) - (1 - sigma) a(t)) / (1 - a(t)), so that the expected share stays a(s). remask says what sigma is:
  cap         at most remask_rate                      rescale   remask_rate times its largest value
  confidence  its largest value, shared out by the softmax of minus the probability that a token had when written;
              masks are written as without remasking
  loop        remask_rate while a(t) rests at LOOP_WRITTEN, between the times of LOOP; 0 before and after
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .decoder import Move, RewritingDecoder, Turn, stated, uniform

LOOP = (0.55, 0.05)  # the times between which tokens are taken back and written again
LOOP_WRITTEN = 0.9


class ReMdm(RewritingDecoder):
    """Memory: float64 [length], the probabilities that tokens had when they were written."""

    scores_from = "sampled"

    def step(self, turn: Turn) -> Move:
        steps, masked = stated(self.settings.steps), turn.masked
        had = np.zeros(len(turn.canvas)) if turn.memory is None else turn.memory.copy()
        before, after = (self._written((steps - done) / steps) for done in (turn.step - 1, turn.step))
        largest = min(1.0, (1 - after) / before) if before > 0 else 1.0
        drawn = uniform(self.seed, turn.step, turn.rows)
        again, share = self._chances(turn, largest, before == after, had[turn.rows])
        # what is certain must happen, whatever the rounding
        chance = 1.0 if turn.step >= steps else (after - (1 - share) * before) / (1 - before)
        write, back = masked & (drawn < chance), ~masked & (drawn < again)
        had[turn.rows[write]] = turn.proposal.probability[write]
        return Move(turn.rewrite(write, back), had, done=turn.step >= steps)

    def _chances(
        self, turn: Turn, largest: float, resting: bool, had: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Sigma of each row that is written, and sigma of the masked rows."""
        rate, kind = stated(self.settings.remask_rate), self.settings.remask
        if kind == "confidence":
            weight = np.where(turn.masked, 0.0, np.exp(-had))
            return largest * weight / max(float(weight.sum()), 1e-30), 0.0
        if kind == "rescale":
            sigma = rate * largest
        else:
            sigma = min(rate, largest) if kind == "cap" or resting else 0.0
        return np.full(len(turn.rows), sigma), sigma

    def _written(self, time: float) -> float:
        """a(t)."""
        if self.settings.remask != "loop":
            return 1 - time
        on, off = LOOP
        if time > on:
            return LOOP_WRITTEN * (1 - time) / (1 - on)
        return LOOP_WRITTEN if time > off else 1 - (1 - LOOP_WRITTEN) * time / off
