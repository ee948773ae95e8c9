"""A desktop program with localdiff inside: write, fill blanks, watch the canvas settle, stop at any moment.

    python tools/desktop_demo [MODEL.gguf]

Tk from Python's standard library, so nothing is to be installed beside localdiff. Ctrl+Enter writes, Escape stops. The
work is done by a thread (worker.py); the window only reads its reports.
"""

from __future__ import annotations

import sys
import tkinter as tk
from collections.abc import Sequence
from tkinter import filedialog, ttk
from typing import Any

from worker import Report, Worker

MASK = "\u2591"
POLL_MS = 25  # between two readings of the worker's reports
COLOURS = {  # kind of text -> foreground, background
    "given": ("#5b6470", ""),
    "settled": ("#16191d", ""),
    "fresh": ("#0b5d2a", "#c9f2d6"),
    "masked": ("#c3c9d1", ""),
}
FIELDS = (
    ("tokens", "max_new_tokens", "64"),
    ("steps", "steps", ""),
    ("temperature", "temperature", ""),
    ("seed", "seed", ""),
)


class Window:
    """The program's one window, around one worker."""

    def __init__(self, root: tk.Tk, model: str | None) -> None:
        self.root = root
        self.worker = Worker()
        self.busy = True
        self.before = ""  # shown before the canvas
        root.title("localdiff")
        root.geometry("860x520")
        root.minsize(780, 360)
        ttk.Style(root).theme_use("clam")
        root.configure(background=ttk.Style(root).lookup("TFrame", "background"))
        root.columnconfigure(0, weight=1)
        root.rowconfigure(2, weight=1)

        self.prompt = tk.Text(root, height=3, wrap="word", font=("DejaVu Sans", 12), padx=10, pady=8, undo=True)
        self.prompt.grid(row=0, column=0, sticky="ew", padx=12, pady=(12, 6))
        self.prompt.insert("1.0", "Once upon a time there was a little fox who [[12]]. In the end they all went home.")
        self.fields = self._controls()
        self.canvas = tk.Text(
            root, wrap="word", font=("DejaVu Sans", 13), padx=14, pady=12, spacing2=4, state="disabled"
        )
        self.canvas.grid(row=2, column=0, sticky="nsew", padx=12, pady=6)
        for kind, (foreground, background) in COLOURS.items():
            self.canvas.tag_configure(kind, foreground=foreground, background=background)
        self.status = tk.StringVar(value="loading the model ...")
        ttk.Label(root, textvariable=self.status, anchor="w").grid(row=3, column=0, sticky="ew", padx=14, pady=(0, 10))

        self.prompt.bind("<Control-Return>", self.write)  # before the widget's own binding, which adds a line end
        root.bind("<Control-Return>", self.write)
        root.bind("<Escape>", self.stop)
        root.protocol("WM_DELETE_WINDOW", self.close)
        self._enable()
        self.worker.load(model)
        self._poll()

    def _controls(self) -> dict[str, tk.StringVar]:
        bar = ttk.Frame(self.root)
        bar.grid(row=1, column=0, sticky="ew", padx=12)
        fields = {}
        for label, option, value in FIELDS:
            ttk.Label(bar, text=label).pack(side="left", padx=(0, 4))
            fields[option] = tk.StringVar(value=value)
            ttk.Entry(bar, textvariable=fields[option], width=6).pack(side="left", padx=(0, 12))
        self.write_button = ttk.Button(bar, text="Write", command=self.write)
        self.stop_button = ttk.Button(bar, text="Stop", command=self.stop)
        self.open_button = ttk.Button(bar, text="Open model ...", command=self.open)
        for button in (self.open_button, self.stop_button, self.write_button):
            button.pack(side="right", padx=(6, 0))
        return fields

    # ---- what the user does ----

    def write(self, _: object = None) -> str:
        if not self.busy:
            options = self._options()
            if options is not None:
                self.busy = True
                self._enable()
                text = self.prompt.get("1.0", "end-1c")
                self.before = "" if "[[" in text else text  # the spans of an answer begin after its prompt
                self.worker.write(text, **options)
        return "break"

    def stop(self, _: object = None) -> None:
        self.worker.cancel()

    def open(self) -> None:
        path = filedialog.askopenfilename(filetypes=[("GGUF models", "*.gguf")])
        if path:
            self.busy = True
            self._enable()
            self.status.set("loading the model ...")
            self.worker.load(path)

    def close(self) -> None:
        self.worker.close()
        self.root.destroy()

    def _options(self) -> dict[str, Any] | None:
        """What was typed; None where a field holds no number, which is said."""
        options: dict[str, Any] = {}
        for label, option, _ in FIELDS:
            typed = self.fields[option].get().strip()
            try:
                if typed:
                    options[option] = float(typed) if option == "temperature" else int(typed)
            except ValueError:
                self.status.set(f"{label} is '{typed}', expected a number")
                return None
        return options

    # ---- what the worker reports ----

    def _poll(self) -> None:
        last_step = None
        while not self.worker.reports.empty():
            report = self.worker.reports.get()
            if report.kind == "step":
                last_step = report  # the ones before it are out of date already
            else:
                self._show_step(last_step)
                last_step = None
                self._finish(report)
        self._show_step(last_step)
        self.root.after(POLL_MS, self._poll)

    def _show_step(self, report: Report | None) -> None:
        if report is not None:
            self.status.set(report.text)
            self._paint(report.spans)

    def _finish(self, report: Report) -> None:
        self.busy = False
        self._enable()
        shown = {"loaded": f"{report.text} is ready - Ctrl+Enter writes, Escape stops", "cancelled": "stopped"}
        self.status.set(shown.get(report.kind, report.text))

    def _paint(self, spans: Sequence[Any]) -> None:
        self.canvas.configure(state="normal")
        self.canvas.delete("1.0", "end")
        self.canvas.insert("end", self.before, "given")
        for span in spans:
            text = MASK * span.tokens if span.kind == "masked" else span.text
            word = text.lstrip()  # a coloured space at the end of a line would colour the line
            self.canvas.insert("end", text[: len(text) - len(word)], "", word, span.kind)
        self.canvas.configure(state="disabled")

    def _enable(self) -> None:
        for button, on in (
            (self.write_button, not self.busy),
            (self.open_button, not self.busy),
            (self.stop_button, self.busy),
        ):
            button.state(["!disabled" if on else "disabled"])


def main() -> None:
    try:
        root = tk.Tk()
    except tk.TclError as error:
        sys.exit(f"no window can be opened: {error}")
    Window(root, sys.argv[1] if len(sys.argv) > 1 else None)
    root.mainloop()
