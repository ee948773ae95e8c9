"""prophet: llada that stops early and writes everything once the model has made up its mind.

Prophet (arXiv:2508.19982): at each step the gap between the largest and the second largest logit is averaged over all
masked positions. Where it reaches the bound of the phase - the bounds fall with the share of the steps that is past -
all masked positions are written at once; else the step is one of llada.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..canvas import Canvas
from .decoder import Look, Move, Turn, stated
from .llada import Llada
from .order import log_probability

PHASES = ((1 / 3, 7.5), (2 / 3, 5.0), (1.0, 2.5))  # until this share of the steps: gap in nats


class Prophet(Llada):
    def look(self, canvas: Canvas, step: int, memory: Any) -> Look:
        return replace(super().look(canvas, step, memory), rows=canvas.masked, alternatives=2)

    def step(self, turn: Turn) -> Move:
        likeliest = log_probability(turn.proposal.alternative_probability)  # [n, 2]
        past = turn.step / stated(self.settings.steps)
        bound = next(gap for until, gap in PHASES if past <= until)
        if float(np.mean(likeliest[:, 0] - likeliest[:, 1])) >= bound:
            return Move(turn.write(np.ones(len(turn.rows), bool)))
        block = super().look(turn.canvas, turn.step, None).rows
        return super().step(turn.among(np.isin(turn.rows, block)))
