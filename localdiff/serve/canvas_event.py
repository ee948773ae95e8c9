"""Canvas messages: one denoise step of one text, token by token, for those who show how a text comes about.

{"object": "canvas", "index": which text, "step": from 1, "of": steps at most or null, "cells": [[kind, text,
probability, alternatives], ...]} with the kinds "given", "settled", "fresh" (written in this step) and "masked"; the
probability that the token had when it was written, null where unknown; alternatives [[text, probability], ...],
likeliest first, where the request has `alternatives`. Text before the answer is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..details import TokenDetail
    from ..generation import DenoiseEvent


def canvas_event(index: int, event: DenoiseEvent) -> dict[str, Any]:
    """The message of an event; index: which text of the answer."""
    cells = [_cell(detail) for detail in event.token_details]
    steps = event.page.job.settings.steps
    return {"object": "canvas", "index": index, "step": event.step, "of": steps, "cells": cells}


def _cell(detail: TokenDetail) -> list[Any]:
    cell = [detail.state, detail.text, None if detail.probability is None else round(detail.probability, 4)]
    if not detail.alternatives:
        return cell
    return [*cell, [[each.text, round(each.probability, 4)] for each in detail.alternatives]]
