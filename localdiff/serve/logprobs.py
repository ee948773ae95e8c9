"""Log-probabilities in OpenAI's two shapes, from the details of a text's tokens.

They are those that tokens had when they were written, under the distribution that the decoder ranks by. A token whose
probability is not known, since the decoder chose it otherwise, has NO_LOGPROB, as very unlikely ones have with OpenAI.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..details import TokenDetail

NO_LOGPROB = -9999.0


def of_chat(details: Sequence[TokenDetail]) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""

    def entry(text: str, probability: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": _log(probability), "bytes": list(text.encode("utf-8", "replace"))}

    content = [
        {**entry(each.text, each.probability),
         "top_logprobs": [entry(other.text, other.probability) for other in each.alternatives]}
        for each in details
    ]  # fmt: skip
    return {"content": content, "refusal": None}


def of_completion(details: Sequence[TokenDetail]) -> dict[str, Any]:
    """The `logprobs` of a completion choice."""
    offsets, at = [], 0
    for each in details:
        offsets.append(at)
        at += len(each.text)
    return {
        "tokens": [each.text for each in details],
        "token_logprobs": [_log(each.probability) for each in details],
        "top_logprobs": [{other.text: _log(other.probability) for other in each.alternatives} for each in details],
        "text_offset": offsets,
    }


def _log(probability: float | None) -> float:
    return NO_LOGPROB if not probability else round(math.log(probability), 6)
