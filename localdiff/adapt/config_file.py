"""Settings from a TOML file: keys are the flags' names, with - or _; values are checked like those of the flags."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..errors import LocaldiffError, OptionError
from .options import AdaptOptions

_NOT_THERE = ("config", "resume")
_KINDS = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}
_WORDS = {"str": "a text", "bool": "true or false", "int": "a whole number", "float": "a number"}


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a file, as fields of AdaptOptions.

    raises   OptionError where the file cannot be read, or names a setting that is none or has a value of another kind
    """
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--config {path}: cannot be read as TOML ({error})") from None
    fields = {field.name: field for field in dataclasses.fields(AdaptOptions) if field.name not in _NOT_THERE}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise OptionError(f"--config {path}: '{key}' is no setting; see localdiff adapt --help")
        settings[name] = _checked(str(fields[name].type), value, f"--config {path}: {key}")
    return settings


def _checked(annotation: str, value: Any, what: str) -> Any:
    kind = annotation.removesuffix(" | None")
    if kind.startswith("tuple"):
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise OptionError(f"{what} is {value!r}, expected a text or a list of texts")
        return tuple(texts)
    if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise OptionError(f"{what} is {value!r}, expected {_WORDS[kind]}")
    return value


def _parse(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise LocaldiffError(
                "--config needs the package 'tomli' on this Python, which is not installed; "
                "run: pip install 'localdiff[train]'"
            ) from None
    return dict(tomllib.loads(text))
