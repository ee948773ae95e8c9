"""Renders chat templates in a process of its own; started by chat.py, never imported.

A template is part of a model file, so it is treated as hostile. minijinja gives it no way to reach Python or the disk,
and its fuel bounds the number of instructions; but a few instructions can double a string until memory is gone, which
ends the process. So that process is this one, with its memory and processor time limited by the system (where the
system can: not on Windows, where the caller's time limit remains). It imports nothing of localdiff.

stdin    JSON: path (of the folder with minijinja), source, contexts (one rendering each), fuel, memory, seconds, output
stdout   JSON: {"texts": [...]} or {"error": "..."}
"""

import json
import signal
import sys
import time
from typing import Any, NoReturn


def limit(memory: int, seconds: float) -> None:
    """Bound this process to `memory` bytes and `seconds` of processor time, and keep it from leaving a core file."""
    try:
        import resource
    except ImportError:
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process
    for kind, value in (("RLIMIT_AS", memory), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
        try:
            resource.setrlimit(getattr(resource, kind), (value, value))
        except (ValueError, OSError, AttributeError):
            continue  # the system does not know this limit; the others still hold


def render(source: str, contexts: list[dict[str, Any]], fuel: int, output: int) -> list[str]:
    """Every context through the template; raises minijinja.TemplateError, or ValueError with a sentence."""
    import minijinja

    def refuse(message: object = "") -> NoReturn:
        raise ValueError(f"it refuses this conversation: {str(message)[:200]}")

    def as_json(value: Any, indent: int | None = None) -> str:
        if indent is not None and not 0 <= indent <= 16:
            raise ValueError(f"tojson has an indent of {indent}, expected 0 to 16")
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # trim_blocks and lstrip_blocks: what chat templates are written for.
    environment = minijinja.Environment(
        fuel=fuel,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=lambda _: False,
        globals={"raise_exception": refuse, "strftime_now": lambda form: time.strftime(str(form)[:64])},
    )
    environment.remove_global("debug")
    environment.add_filter("tojson", as_json)
    texts = [environment.render_str(source, "chat_template", **context) for context in contexts]
    longest = max(map(len, texts))
    if longest > output:
        raise ValueError(f"it gives {longest} characters, expected at most {output}")
    return texts


def main() -> None:
    """Serve one request."""
    request = json.load(sys.stdin)
    sys.path.append(request["path"])
    limit(request["memory"], request["seconds"])
    try:
        answer: dict[str, Any] = {
            "texts": render(request["source"], request["contexts"], request["fuel"], request["output"])
        }
    except MemoryError:
        answer = {"error": "it needs more memory than it may have"}
    except Exception as error:
        answer = {"error": getattr(error, "message", None) or str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
