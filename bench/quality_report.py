"""The result of quality.py as a table in Markdown and as a plot. Reads the JSON only; nothing is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLUMNS = (
    "| options | forwards | tokens per forward | seconds | tokens/s | perplexity | distinct-2 | length | agreement | "
    "perplexity at 0 | distinct-2 at 0 |"
)


def markdown(result: dict[str, Any]) -> str:
    sampling = ", ".join(f"{name} {value:g}" for name, value in result["samplings"]["sampled"].items())
    lines = [
        f"{result['model']}, {result['prompts']} held-out prompts of {result['prompt_tokens']} tokens, at most "
        f"{result['answer_tokens']} new tokens unless a row says otherwise; perplexity under {result['judge']} "
        f"(causal) with its standard error, sampled with {sampling} for all rows.",
        "Agreement: share of tokens that exact decoding, one token a step (decoder=llada), gives at temperature 0 too; "
        "seconds: of one text alone.",
    ]
    if card := result.get("machine"):
        lines.append(
            f"Seconds: {card['cpu']}, {card['threads']} threads, kernel row {card['isa']}, {result['math']} "
            f"arithmetic, {card['date']}; load {card['load']} when they were taken."
        )
    lines += ["", COLUMNS, "|" + "---|" * (COLUMNS.count("|") - 1)]
    for row, found in result["rows"].items():
        sampled, greedy, timed = (found.get(part, {}) for part in ("sampled", "greedy", "timed"))
        perplexity = f"{sampled['perplexity']:.2f} ± {sampled['perplexity_error']:.2f}" if sampled else "-"
        cells = [
            row,
            _cell(sampled, "forwards", "{:.1f}"),
            _cell(sampled, "tokens_per_forward", "{:.2f}"),
            _cell(timed, "seconds", "{:.3f}"),
            _cell(timed, "answer_tokens_per_second", "{:.0f}"),
            perplexity,
            _cell(sampled, "distinct_2", "{:.3f}"),
            _cell(sampled, "answer_tokens", "{:.1f}"),
            _cell(greedy, "agreement", "{:.1%}"),
            _cell(greedy, "perplexity", "{:.2f}"),
            _cell(greedy, "distinct_2", "{:.3f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if result["refused"]:
        lines += ["", "Refused:", ""]
        lines += [f"- `{row}`: {reason}" for row, reason in result["refused"].items()]
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, Any], name: str, form: str) -> str:
    return form.format(found[name]) if name in found else "-"


def plot(result: dict[str, Any], to: Path) -> None:
    """Perplexity against tokens per forward, and against tokens per second where that was timed; rows by number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_of = {
        "tokens per forward pass": lambda found: found["sampled"]["tokens_per_forward"],
        "answer tokens per second": lambda found: found.get("timed", {}).get("answer_tokens_per_second"),
    }
    rows = {row: found for row, found in result["rows"].items() if "sampled" in found}
    figure, axes = pyplot.subplots(1, 2, figsize=(17, 7), sharey=True)
    for panel, (label, speed) in zip(axes, axes_of.items(), strict=True):
        panel.set(xlabel=label, xscale="log", yscale="log")
        panel.grid(alpha=0.3, which="both")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
        points = []
        for number, found in enumerate(rows.values(), 1):
            if (x := speed(found)) is None:
                continue
            cached = found["sampled"]["settings"]["cache"] not in ("exact", "block")
            y = found["sampled"]["perplexity"]
            panel.plot(x, y, "s" if cached else "o", color="tab:orange" if cached else "tab:blue", markersize=4)
            points.append((number, x, y))
        for numbers, x, y in _together(points, panel.transData.transform):
            panel.annotate(_ranges(numbers), (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes[0].set_ylabel(f"perplexity under {result['judge']}, sampled (lower is likelier)")
    named = (f"{number}  {row.replace('decoder=', '')}" for number, row in enumerate(rows, 1))
    figure.suptitle(f"{result['model']}: speed against quality; squares: with an approximating cache", fontsize=10)
    figure.tight_layout(rect=(0, 0, 0.8, 1))
    figure.text(0.805, 0.93, "\n".join(named), fontsize=7, va="top")
    figure.savefig(to, dpi=110)
    pyplot.close(figure)


def _together(points: list[tuple[int, float, float]], place: Any) -> list[tuple[list[int], float, float]]:
    """Points whose labels would overlap, as one: their numbers, and where the first of them lies."""
    groups: list[tuple[list[int], float, float]] = []
    for number, x, y in sorted(points, key=lambda point: (point[2], point[1])):
        for numbers, x0, y0 in groups:
            right, up = abs(place((x, y)) - place((x0, y0)))
            if right < 45 and up < 10:
                numbers.append(number)
                break
        else:
            groups.append(([number], x, y))
    return groups


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
