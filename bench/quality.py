#!/usr/bin/env python3
"""Speed and quality of decoders and caches on real weights: one table, one plot.

    bench/quality.py MODEL.gguf --judge AR.gguf --data HELD-OUT-TEXT... [--rows SET... | --row "OPTIONS"...]
    bench/quality.py MODEL.gguf --judge AR.gguf --data HELD-OUT-TEXT... --timed [--rows SET... | --row ...]

Prompts are stretches of held-out text, answers are made in batches. Every row is run twice: at temperature 0, where its
tokens are compared with those of exact decoding, one token a step (agreement), and sampled at the temperature and top-p
of the model's own record, the same for all rows so that they compare. Perplexity is that of the answers, their prompts
given, under the judge, an autoregressive model of the same vocabulary that this engine runs with causal attention.
Distinct-2 is the share of different pairs of tokens within an answer: a low perplexity with a low one is repetition.
--timed measures the seconds instead, one prompt at a time, in turns over the rows. What is in the JSON already is not
done again. The set blocks is for models with block-causal attention, whose results get a file of their own: the block
decoders, and what the exact block cache saves. Not here: the speed of a forward pass (compare.py), choosing
settings (localdiff tune).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import lzma
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quality_report import markdown, plot

import localdiff
from localdiff.atomic import atomic_file
from localdiff.bench.card import machine_card
from localdiff.cache.table import CACHES
from localdiff.decode.table import DECODERS
from localdiff.errors import OptionError
from localdiff.generation import Generation
from localdiff.loading import EMBEDDED
from localdiff.options import GenerateOptions
from localdiff.profiles import PRESETS
from localdiff.quality import agreement, distinct, judged, perplexity

ROOT = Path(__file__).resolve().parent.parent
SEED = 1
EXACT = "decoder=llada"  # one token a step, no cache: what the others are compared with
FASTER = tuple(f"preset={name}" for name in PRESETS if name != "exact")
CROSSED = (EXACT, "decoder=dream", "preset=balanced")  # one by one in blocks, one by one anywhere, many at once
LENGTHS = (32, 64, 128)
LONG = "max_new_tokens=240"  # with 16 given tokens a canvas of 256
LOWER = "threshold=0.25"  # small models are rarely as sure as the defaults ask
FULL = "decoder=llada block_length=32 end_token=never"  # no text ends early, so that the passes are the same


def row_sets() -> dict[str, list[str]]:
    """Rows by set; a row is the options it sets."""
    approximate = [f"cache={name}" for name in CACHES if name not in ("exact", "block")]
    each_decoder = [f"decoder={name}" for name in DECODERS]
    return {
        "presets": [f"max_new_tokens={length} preset={name}" for length in LENGTHS for name in PRESETS],
        "decoders": [EXACT, *(each for each in each_decoder if each != EXACT)],
        "caches": ["preset=balanced cache=exact", *(f"{row} {cache}" for row in CROSSED for cache in approximate)],
        "long": [f"{LONG} {each}" for each in (FULL, *(f"{FULL} {cache}" for cache in approximate), EXACT, *FASTER)],
        "blocks": [
            *(EXACT, f"{EXACT} cache=exact", *FASTER),
            *(each for each in each_decoder if each != EXACT and "blocks" in DECODERS[each.partition("=")[2]].traits),
            *(f"decoder=sdar order={order}" for order in DECODERS["sdar"].choices["order"] if order != "dynamic"),
            *(f"decoder=sdar order=static steps_per_block={steps}" for steps in (2, 1)),
            *(f"decoder={name} {LOWER}" for name in ("threshold", "sdar", "llada2", "llada2.1", "wino")),
        ],
        "pairs": [f"{decoder} {cache}" for decoder in each_decoder for cache in approximate],
    }


def options_of(row: str) -> dict[str, Any]:
    """The options of a row, words as its fields want them."""
    types = {field.name: str(field.type).removesuffix(" | None") for field in dataclasses.fields(GenerateOptions)}
    found: dict[str, Any] = {}
    for word in row.split():
        name, _, value = word.partition("=")
        found[name] = {"int": int, "float": float, "str": str}[types[name]](value)
    return found


def prompts_of(data: Sequence[Path], model: localdiff.Model, length: int, count: int) -> list[list[int]]:
    """`count` stretches of `length` tokens, evenly spread over the documents."""
    stretches = []
    for path in data:
        text = lzma.decompress(path.read_bytes()).decode() if path.suffix == ".xz" else path.read_text()
        for document in text.split("<|endoftext|>"):
            tokens = model.tokenizer.encode(document.strip())
            stretches += [tokens[at : at + length] for at in range(0, len(tokens) - length + 1, 2 * length)]
    if len(stretches) < count:
        raise SystemExit(f"the texts hold {len(stretches)} prompts of {length} tokens, expected {count}; give more")
    return [stretches[i * len(stretches) // count] for i in range(count)]


class Run:
    """A result file and what fills it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out
        self.model = localdiff.load(arguments.model, threads=arguments.threads)
        self.judge = localdiff.load(arguments.judge, threads=arguments.threads)
        spec = self.model.spec
        if spec is None:
            raise SystemExit(f"{arguments.model} has no diffusion record")
        vocabulary = self.model.metadata["tokenizer.ggml.tokens"]
        if self.judge.metadata["tokenizer.ggml.tokens"] != vocabulary:
            raise SystemExit("the judge has another vocabulary, expected the model's")
        self.samplings: dict[str, dict[str, float]] = {
            "greedy": {"temperature": 0.0},
            "sampled": {"temperature": spec.temperature or 1.0, "top_p": spec.top_p or 1.0},
        }
        self.prompts = prompts_of(arguments.data, self.model, arguments.prompt, arguments.prompts)
        self.result = self._opened()
        self.reference: dict[int, list[list[int]]] = {}

    def _opened(self) -> dict[str, Any]:
        settings = {
            "model": Path(self.arguments.model).name,
            "judge": Path(self.arguments.judge).name,
            "data": [path.name for path in self.arguments.data],
            "prompts": len(self.prompts),
            "prompt_tokens": self.arguments.prompt,
            "answer_tokens": self.arguments.answer,
            "samplings": self.samplings,
        }
        if not self.out.is_file():
            return {**settings, "rows": {}, "refused": {}}
        result: dict[str, Any] = json.loads(self.out.read_text())
        other = [name for name, value in settings.items() if result[name] != value]
        if other:
            raise SystemExit(f"{self.out} was made with another {other[0]}; give --out for a new one")
        return result

    def keep(self) -> None:
        with atomic_file(self.out) as temporary:
            temporary.write_text(json.dumps(self.result, indent=1) + "\n")

    def options(self, row: str, sampling: str) -> dict[str, Any]:
        """Presets keep the penalty of the model's record, as users get them; not all decoders can have one."""
        penalty = {} if "preset=" in row else {"repetition_penalty": 1.0}
        common = {"max_new_tokens": self.arguments.answer, "seed": SEED, **self.samplings[sampling], **penalty}
        return {**common, **options_of(row)}

    def generate(self, row: str, sampling: str) -> Iterator[Generation]:
        for at in range(0, len(self.prompts), self.arguments.batch):
            batch = self.prompts[at : at + self.arguments.batch]
            yield from self.model.generate(batch, **self.options(row, sampling))

    def exact(self, length: int) -> list[list[int]]:
        """The tokens of exact decoding at temperature 0."""
        if length not in self.reference:
            made = self.generate(f"{EXACT} max_new_tokens={length}", "greedy")
            self.reference[length] = [each.tokens for each in made]
        return self.reference[length]

    def quality(self, row: str) -> None:
        entry = self.result["rows"].setdefault(row, {})
        for sampling in self.arguments.samplings or self.samplings:
            if sampling in entry:
                continue
            started = time.perf_counter()
            made = list(self.generate(row, sampling))
            seconds = time.perf_counter() - started
            answers = [each.tokens for each in made]
            nats = judged(self.judge, self.prompts, answers)
            tokens = sum(map(len, answers))
            forwards = sum(each.nfe for each in made)
            entry[sampling] = {
                "settings": made[0].decoder,
                "forwards": round(forwards / len(made), 2),
                "tokens_per_forward": round(tokens / forwards, 3),
                "rows": round(sum(each.rows for each in made) / len(made), 1),
                "answer_tokens": round(tokens / len(made), 2),
                "stopped": round(sum(each.stop_reason == "stop" for each in made) / len(made), 3),
                "perplexity": round(perplexity(nats, tokens), 3),
                "perplexity_error": round(error_of(nats, answers), 3),
                **{f"distinct_{n}": round(distinct(answers, n), 4) for n in (1, 2, 3)},
                "batch_seconds": round(seconds / len(made), 4),
            }
            if sampling == "greedy" and row == EXACT:
                self.reference[self.arguments.answer] = answers
            if sampling == "greedy":
                length = self.options(row, sampling)["max_new_tokens"]
                entry[sampling]["agreement"] = round(agreement(answers, self.exact(length)), 4)
            self.keep()

    def timed(self, rows: Sequence[str]) -> None:
        """Seconds of one text at a time, sampled; the rows take turns, there and back."""
        samples: dict[str, list[Generation]] = {row: [] for row in rows}
        for index, prompt in enumerate(self.prompts[:: len(self.prompts) // self.arguments.timed_prompts]):
            for row in rows if index % 2 else rows[::-1]:
                progress(f"timing, prompt {index + 1}: {row}")
                made = self.model.generate(prompt, **self.options(row, "sampled"))
                if index:  # the first prompt warms up
                    samples[row].append(made)
        for row, made in samples.items():
            seconds = sum(each.seconds for each in made)
            self.result["rows"].setdefault(row, {})["timed"] = {
                "texts": len(made),
                "seconds": round(statistics.mean(each.seconds for each in made), 4),
                "answer_tokens_per_second": round(sum(len(each.tokens) for each in made) / seconds, 2),
                "forwards": round(statistics.mean(each.nfe for each in made), 2),
                "milliseconds_per_forward": round(1e3 * seconds / sum(each.nfe for each in made), 3),
            }
        self.result["machine"] = machine_card(self.model.info.isa, made[0].threads)
        self.result["math"] = self.model.arithmetic.math
        self.keep()


def error_of(nats: Sequence[float], answers: Sequence[Sequence[int]]) -> float:
    """Standard error of the perplexity over the texts, by leaving out one at a time (jackknife)."""
    tokens, count = sum(map(len, answers)), len(nats)
    without = [perplexity([sum(nats) - one], tokens - len(answer)) for one, answer in zip(nats, answers, strict=True)]
    return float(statistics.pstdev(without) * (count - 1) ** 0.5)


def progress(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--rows", nargs="+", choices=tuple(row_sets()), default=[])
    parser.add_argument("--row", action="append", default=[], help='options, e.g. "decoder=threshold threshold=0.5"')
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer at most")
    parser.add_argument("--samplings", nargs="+", choices=("greedy", "sampled"), help="one of the two runs only")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--timed-prompts", type=int, default=9, help="the first one warms up")
    parser.add_argument("--out", type=Path, help="default: by date, and by name where it is not the embedded model")
    arguments = parser.parse_args()
    if arguments.out is None:
        name = "" if arguments.model.resolve() == EMBEDDED.resolve() else f"-{arguments.model.stem}"
        arguments.out = ROOT / "bench" / "results" / f"{datetime.date.today().isoformat()}-quality{name}.json"

    sets = row_sets()
    rows = [*(row for name in arguments.rows for row in sets[name]), *arguments.row]
    run = Run(arguments)
    rows = list(dict.fromkeys(rows or [row for row, found in run.result["rows"].items() if "sampled" in found]))
    fitting = []
    for row in rows:
        try:
            run.model.stream(run.prompts[0], **run.options(row, "sampled")).close()
            fitting.append(row)
        except OptionError as error:
            run.result["refused"][row] = str(error)
    if arguments.timed:
        run.timed(fitting)
    else:
        for number, row in enumerate(fitting):
            progress(f"{number + 1} of {len(fitting)}: {row}")
            run.quality(row)
    run.keep()
    run.out.with_suffix(".md").write_text(markdown(run.result))
    plot(run.result, run.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
