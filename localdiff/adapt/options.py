"""AdaptOptions: every setting of `localdiff adapt`, one field per command line flag and per key of a config file.

Checks that need no file live here; what depends on the base or the data is checked where that is read. Imports nothing
heavy: the command line reads the fields at start.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..fields import ONE_UP, ZERO_UP, check_value, flag_name, option
from . import methods

OPTIONS_FILE = "adapt.json"  # the settings of a run, in its output folder
METHODS = tuple(methods.TABLE)
SCHEDULES = ("cosine", "constant", "inverse-sqrt", "wsd")
OPTIMIZERS = ("adamw", "muon")
TIMES = ("independent", "stratified")
ATTENTION = ("sdpa", "eager")
DTYPES = ("bf16", "f32")
DEVICES = ("auto", "cpu", "cuda")
TEMPLATES = ("auto", "plain", "chat")
SWITCH = ("on", "off")

# May differ between a run and its continuation; everything else must be the same, or the curves would not join.
FREE_ON_RESUME = frozenset(
    (
        "output",
        "resume",
        "config",
        "steps",
        "decay_steps",
        "save_every",
        "keep",
        "eval_data",
        "eval_every",
        "eval_sequences",
        "threads",
    )
    + ("diffusion", "device", "checkpointing", "peak_tflops")
)


GROUPS = {  # how help orders the fields; those in none come first
    "Method": (
        "method", "weight", "normalise", "shift", "block_length", "timesteps", "mask_ratio", "label_smoothing", "times",
        "spans", "length_head", "anneal_steps",
    ),
    "Prompts and answers": ("instruct", "template", "sep_token", "pad_token"),
    "LoRA": ("lora", "lora_alpha", "lora_dropout"),
    "Optimiser": (
        "lr", "warmup", "schedule", "decay_steps", "optimizer", "ema", "weight_decay", "beta1", "beta2", "clip",
    ),
    "Evaluation and checkpoints": ("save_every", "keep", "eval_data", "eval_every", "eval_sequences"),
    "Machine": ("dtype", "device", "attention", "checkpointing", "peak_tflops", "threads"),
}  # fmt: skip
_SHARE = (0, 1)
WARMUP = 2000  # steps at most, where --warmup is not given


@dataclass(frozen=True)
class AdaptOptions:
    """Settings of one training run. Counts are whole numbers; rates are per optimiser step."""

    base: str | None = option("HF folder, .gguf or llama2.c .bin to start from; leave out with --shape", None)
    output: str = option("folder for the result, its checkpoints and its log; required", "", short="o")
    config: str | None = option("TOML file of settings named like the flags; what is typed wins over it", None)
    data: tuple[str, ...] = option(
        "text files: .txt .jsonl, also .xz or .gz; a file named twice counts twice; hub:NAME with --stream; required",
        (),
    )
    instruct: bool = option("the data are .jsonl files of prompts and answers; only answers are learnt", False)
    template: str = option(
        "how prompts are written; auto: chat where the base has a template", "auto", choices=TEMPLATES
    )
    sep_token: str | None = option("token between prompt and answer of the plain template", None)
    pad_token: str | None = option("token that fills the canvas after an answer; default: the base's own", None)
    method: str = option("how to train; ar is ordinary next-token training", "diffugpt", choices=METHODS)
    weight: str | None = option("what a masked token weighs (mdlm, bd3lm, rdm)", None, choices=methods.ALL_WEIGHTS)
    normalise: str | None = option("what the loss is divided by (mdlm, bd3lm)", None, choices=methods.NORMALISERS)
    shift: str | None = option("whether row i - 1 predicts token i; default: as the method says", None, choices=SWITCH)
    block_length: int | None = option("tokens per block of bd3lm; default 32", None, range=ONE_UP)
    timesteps: int | None = option("steps T of rdm; default 50", None, range=ONE_UP)
    mask_ratio: float | None = option("rdm with a fixed share of masked tokens", None, range=(1e-6, 1))
    label_smoothing: float | None = option("of rdm, for training from scratch", None, range=(0, 0.999999))
    times: str | None = option(
        "noise levels of a batch (diffugpt, mdlm, bd3lm): drawn alone, or one in each equal part", None, choices=TIMES
    )
    spans: float | None = option(
        "share of sequences in which one run of tokens is hidden (diffugpt, mdlm)", None, range=_SHARE
    )
    length_head: bool = option("train a predictor of answer lengths beside rdm", False)
    resume: bool = option("continue from the newest checkpoint in the output folder", False)
    shape: str | None = option("train from scratch with this JSON shape or named size", None)
    tokenizer: str | None = option("tokenizer file: tokenizer.json, or the .bin beside a llama2.c model", None)
    mask_token: str | None = option("mask token, added to the vocabulary where absent, such as '<mask>'", None)
    mask_id: int | None = option("id of an existing token to use as the mask", None, range=ZERO_UP)
    lora: int = option("rank of LoRA adapters on all linear layers; 0: train every weight", 0, range=(0, 4096))
    lora_alpha: float | None = option("scale of the adapters; default: twice the rank", None, range=(1e-6, 1e6))
    lora_dropout: float = option("dropout in front of the adapters", 0.0, range=(0, 0.999999))
    length: int = option("tokens per training sequence; 0: the context length of the base", 0, range=ZERO_UP)
    stream: int = option(
        "read the text while training, shuffling within this many sequences; 0: tokenise it first", 0, range=ZERO_UP
    )
    batch: int = option("sequences per forward pass and process", 8, range=ONE_UP)
    accumulate: int = option("forward passes per optimiser step", 1, range=ONE_UP)
    steps: int = option("optimiser steps", 10000, range=ONE_UP)
    lr: float = option("peak learning rate", 3e-4, range=_SHARE)
    warmup: int | None = option(
        f"steps over which the learning rate rises from 0; default: a fifth, at most {WARMUP}", None, range=ZERO_UP
    )
    schedule: str = option(
        "learning rate after warm-up: cosine falls to 0; wsd is constant, then falls to 0", "cosine", choices=SCHEDULES
    )
    decay_steps: int | None = option("last steps of wsd, in which the rate falls; default: a fifth", None, range=ONE_UP)
    optimizer: str = option("muon: for the matrices of the layers, AdamW for the rest", "adamw", choices=OPTIMIZERS)
    ema: float = option(
        "decay of a running average of the weights, which is evaluated and published; 0: none", 0.0, range=(0, 0.999999)
    )
    weight_decay: float = option("weight decay; none on norms and biases", 0.01, range=_SHARE)
    beta1: float = option("AdamW beta 1", 0.9, range=(0, 0.999999))
    beta2: float = option("AdamW beta 2", 0.999, range=(0, 0.999999))
    clip: float = option("largest gradient norm; 0: no clipping", 1.0, range=(0, 1e9))
    anneal_steps: int | None = option(
        "steps until attention is fully bidirectional; 1: at once; default for diffugpt: half, at most 10000",
        None,
        range=ONE_UP,
    )
    dtype: str = option("arithmetic of the forward and backward pass; weights stay f32", "bf16", choices=DTYPES)
    device: str = option("where to train; auto: a GPU where there is one", "auto", choices=DEVICES)
    attention: str = option(
        "how it is computed; eager: plain products, faster on a CPU at short lengths", "sdpa", choices=ATTENTION
    )
    checkpointing: bool = option("compute activations again in the backward pass instead of keeping them", False)
    peak_tflops: float | None = option(
        "TFLOP/s that one device can do, for the utilisation shown; default: by its name", None, range=(1e-6, 1e9)
    )
    seed: int = option("seed of data order, noise and fresh weights", 0, range=(0, 2**20))
    save_every: int = option("steps between checkpoints", 500, range=ONE_UP)
    keep: int = option("checkpoints to keep", 2, range=ONE_UP)
    eval_data: tuple[str, ...] = option("held-out files, read like the training data", ())
    eval_every: int = option("steps between evaluations on the held-out text", 500, range=ONE_UP)
    eval_sequences: int = option("held-out sequences per evaluation", 32, range=ONE_UP)
    threads: int | None = option("CPU threads; default: torch's choice", None, range=(1, 4096))
    diffusion: str | None = option("generation defaults to record: decoder=,steps=,temperature=,top-p=", None)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_value(field, value, flag_name(field.name))
        if self.length == 1:
            raise OptionError("--length is 1, expected at least 2 tokens per sequence, or 0")
        if self.lr == 0:
            raise OptionError("--lr is 0, expected more than 0")
        if not self.output:
            raise OptionError("no output folder; give one with -o OUT_DIR")
        if not self.data:
            raise OptionError("no training text; give at least one file with --data FILE")
        if self.decay_steps is not None and self.schedule != "wsd":
            raise OptionError("--decay-steps has no meaning without --schedule wsd; leave it out")
        self._check_base()
        self._check_method()
        self._check_data()

    def _check_base(self) -> None:
        if (self.base is None) == (self.shape is None):
            raise OptionError("give either a base checkpoint or --shape for a model from scratch, one of the two")
        if self.shape is not None and self.tokenizer is None:
            raise OptionError("a model from scratch needs a tokenizer; give --tokenizer FILE")
        if self.shape is not None and self.lora:
            raise OptionError("--lora trains beside the weights of a base, which --shape has not; leave one out")
        if not self.lora and (self.lora_alpha is not None or self.lora_dropout):
            raise OptionError("--lora-alpha and --lora-dropout have no meaning without --lora; leave them out")

    def _check_method(self) -> None:
        row = methods.TABLE[self.method]
        for name in methods.SPECIAL_SETTINGS:
            if getattr(self, name) not in (None, False) and name not in row.settings:
                raise OptionError(f"{flag_name(name)} has no meaning with --method {self.method}; leave it out")
        if self.weight is not None and self.weight not in row.weights:
            choices = " or ".join(row.weights)
            raise OptionError(f"--weight is '{self.weight}', but --method {self.method} knows {choices}")
        if self.mask_token is not None and self.mask_id is not None:
            raise OptionError("--mask-token and --mask-id exclude each other; give one")
        if not row.diffusion:
            extra = [name for name in ("mask_token", "mask_id", "diffusion") if getattr(self, name) is not None]
            if extra:
                raise OptionError(f"{flag_name(extra[0])} has no meaning with --method {self.method}; leave it out")

    def _check_data(self) -> None:
        for source in self.data:
            if not self.stream and (source.startswith("hub:") or source.endswith(".parquet")):
                raise OptionError(f"--data {source} can only be streamed; add --stream with a number of sequences")
        if not self.instruct:
            extra = [name for name in ("sep_token", "pad_token") if getattr(self, name) is not None]
            extra += ["template"] if self.template != "auto" else []
            extra += ["length_head"] if self.length_head else []
            if extra:
                raise OptionError(f"{flag_name(extra[0])} has no meaning without --instruct; leave it out")
        elif self.stream:
            raise OptionError("--stream is for running text; prompts and answers (--instruct) are read at once")
        if self.template == "chat" and self.sep_token is not None:
            raise OptionError("--sep-token belongs to the plain template, but --template is chat; leave one out")

    @property
    def warming(self) -> int:
        """Steps over which the learning rate rises."""
        return min(WARMUP, self.steps // 5) if self.warmup is None else self.warmup

    @property
    def annealing(self) -> int:
        """Steps until attention is bidirectional."""
        row = methods.TABLE[self.method]
        return min(row.anneal, max(1, self.steps // 2)) if self.anneal_steps is None else self.anneal_steps

    def settled(self) -> AdaptOptions:
        """Numbers in place of the defaults that follow from the number of steps: kept with the run, so that a
        continuation with other --steps goes on along the same curves."""
        anneal = self.annealing if "anneal_steps" in methods.TABLE[self.method].settings else None
        return dataclasses.replace(self, warmup=self.warming, anneal_steps=anneal)

    @staticmethod
    def resumed(output: str, given: dict[str, Any]) -> AdaptOptions:
        """The settings that the run in `output` was started with, those in `given` replaced.

        raises   OptionError where the folder holds no run
        """
        try:
            saved = json.loads((Path(output) / OPTIONS_FILE).read_text(encoding="utf-8"))
            names = {field.name for field in dataclasses.fields(AdaptOptions)}
            settings = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
        except (OSError, ValueError, AttributeError):
            raise OptionError(f"--resume: {output or 'the output folder'} holds no run; leave --resume out") from None
        if unknown := sorted(set(settings) - names):
            raise OptionError(f"--resume: {OPTIONS_FILE} holds unknown settings: {', '.join(unknown)}")
        return AdaptOptions(**{**settings, **given, "output": output, "resume": True})

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "resume": False}, indent=2) + "\n"

    def lasting(self) -> dict[str, Any]:
        """The settings that a continuation must share."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE_ON_RESUME}
