"""pytest plug-in: ends the run with the list of what was not run here, skipped tests included.

Other steps' entries come in LOCALDIFF_NOT_RUN, one a line. It only prints.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in terminalreporter.stats.get("skipped", [])
    )
    lines = [f"{count} tests: {reason}" for reason, count in sorted(reasons.items())]
    lines += [line for line in os.environ.get("LOCALDIFF_NOT_RUN", "").splitlines() if line]
    for line in lines:
        terminalreporter.write_line(f"not run here: {line}")
