"""Uses tools/desktop_demo as a person would, with keys and clicks, inside its event loop; prints what it saw as JSON.

usage: desktop_driver.py [SCREENSHOT.png]      (DISPLAY names the screen)

The steps are a generator: each `yield` is a condition that the running window must come to by itself.
"""

from __future__ import annotations

import json
import sys
import tkinter as tk
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools" / "desktop_demo"))

from window import Window  # noqa: E402

SEEN: dict[str, Any] = {"drafts": [], "ticks": 0}
Condition = Callable[[], bool]


def text(window: Window) -> str:
    return window.canvas.get("1.0", "end-1c")


def type_in(window: Window, prompt: str, **fields: str) -> None:
    window.prompt.delete("1.0", "end")
    window.prompt.insert("1.0", prompt)
    for name, value in fields.items():
        window.fields[name].set(value)


def watch(window: Window) -> bool:
    """Whether it has finished; notes every draft that was on the screen."""
    draft = text(window)
    if draft and draft not in SEEN["drafts"]:
        SEEN["drafts"].append(draft)
    return not window.busy


def use(window: Window, screenshot: str | None) -> Iterator[Condition]:
    yield lambda: not window.busy
    SEEN["ready"] = window.status.get()

    type_in(window, "Once upon a time", max_new_tokens="200", steps="200", seed="5")
    window.prompt.focus_force()
    yield lambda: window.root.focus_get() is window.prompt
    window.prompt.event_generate("<Control-Return>")
    yield lambda: window.busy
    yield lambda: watch(window)
    SEEN["text"], SEEN["figures"], SEEN["prompt"] = (
        text(window),
        window.status.get(),
        window.prompt.get("1.0", "end-1c"),
    )

    type_in(window, "The dog [[6]] and then they went home.", steps="6")
    window.write_button.invoke()
    yield lambda: not window.busy
    SEEN["infilled"] = text(window)

    type_in(window, "A girl", max_new_tokens="twelve")
    window.write_button.invoke()
    SEEN["refused"] = window.status.get()
    type_in(window, "A girl", max_new_tokens="100000")
    window.write_button.invoke()
    yield lambda: not window.busy
    SEEN["too_long"] = window.status.get()

    type_in(window, "Once there was", max_new_tokens="200", steps="200")
    window.write_button.invoke()
    yield lambda: window.status.get().startswith("forward pass")
    if screenshot:
        yield lambda: int(window.status.get().split()[2].rstrip(",")) > 60 or not window.busy
        from PIL import ImageGrab

        window.root.update()
        x, y = window.root.winfo_rootx(), window.root.winfo_rooty()
        ImageGrab.grab((x, y, x + window.root.winfo_width(), y + window.root.winfo_height()), xdisplay="").save(
            screenshot
        )
    window.root.event_generate("<Escape>")
    yield lambda: not window.busy
    SEEN["stopped"], SEEN["draft"] = window.status.get(), text(window)

    type_in(window, "Once there was", max_new_tokens="200", steps="200")
    window.write_button.invoke()
    yield lambda: window.status.get().startswith("forward pass")
    window.close()  # in the middle of it


def main() -> None:
    root = tk.Tk()
    window = Window(root, None)
    steps = use(window, sys.argv[1] if len(sys.argv) > 1 else None)
    waiting = [next(steps)]

    def tick() -> None:
        SEEN["ticks"] += 1
        while waiting[0]():
            try:
                waiting[0] = next(steps)
            except StopIteration:
                return
        root.after(5, tick)

    tick()
    root.mainloop()
    print(json.dumps(SEEN))


if __name__ == "__main__":
    main()
