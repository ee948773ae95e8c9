"""AdaptOptions: every setting of `localdiff adapt`, one field per command line flag and per key of a config file.

The metadata of a field are `help` as shown, `short` where there is a one-letter flag, `choices` and the inclusive
`range` of numbers. Checks that need no file live here; what depends on the base or the data is checked where that is
read. Imports nothing heavy: the command line reads the fields at start.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError
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


def _flag(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: tuple[str, ...] | None = None,
    range: tuple[float, float] | None = None,
) -> Any:
    metadata = {"help": help, "short": short, "choices": choices, "range": range}
    return dataclasses.field(default=default, metadata=metadata)


_ONE_UP = (1, 2**31 - 1)
_ZERO_UP = (0, 2**31 - 1)
_SHARE = (0, 1)


@dataclass(frozen=True)
class AdaptOptions:
    """Settings of one training run. Counts are whole numbers; rates are per optimiser step."""

    base: str | None = _flag(None, "HF folder, .gguf or llama2.c .bin to start from; leave out with --shape")
    output: str = _flag("", "folder for the result, its checkpoints and its log", short="o")
    config: str | None = _flag(None, "TOML file of settings named like the flags; what is typed wins over it")
    data: tuple[str, ...] = _flag(
        (), "text files: .txt .jsonl, also with .xz or .gz; a file named twice counts twice; hub:NAME with --stream"
    )
    instruct: bool = _flag(False, "the data are .jsonl files of prompts and answers; only answers are learnt")
    template: str = _flag(
        "auto", "how prompts are written; auto: chat where the base has a template", choices=TEMPLATES
    )
    sep_token: str | None = _flag(None, "token between prompt and answer of the plain template")
    pad_token: str | None = _flag(None, "token that fills the canvas after an answer; default: the base's own")
    method: str = _flag("diffugpt", "how to train; ar is ordinary next-token training", choices=METHODS)
    weight: str | None = _flag(None, "what a masked token weighs (mdlm, bd3lm, rdm)", choices=methods.ALL_WEIGHTS)
    normalise: str | None = _flag(None, "what the loss is divided by (mdlm, bd3lm)", choices=methods.NORMALISERS)
    shift: str | None = _flag(None, "whether row i - 1 predicts token i; default: as the method says", choices=SWITCH)
    block_length: int | None = _flag(None, "tokens per block of bd3lm; default 32", range=_ONE_UP)
    timesteps: int | None = _flag(None, "steps T of rdm; default 50", range=_ONE_UP)
    mask_ratio: float | None = _flag(None, "rdm with a fixed share of masked tokens", range=(1e-6, 1))
    label_smoothing: float | None = _flag(None, "of rdm, for training from scratch", range=(0, 0.999999))
    times: str | None = _flag(
        None, "noise levels of a batch (diffugpt, mdlm, bd3lm): drawn alone, or one in each equal part", choices=TIMES
    )
    spans: float | None = _flag(
        None, "share of sequences in which one run of tokens is hidden (diffugpt, mdlm)", range=_SHARE
    )
    length_head: bool = _flag(False, "train a predictor of answer lengths beside rdm")
    resume: bool = _flag(False, "continue from the newest checkpoint in the output folder")
    shape: str | None = _flag(None, "train from scratch with this JSON shape or named size")
    tokenizer: str | None = _flag(None, "tokenizer file: tokenizer.json, or the .bin beside a llama2.c model")
    mask_token: str | None = _flag(None, "mask token, added to the vocabulary where absent, such as '<mask>'")
    mask_id: int | None = _flag(None, "id of an existing token to use as the mask", range=_ZERO_UP)
    lora: int = _flag(0, "rank of LoRA adapters on all linear layers; 0: train every weight", range=(0, 4096))
    lora_alpha: float | None = _flag(None, "scale of the adapters; default: twice the rank", range=(1e-6, 1e6))
    lora_dropout: float = _flag(0.0, "dropout in front of the adapters", range=(0, 0.999999))
    length: int = _flag(0, "tokens per training sequence; 0: the context length of the base", range=_ZERO_UP)
    stream: int = _flag(
        0, "read the text while training, shuffling within this many sequences; 0: tokenise it first", range=_ZERO_UP
    )
    batch: int = _flag(8, "sequences per forward pass and process", range=_ONE_UP)
    accumulate: int = _flag(1, "forward passes per optimiser step", range=_ONE_UP)
    steps: int = _flag(10000, "optimiser steps", range=_ONE_UP)
    lr: float = _flag(3e-4, "peak learning rate", range=_SHARE)
    warmup: int = _flag(2000, "steps over which the learning rate rises from 0", range=_ZERO_UP)
    schedule: str = _flag(
        "cosine", "learning rate after warm-up: cosine falls to 0; wsd is constant, then falls to 0", choices=SCHEDULES
    )
    decay_steps: int | None = _flag(None, "last steps of wsd, in which the rate falls; default: a fifth", range=_ONE_UP)
    optimizer: str = _flag("adamw", "muon: for the matrices of the layers, AdamW for the rest", choices=OPTIMIZERS)
    ema: float = _flag(
        0.0, "decay of a running average of the weights, which is evaluated and published; 0: none", range=(0, 0.999999)
    )
    weight_decay: float = _flag(0.01, "weight decay; none on norms and biases", range=_SHARE)
    beta1: float = _flag(0.9, "AdamW beta 1", range=(0, 0.999999))
    beta2: float = _flag(0.999, "AdamW beta 2", range=(0, 0.999999))
    clip: float = _flag(1.0, "largest gradient norm; 0: no clipping", range=(0, 1e9))
    anneal_steps: int | None = _flag(
        None, "steps until attention is fully bidirectional; 1: at once; default: 10000 for diffugpt", range=_ONE_UP
    )
    dtype: str = _flag("bf16", "arithmetic of the forward and backward pass; weights stay f32", choices=DTYPES)
    device: str = _flag("auto", "where to train; auto: a GPU where there is one", choices=DEVICES)
    attention: str = _flag(
        "sdpa", "how it is computed; eager: plain products, faster on a CPU at short lengths", choices=ATTENTION
    )
    checkpointing: bool = _flag(False, "compute activations again in the backward pass instead of keeping them")
    peak_tflops: float | None = _flag(
        None, "TFLOP/s that one device can do, for the utilisation shown; default: by its name", range=(1e-6, 1e9)
    )
    seed: int = _flag(0, "seed of data order, noise and fresh weights", range=(0, 2**20))
    save_every: int = _flag(500, "steps between checkpoints", range=_ONE_UP)
    keep: int = _flag(2, "checkpoints to keep", range=_ONE_UP)
    eval_data: tuple[str, ...] = _flag((), "held-out files, read like the training data")
    eval_every: int = _flag(500, "steps between evaluations on the held-out text", range=_ONE_UP)
    eval_sequences: int = _flag(32, "held-out sequences per evaluation", range=_ONE_UP)
    threads: int | None = _flag(None, "CPU threads; default: torch's choice", range=(1, 4096))
    diffusion: str | None = _flag(None, "generation defaults to record: decoder=,steps=,temperature=,top-p=")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _check(field, value)
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
    def annealing(self) -> int:
        """Steps until attention is bidirectional."""
        return methods.TABLE[self.method].anneal if self.anneal_steps is None else self.anneal_steps

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


def flag_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    name, kind = flag_name(field.name), str(field.type)
    choices, bounds = field.metadata["choices"], field.metadata["range"]
    if choices is not None and value not in choices:
        raise OptionError(f"{name} is '{value}', expected {' or '.join(choices)}")
    if bounds is None:
        return
    number = isinstance(value, int) or (kind.startswith("float") and isinstance(value, float) and math.isfinite(value))
    if not number or isinstance(value, bool) or not bounds[0] <= value <= bounds[1]:
        what = "a number" if kind.startswith("float") else "a whole number"
        raise OptionError(f"{name} is {value!r}, expected {what} from {bounds[0]:g} to {bounds[1]:g}")
