"""`localdiff infill`: fill the holes of a text. [[8]] is a hole of 8 tokens, [[]] one of a length to be chosen."""

from __future__ import annotations

from typing import Any

import click

from ..errors import OptionError
from . import flags, generating


@click.command(cls=flags.Command, groups=generating.GROUPS)
@click.argument("arguments", nargs=-1, required=True, metavar="[MODEL.gguf] TEXT")
@generating.generation_flags(without=("max_new_tokens", "grow", "stop", "negative_prompt"))
def command(arguments: tuple[str, ...], **values: Any) -> None:
    """Fill the holes of TEXT: "Once upon a time[[8]] and they all went[[]]."

    [[8]] is a hole of 8 tokens, [[]] one whose length the model chooses. The text is printed with its holes filled;
    what stood there stays as it was. Leave no space before a hole: its first word brings one where it needs one.
    """
    path, text = generating.split_model(arguments, "text")
    if text is None:
        raise OptionError("there is no text to fill; give one with holes, such as 'Once[[8]] time[[]].'")
    options = generating.options(values)
    with generating.load(path, values) as model:
        results = generating.watch(model.stream_infill(text, options), not values["no_live"])
        generating.answers(results, values["as_json"])
