#!/usr/bin/env python3
"""What a constraint costs: generations that must match JSON schemas and regexes beside free ones, decoder by decoder.

    bench/constraints.py [MODEL.gguf] [--decoders NAME...] [--cases 6] [--rounds 5] [--tokens 100] [--samples 1]
                         [--temperature 0] [--clock wall|cpu] [--threads N]

Schemas and regexes are the tests' (constraint_cases.py), those that automata can follow and that fit; each is compiled
before anything is measured, which is reported by itself. In a round every case takes its turn between two free
generations, and its ratios are to their mean. `a pass` compares time per denoise step, where there are enough of them
to tell; `a text` the whole generation, where their number counts too, which the text decides. Medians over the rounds,
then over the cases. Writes bench/results/DATE-constraints.json and .md; nothing fails because something was slow. Not
here: whether texts are valid (tests/test_constrain_model.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from constraint_cases import regex_case, schema_case  # noqa: E402

import localdiff  # noqa: E402
from localdiff import GenerateOptions, Model  # noqa: E402
from localdiff.bench.card import machine_card  # noqa: E402
from localdiff.decode.table import DECODERS  # noqa: E402
from localdiff.errors import OptionError  # noqa: E402

KINDS: dict[str, Callable[[int], Any]] = {"json_schema": schema_case, "regex": regex_case}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Cases = list[dict[str, Any]]
PROMPT = "Once upon a time"
FEW = 10  # passes: below, what a generation begins and ends with is most of its time


def writing(model: Model) -> list[str]:
    """The decoders that take constraints with this model."""

    def takes(name: str) -> bool:
        try:
            model.compose(PROMPT, GenerateOptions(decoder=name, regex="a+"))
        except OptionError:
            return False
        return True

    return [name for name in DECODERS if takes(name)]


def cases(model: Model, kind: str, wanted: int, tokens: int) -> Iterator[dict[str, Any]]:
    """The first `wanted` cases that fit into `tokens` tokens and leave the decoder a choice; compiled."""
    found = 0
    for seed in count():
        if found == wanted:
            return
        started = time.perf_counter()
        options = {kind: KINDS[kind](seed)}
        try:
            # topk writes wherever it likes, so that it is refused where a parser is needed
            result = model.generate(PROMPT, decoder="topk", max_new_tokens=tokens, **options)
        except OptionError:
            continue
        if result.nfe >= tokens // 4:
            found += 1
            seconds = round(time.perf_counter() - started, 3)
            yield {"kind": kind, "seed": seed, "options": options, "first_seconds": seconds}


def turn(model: Model, clock: str, options: dict[str, Any]) -> tuple[float, int]:
    """Seconds of a generation, and its passes."""
    read = CLOCKS[clock]
    started = read()
    found = model.generate(PROMPT, **options)
    return read() - started, max(each.nfe for each in (found if isinstance(found, list) else [found]))


def measure(model: Model, given: argparse.Namespace, decoder: str, chosen: Cases) -> list[dict[str, Any]]:
    """For each case its ratios to free generations, round by round."""
    common = {
        "decoder": decoder, "max_new_tokens": given.tokens, "temperature": given.temperature, "seed": 1,
        "samples": given.samples,
    }  # fmt: skip
    for case in chosen:
        turn(model, given.clock, common | case["options"])
    taken: list[list[tuple[float, float, float, int]]] = [[] for _ in chosen]
    for _ in range(given.rounds):
        before = turn(model, given.clock, common)
        for case, found in zip(chosen, taken, strict=True):
            seconds, passes = turn(model, given.clock, common | case["options"])
            after = turn(model, given.clock, common)
            free, free_pass = (before[0] + after[0]) / 2, (before[0] / before[1] + after[0] / after[1]) / 2
            found.append((seconds / passes / free_pass, seconds / free, 1e3 * seconds / passes, passes))
            before = after
    rows = []
    for case, found in zip(chosen, taken, strict=True):
        of_pass, of_text, ms, passes = zip(*found, strict=True)
        rows.append(
            {
                "decoder": decoder, "kind": case["kind"], "seed": case["seed"], "passes": passes[0],
                "ms": round(statistics.median(ms), 3), "pass": spread(of_pass), "text": spread(of_text),
            }
        )  # fmt: skip
    return rows


def spread(values: tuple[float, ...]) -> list[float]:
    """Median, least, most."""
    return [round(each, 3) for each in (statistics.median(values), min(values), max(values))]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each decoder and kind the medians over the cases, and the least and the most of the cases' medians."""
    groups = dict.fromkeys((row["decoder"], row["kind"]) for row in rows)
    found = []
    for decoder, kind in groups:
        of_group = [row for row in rows if (row["decoder"], row["kind"]) == (decoder, kind)]
        many = [row for row in of_group if row["passes"] >= FEW]
        ratios = {
            what: spread(tuple(row[what][0] for row in chosen)) if chosen else None
            for what, chosen in (("pass", many), ("text", of_group))
        }
        found.append({"decoder": decoder, "kind": kind, "cases": len(of_group)} | ratios)
    return found


def markdown(result: dict[str, Any]) -> str:
    card, settings = result["machine"], result["settings"]
    lines = [
        f"{card['cpu']}, {card['threads']} threads, kernel row {card['isa']}, localdiff {card['localdiff']}, "
        f"{card['date']}; other load on the machine {card['load']}.",
        f"{settings['model']}, {settings['tokens']} tokens, {settings['samples']} canvases at a time, temperature "
        f"{settings['temperature']:g}; {settings['clock']} time with a constraint over without, medians of "
        f"{settings['rounds']} alternating rounds, then of the cases (min-max of the cases).",
        "",
        "| decoder | constraint | cases | a pass | a text |",
        "|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        ratios = ("{:.2f} ({:.2f}-{:.2f})".format(*each) if each else "-" for each in (row["pass"], row["text"]))
        lines.append(f"| {row['decoder']} | {row['kind']} | {row['cases']} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a file or the name of a model (default: the one of the package)")
    parser.add_argument("--decoders", nargs="+", help="default: all that take constraints")
    parser.add_argument("--cases", type=int, default=6, help="schemas, and as many regexes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1, help="canvases that are denoised together")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--name", default=f"{datetime.date.today()}-constraints")
    given = parser.parse_args()

    model = localdiff.load(given.model, device="cpu", threads=given.threads)
    known = writing(model)
    if refused := set(given.decoders or ()) - set(known):
        parser.error(f"{', '.join(refused)} take no constraints with this model, expected some of {', '.join(known)}")
    card = machine_card(model.info.isa, model.threads or len(os.sched_getaffinity(0)))
    chosen = [case for kind in KINDS for case in cases(model, kind, given.cases, given.tokens)]
    rows: list[dict[str, Any]] = []
    for decoder in given.decoders or known:
        rows += measure(model, given, decoder, chosen)
        for row in summary(rows[-len(chosen) :]):
            print(row, file=sys.stderr)
    names = ("cases", "rounds", "tokens", "samples", "temperature", "clock")
    settings = {name: getattr(given, name) for name in names} | {"model": model.name}
    first = {f"{case['kind']} {case['seed']}": case["first_seconds"] for case in chosen}
    result = {"machine": card, "settings": settings, "first": first, "summary": summary(rows), "rows": rows}
    given.results.mkdir(parents=True, exist_ok=True)
    stem = given.results / given.name
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))
    print(json.dumps({"summary": result["summary"], "files": [f"{given.name}.json", f"{given.name}.md"]}))


if __name__ == "__main__":
    main()
