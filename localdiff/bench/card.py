"""The machine card: what a figure of speed is worth nothing without."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from .. import __version__


def machine_card(isa: str, threads: int) -> dict[str, Any]:
    """Processor, threads and versions as one flat JSON object; `load` is how busy the machine was with other things."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": isa,
        "system": f"{platform.system()} {platform.machine()}",
        "localdiff": __version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """The processor's name, with family and model where the name says little (virtual machines)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [facts[key] for key in ("cpu family", "model") if key in facts]
    return f"{name} (family {numbers[0]}, model {numbers[1]})" if len(numbers) == 2 else name
