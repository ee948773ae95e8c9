"""Speed presets with known cost, what holes take of a record, and the profiles that `localdiff tune` stores.

A preset is options by kind of attention; they count where the caller gives none. Texts stay those of the model: the
temperature, top-p and penalty are those of its own decoder. `tuned` is what was found for one model on this machine;
its profile lies in the user's configuration, by the content of the files, wherever they lie. No numpy here, so that
help stays fast. Not here: how a profile is found (tuning.py), presets of diffusion records (presets.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import atomic_file, check_target
from .errors import ModelFileError, OptionError
from .spec import DiffusionSpec

if TYPE_CHECKING:
    from .options import GenerateOptions

TUNED = "tuned"

Files = Sequence[tuple[Path, float]]  # the model's, then its adapters with their scales (arithmetic.fingerprint)


@dataclass(frozen=True)
class PresetRow:
    """cost: of the embedded model's texts of 64 tokens (bench/results); options by attention, "" for the others."""

    cost: str
    options: Mapping[str, Mapping[str, Any]]


def _paced(pace: float, threshold: float) -> dict[str, dict[str, Any]]:
    """So many tokens a step in blocks of 64, more where the model is sure; its own blocks by the threshold alone."""
    spread = {"decoder": "spread", "pace": pace, "threshold": threshold, "block_length": 64}
    cached = {**spread, "cache": "dual"}
    own_blocks = {"decoder": "sdar", "threshold": threshold}
    return {"full": cached, "prefix_causal": cached, "block_causal": own_blocks, "": spread}


PRESETS: dict[str, PresetRow] = {
    "exact": PresetRow("one token a step, nothing approximated", {"": {"decoder": "llada"}}),
    "balanced": PresetRow("4 times fewer passes, as likely, a little more repetitive", _paced(4.2, 0.9)),
    "fast": PresetRow("8 times fewer passes; short texts lose, from 64 tokens on it is as likely", _paced(8, 0.8)),
}


@dataclass(frozen=True)
class Profile:
    """What tuning found for a model.

    options   fields of GenerateOptions
    threads   None = all
    measured  figures for people: seconds and forwards of a text, before and after, and what that cost
    """

    options: Mapping[str, Any]
    threads: int | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    def described(self) -> str:
        """One line for people."""
        found = self.measured
        words = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return (
            f"{words}, threads {self.threads or 'all'}: {found['seconds']:.2f} s for {found['answer_tokens']} tokens "
            f"instead of {found['exact_seconds']:.2f} s, {found['forwards']:.0f} passes instead of "
            f"{found['exact_forwards']:.0f}, {found['nats']:+.3f} nats a token, agreement {found['agreement']:.0%}"
        )


def with_preset(options: GenerateOptions, spec: DiffusionSpec, files: Files) -> GenerateOptions:
    """The options with the values of their preset where they have none; OptionError for what does not go together.

    files   of the model, whose profile `tuned` is
    """
    name = options.preset
    if name is None:
        return options
    if spec.process == "uniform":
        raise OptionError(f"the preset {name} is for models of masks, this one is of random tokens; leave it out")
    if name == TUNED:
        values = dict(profile_of(files).options)
    else:
        by_attention = PRESETS[name].options
        values = dict(by_attention.get(spec.attention, by_attention[""]))
    if options.decoder not in (None, values["decoder"]):
        raise OptionError(
            f"the preset {name} is the decoder {values['decoder']} with its settings, nothing of which holds for "
            f"{options.decoder}; leave one of them out"
        )
    if options.cache not in (None, values.get("cache")):  # its parameters are those of the preset's cache
        values = {option: value for option, value in values.items() if not option.startswith("cache")}
    values = {**sampling(spec), **values}
    return dataclasses.replace(options, **{o: v for o, v in values.items() if getattr(options, o) is None})


def for_holes(options: GenerateOptions, spec: DiffusionSpec) -> GenerateOptions:
    """The options of infilling: a penalty of the record's is for texts that go on, while what stands around a hole
    belongs into it too; and the record's decoder of holes with its sampling, unless another one is asked for, or what
    this one has not."""
    from .decode.table import DECODERS, OF_DECODER

    values: dict[str, Any] = {"repetition_penalty": 1.0}
    name = spec.infill_decoder
    if name is not None and name not in DECODERS:
        known = ", ".join(DECODERS)
        raise OptionError(f"the model record fills holes with the decoder '{name}', expected one of {known}")
    if name is not None and options.decoder is None and options.cache is None:
        asked = {option for option in OF_DECODER if getattr(options, option) is not None}
        if asked <= DECODERS[name].defaults.keys():
            values = {**sampling(spec), **values, "decoder": name}
    return dataclasses.replace(options, **{o: v for o, v in values.items() if getattr(options, o) is None})


def sampling(spec: DiffusionSpec) -> dict[str, float]:
    """Temperature, top-p and penalty of the model's own decoder, by its record or the decoder's defaults."""
    from .decode.table import DECODERS, default_decoder

    row = DECODERS.get(spec.decoder or default_decoder(spec))
    defaults = {} if row is None else row.defaults
    of_record = {name: getattr(spec, name) for name in ("temperature", "top_p", "repetition_penalty")}
    found = {name: defaults.get(name) if value is None else value for name, value in of_record.items()}
    return {name: value for name, value in found.items() if value is not None}


# ---- profiles on disk ----


def store() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "localdiff" / "profiles.json"


def checked_store() -> Path:
    """store() in a folder that is there; OptionError or OSError where nothing can be kept: ask before long work."""
    target = store()
    target.parent.mkdir(parents=True, exist_ok=True)
    check_target(target)
    return target


def recall(files: Files) -> Profile | None:
    """The profile of a model, None where it was not tuned; ModelFileError where the profiles cannot be read."""
    from .arithmetic import fingerprint

    values = _profiles().get(fingerprint(files))
    if values is None:
        return None
    try:
        return Profile(dict(values["options"]), values["threads"], dict(values["measured"]))
    except (KeyError, TypeError, ValueError):
        name = files[0][0]
        raise ModelFileError(f"{store()}: the profile of {name} is damaged; run localdiff tune {name} again") from None


def profile_of(files: Files) -> Profile:
    """The profile of a model; OptionError where it was not tuned."""
    found = recall(files)
    if found is None:
        name, beside = files[0][0], " with these adapters" if len(files) > 1 else ""
        raise OptionError(f"{name} was not tuned on this machine{beside}; run localdiff tune {name} first")
    return found


def remember(files: Files, profile: Profile | None) -> None:
    """Keep the profile of a model in place of an earlier one; None: forget it."""
    from .arithmetic import fingerprint

    key = fingerprint(files)
    profiles = {name: value for name, value in _profiles().items() if name != key}
    if profile is not None:
        profiles[key] = dataclasses.asdict(profile)
    target = checked_store()
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(profiles, indent=1) + "\n")


def _profiles() -> dict[str, Any]:
    try:
        values = json.loads(store().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{store()}: cannot be read ({error}); repair or remove it") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{store()}: is not a table of profiles; repair or remove it")
    return values
