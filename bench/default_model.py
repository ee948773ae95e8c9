#!/usr/bin/env python3
"""How good a diffusion model is beside the autoregressive one that it was adapted from: the default model's targets.

    bench/default_model.py PARENT.gguf --data HELD-OUT... [--model MODEL.gguf] [--out FOLDER] [--name NAME]

Nats per token on held-out texts (bound against exact); the middle sentence of five filled in, where the parent is given
what stands before it only; generative perplexity under the parent, and entropy, against denoise steps; samples, not
picked: seeds 0, 1, ... over a list of openings. Writes JSON, a page and a plot. Both models draw at the same
temperature and from the same nucleus, without a repetition penalty, but for the row of the model's own settings and
the samples. Not here: training (tools/make_default_model), speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GAP, GAIN = 0.25, 0.30  # targets: nats per token over the parent at most, relative ROUGE-L over the parent at least
TEMPERATURES = (0.0, 0.9)
OPENINGS = ("Once upon a time", "One day", "The little dog", "It was raining", "In the forest")
STEPS = {"random-keep": (4, 8, 16, 32, 64, 128, 256)}  # of the decoder that takes any number of steps
SHOWN_HOLES = 10
SAMPLE_TOKENS = 96


def likelihoods(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for the first text, one for the first two and so on."""
    rows: list[dict[str, Any]] = []
    bounds: list[Any] = []
    exact: list[Any] = []
    for count, path in enumerate(options.data, 1):
        common = {"task": "nll", "data": (path,), "seed": 0}
        bounds += evaluate(options, options.model, draws=options.draws, **common).records
        exact += evaluate(options, options.parent, **common).records
        each = [np.array([one["nats"] / one["tokens"] for one in records]) for records in (bounds, exact)]
        rows.append(
            {
                "texts": [Path(name).name for name in options.data[:count]],
                "sequences": len(bounds),
                "tokens": sum(record["tokens"] for record in bounds),
                "model": mean_and_error(each[0].tolist()),
                "parent": mean_and_error(each[1].tolist()),
                "gap": mean_and_error((each[0] - each[1]).tolist()),
                "target": GAP,
            }
        )
    return rows


def infilling(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table, one row per temperature, and some holes as the model filled them."""
    from localdiff import GenerateOptions

    rows, shown = [], []
    for temperature in TEMPERATURES:
        asked = GenerateOptions(temperature=temperature)
        found = [
            evaluate(options, path, asked, task="infill", data=options.data, limit=options.stories)
            for path in (options.model, options.parent)
        ]
        scores = [[record.get("rougeL") for record in each.records] for each in found]
        both = np.array([pair for pair in zip(*scores, strict=True) if None not in pair])
        model, parent = both.mean(axis=0)
        rows.append(
            {
                "temperature": temperature,
                "items": len(both),
                **{f"model {name}": found[0].rows[0][name] for name in ("rouge1", "rouge2", "exact")},
                **{f"parent {name}": found[1].rows[0][name] for name in ("rouge1", "rouge2", "exact")},
                "model rougeL": float(model),
                "parent rougeL": float(parent),
                "difference": mean_and_error((both[:, 0] - both[:, 1]).tolist()),
                "gain": float(model / parent - 1),
                "target": GAIN,
            }
        )
        if not shown:
            shown = [record for record in found[0].records if "skipped" not in record][:SHOWN_HOLES]
    return rows, shown


def over_steps(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Decoder -> rows; the model's own decoder with its own number of steps, and the parent."""
    from localdiff import GenerateOptions

    common = {"task": "unconditional", "texts": options.texts, "judge": str(options.parent)}
    drawn = {"temperature": options.temperature, "top_p": options.top_p, "max_new_tokens": options.tokens}
    series = {}
    for decoder, steps in STEPS.items():
        asked = GenerateOptions(decoder=decoder, **drawn)
        fitting = dict.fromkeys(str(min(count, options.tokens)) for count in steps)
        series[decoder] = evaluate(options, options.model, asked, over_steps=",".join(fitting), **common).rows
    own, each = GenerateOptions(max_new_tokens=options.tokens), str(options.tokens)  # one step for each token
    series["the model's own"] = evaluate(options, options.model, own, over_steps=each, **common).rows
    series["parent"] = evaluate(options, options.parent, GenerateOptions(**drawn), **common).rows
    return series


def samples(options: argparse.Namespace) -> list[str]:
    import localdiff

    with localdiff.load(options.model) as model:
        made = []
        for seed in range(options.samples):
            opening = OPENINGS[seed % len(OPENINGS)]
            room = model.canvas_limit - len(model.tokenize(opening)) - 1
            made.append(opening + model.generate(opening, max_new_tokens=min(SAMPLE_TOKENS, room), seed=seed).text)
    return made


def evaluate(options: argparse.Namespace, path: Path | None, asked: Any = None, **named: Any) -> Any:
    from localdiff.evaluate import evaluate as measure

    def progress(what: str, done: int, total: int) -> None:
        print(f"\r\x1b[K{what} of {path or 'the embedded model'}: {done / total:.0%}", end="", file=sys.stderr)

    result = measure(path, None, asked, progress=progress, **named)
    print(file=sys.stderr)
    return result


def mean_and_error(values: Sequence[float]) -> list[float]:
    from localdiff.evaluate.metrics import mean_and_error as both

    return list(both(values))


def plot(series: dict[str, list[dict[str, Any]]], title: str, to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4))
    names = {"perplexity": "perplexity under the parent", "entropy": "entropy of a text's tokens, nats"}
    for panel, (name, label) in zip(panels, names.items(), strict=True):
        for what, rows in series.items():
            if what == "parent":
                panel.axhline(rows[0][name], color="0.4", linestyle=":", label="parent, one pass per token")
            else:
                panel.plot([row["passes"] for row in rows], [row[name] for row in rows], "o-", label=what)
        panel.set(xlabel="forward passes", ylabel=label, xscale="log")
        panel.set_xticks([4, 8, 16, 32, 64, 128, 256], ["4", "8", "16", "32", "64", "128", "256"])
        panel.minorticks_off()
        panel.legend(fontsize=7)
    panels[0].set_yscale("log")
    low, high = panels[0].get_ylim()
    ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500, 1000) if low <= tick <= high]
    panels[0].set_yticks(ticks, [str(tick) for tick in ticks])
    panels[0].minorticks_off()
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(to, dpi=110)
    pyplot.close(figure)


