"""What is refused because it combines badly: one table, each row with the reason that users read.

Looked through in order; the first row that fits is raised. Whether a decoder knows an option at all is table.py's
matter, which cache goes with it cache/table.py's, whether its settings fit a canvas that of the decoder's check().
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import OptionError
from ..spec import DiffusionSpec

if TYPE_CHECKING:
    from .table import Settings


@dataclass(frozen=True)
class Combination:
    """What is about to run; asked: the options that the caller gave; in_blocks: the decoders that work in blocks."""

    settings: Settings
    traits: frozenset[str]
    spec: DiffusionSpec
    asked: frozenset[str]
    in_blocks: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A combination that works badly, and why; {decoder}, {cache}, {constraint} and {in_blocks} are filled in."""

    when: Callable[[Combination], bool]
    reason: str


def _exact(settings: Settings) -> bool:
    return settings.cache in ("exact", "block")


REFUSALS = (
    Refusal(
        lambda it: "guidance" in it.asked and not _exact(it.settings),
        "guidance compares two canvases, and neither must be an approximation, but the cache {cache} is one; leave the "
        "cache or the guidance out",
    ),
    Refusal(
        lambda it: "guidance" in it.asked and it.settings.report_drift,
        "report_drift compares with a second canvas, and so does guidance; leave one of them out",
    ),
    Refusal(
        lambda it: "guidance" in it.asked and bool({"reorders", "noise"} & it.traits),
        "the decoder {decoder} cannot show the model masks in place of the prompt, which guidance needs; choose "
        "another one",
    ),
    Refusal(
        lambda it: "negative_prompt" in it.asked and "guidance" not in it.asked,
        "negative_prompt says what guidance leads away from; give guidance too, such as 1",
    ),
    Refusal(
        lambda it: (
            it.settings.repetition_penalty != 1 and bool({"rewrites", "revises"} & it.traits)
        ),
        "the decoder {decoder} looks at written tokens again, and repetition_penalty would count each of them as a "
        "repetition of itself; choose another decoder",
    ),
    Refusal(
        lambda it: it.spec.attention == "block_causal" and "blocks" not in it.traits,
        "the decoder {decoder} does not keep to the blocks that this model finishes one after the other "
        "(block_causal attention); choose a decoder that works in blocks: {in_blocks}",
    ),
    Refusal(
        lambda it: "reorders" in it.traits and it.spec.attention != "causal",
        "the decoder {decoder} lets the model read known tokens before the masks, which needs a model with causal "
        "attention; choose another decoder",
    ),
    Refusal(
        lambda it: "reorders" in it.traits and it.spec.logit_shift,
        "the decoder {decoder} changes the order of the tokens, so no row can predict the next position (shift=1); "
        "choose another decoder",
    ),
    Refusal(
        lambda it: ("noise" in it.traits) != (it.spec.process == "uniform"),
        "a model of masks (process=absorbing) and a decoder of random tokens do not go together, nor the other way "
        "round, but the decoder is {decoder}; for process=uniform choose entropy-bound, else another one",
    ),
    Refusal(
        lambda it: it.settings.report_drift and "noise" in it.traits,
        "the decoder {decoder} goes with caches that change nothing, so there is no drift to report; leave "
        "report_drift out",
    ),
    Refusal(
        lambda it: it.settings.report_drift and it.settings.cache == "exact",
        "report_drift says how far a cache is off, but the cache exact computes everything; give a cache too, such as "
        "dual",
    ),
    Refusal(
        lambda it: it.settings.constraint is not None and it.settings.edit_threshold is not None,
        "the decoder {decoder} replaces tokens one by one, so that a text that matches {constraint} would break; "
        "choose llada2, which does not",
    ),
    Refusal(
        lambda it: it.settings.constraint is not None and bool(it.traits & {"rewrites", "revises", "resizes", "noise"}),
        "the decoder {decoder} takes tokens back or moves them, so that a text that matches {constraint} would break; "
        "choose another decoder",
    ),
    Refusal(
        lambda it: it.settings.verify_threshold is not None and it.spec.attention == "causal",
        "the decoder {decoder} verifies tokens by what stands after them, which a model with causal attention never "
        "sees; choose another decoder",
    ),
    Refusal(
        lambda it: it.settings.verify_threshold is not None and "guidance" in it.asked,
        "the decoder {decoder} verifies tokens without guidance, so it would take back what guidance leads to; leave "
        "guidance out or choose another decoder",
    ),
    Refusal(
        lambda it: it.settings.constraint is not None and it.settings.decoder == "credit",
        "the decoder {decoder} writes other tokens than those that {constraint} allows together; choose threshold",
    ),
    Refusal(
        lambda it: it.settings.constraint not in (None, "avoid") and it.settings.end_token == "never",
        "end_token never keeps a text that matches {constraint} from ending; leave it out",
    ),
    Refusal(
        lambda it: it.settings.constraint not in (None, "avoid") and "stop" in it.asked,
        "stop cuts the text off, so that it would no longer match {constraint}; leave it out",
    ),
    Refusal(
        lambda it: it.settings.constraint is not None and it.settings.cache == "active",
        "the cache active keeps proposals that {constraint} no longer allows once other tokens are written; choose "
        "another cache",
    ),
    Refusal(
        lambda it: it.settings.constraint is not None and it.settings.grow is not None,
        "{constraint} is matched over a canvas of one length; leave grow out",
    ),
    Refusal(
        lambda it: it.settings.grow is not None and "resizes" in it.traits,
        "the decoder {decoder} decides itself how the canvas grows; leave grow out or choose another decoder",
    ),
    Refusal(
        lambda it: it.settings.grow is not None and (it.settings.length_beam or 1) > 1,
        "grow lengthens one text until it ends, length_beam compares texts of set lengths; leave one of them out",
    ),
    Refusal(
        lambda it: "deadline" in it.asked and (it.settings.length_beam or 1) > 1,
        "a deadline may fill a text before its tokens are sure, so lengths cannot be compared; leave deadline or "
        "length_beam out",
    ),
    Refusal(
        lambda it: it.settings.order == "random" and bool(it.settings.order_temperature),
        "order_temperature has no effect on the order random; leave one of them out",
    ),
    Refusal(
        lambda it: it.settings.decoder == "rnd1" and {"steps", "entropy_bound"} <= it.asked,
        "steps and entropy_bound both say how many tokens {decoder} writes at a step; leave one of them out",
    ),
    Refusal(
        lambda it: it.settings.decoder == "sdar" and it.settings.order != "dynamic" and "threshold" in it.asked,
        "threshold counts only for the order dynamic of {decoder}; leave one of them out",
    ),
    Refusal(
        lambda it: it.settings.decoder == "sdar" and it.settings.order != "entropy" and "entropy_bound" in it.asked,
        "entropy_bound counts only for the order entropy of {decoder}; give order entropy, or leave it out",
    ),
    Refusal(
        lambda it: it.settings.order == "entropy" and "steps_per_block" in it.asked,
        "steps_per_block has no effect on the order entropy of {decoder}, which goes by entropy_bound; leave it out",
    ),
    Refusal(
        lambda it: it.settings.decoder == "remdm" and it.settings.remask == "confidence" and "remask_rate" in it.asked,
        "remask_rate has no effect with remask confidence, which takes the largest rate; leave one of them out",
    ),
)


def check(it: Combination) -> None:
    """Raise OptionError for the first row that fits."""
    for refusal in REFUSALS:
        if refusal.when(it):
            words = {"decoder": it.settings.decoder, "cache": it.settings.cache, "in_blocks": ", ".join(it.in_blocks)}
            raise OptionError(refusal.reason.format(constraint=it.settings.constraint, **words))


# decoders that go on until nothing is masked, however few of the tokens that they choose are written
_PATIENT = (
    "threshold", "factor", "llada", "llada2", "klass", "eb-sampler", "localleap", "hierarchical", "adablock", "wedlm",
    "spread",
)  # fmt: skip


def unfit_for_prefixes(settings: Settings) -> str | None:
    """Why the decoder cannot write from left to right, where a constraint needs it; None where it can."""
    if settings.decoder in _PATIENT:
        return None
    return f"the decoder {settings.decoder} counts its steps or tokens; choose one of {', '.join(_PATIENT)}"