def page(result: dict[str, Any], picture: str) -> str:
    """The result as Markdown."""
    lines = [f"# {result['model']} beside its parent {result['parent']}", ""]
    lines += [
        "Nats per token of held-out texts, each line one text more; mean ± standard error over the sequences:", "",
        "| held-out texts | sequences | tokens | model, a bound | parent, exact | gap | target |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["nll"]:
        numbers = [f"{row[name][0]:.3f} ± {row[name][1]:.3f}" for name in ("model", "parent", "gap")]
        names = ", ".join(name.partition(".")[0] for name in row["texts"])
        lines.append(
            f"| {names} | {row['sequences']} | {row['tokens']:,} | {' | '.join(numbers)} | at most {row['target']} |"
        )
    lines += [
        "", "The middle sentence of five filled in, its length known; the parent sees what stands before it only:", "",
        "| temperature | passages | model ROUGE-L / 1 / 2 | parent ROUGE-L / 1 / 2 | difference | gain | target |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["infill"]:
        cells = [
            " / ".join(f"{100 * row[f'{who} {name}']:.1f}" for name in ("rougeL", "rouge1", "rouge2"))
            for who in ("model", "parent")
        ]
        difference, error = (100 * value for value in row["difference"])
        lines.append(
            f"| {row['temperature']} | {row['items']} | {cells[0]} | {cells[1]} | {difference:.1f} ± {error:.1f} "
            f"| {row['gain']:+.0%} | {row['target']:+.0%} |"
        )
    lines += ["", f"Texts from nothing ({result['settings']}), scored by the parent:", "",
              f"![perplexity and entropy]({picture})", "",
              "| decoder | passes | perplexity | entropy | tokens |", "|---|---|---|---|---|"]  # fmt: skip
    for what, rows in result["over_steps"].items():
        lines += [
            f"| {what} | {row['passes']:.0f} | {row['perplexity']:.1f} | {row['entropy']:.2f} | {row['tokens']:.0f} |"
            for row in rows
        ]
    lines += ["", f"## Holes as they were filled, at temperature {TEMPERATURES[0]}; what stood there in brackets", ""]
    lines += [f"- **{_folded(each['completion'])}** ({_folded(each['target'])})" for each in result["holes"]]
    lines += ["", f"## {len(result['samples'])} samples, seeds 0 to {len(result['samples']) - 1}, not picked", ""]
    lines += [f"{seed}. {_folded(text)}" for seed, text in enumerate(result["samples"])]
    return "\n".join(lines) + "\n"


def _folded(text: str) -> str:
    return " ".join(text.split())


def main(arguments: Sequence[str] | None = None) -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(prog="bench/default_model.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parent", type=Path, help="the autoregressive GGUF file")
    parser.add_argument("--model", type=Path, help="default: the embedded model")
    parser.add_argument("--data", nargs="+", required=True, help="held-out texts")
    parser.add_argument("--draws", type=int, default=16, help="noise draws per sequence")
    parser.add_argument("--stories", type=int, default=200, help="passages to fill")
    parser.add_argument("--texts", type=int, default=32, help="texts for each number of steps")
    parser.add_argument("--tokens", type=int, help="of such a text (default: the canvas)")
    parser.add_argument("--temperature", type=float, default=0.9, help="of such a text")
    parser.add_argument("--top-p", type=float, default=0.9, help="of such a text")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--name", default="default-model", help="of the files written")
    options = parser.parse_args(arguments)
    options.data = tuple(options.data)

    from localdiff import __version__
    from localdiff.evaluate.subject import open_subject

    with open_subject(options.model) as subject, open_subject(options.parent) as parent:
        if subject.exact or not parent.exact:
            parser.error("expected a diffusion model, and an autoregressive parent")
        names = {"model": subject.model.name, "parent": parent.model.name}
        options.tokens = options.tokens or min(256, subject.model.canvas_limit - 1)
    infill, holes = infilling(options)
    result = {
        "bench": "default_model",
        "localdiff": __version__,
        **names,
        "data": [Path(each).name for each in options.data],
        "settings": f"{options.texts} each, temperature {options.temperature}, top-p {options.top_p}",
        "nll": likelihoods(options),
        "infill": infill,
        "holes": holes,
        "over_steps": over_steps(options),
        "samples": samples(options),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    plot(result["over_steps"], f"{names['model']}, {options.texts} texts each", options.out / f"{options.name}.png")
    (options.out / f"{options.name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    text = page(result, f"{options.name}.png")
    (options.out / f"{options.name}.md").write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps(result, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
