"""The result of compare.py as a table in Markdown and as a plot. Reads the JSON only; nothing is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARED = 0.85  # localdiff's threads got less of the processors than this: something else ran beside the measurement
LLAMA = ("llama.cpp", "llama.cpp plain")  # default, without repacked weights
CACHE = "dual"
CACHED = f"localdiff {CACHE}"
WRITES = " token by token"
BOUND = {"int8": "int8", "f32": "f32"}


def better(found: dict[str, Any], doing: str = "") -> str | None:
    """llama.cpp's faster setting of a measurement."""
    present = [name + doing for name in LLAMA if name + doing in found]
    return min(present, key=lambda name: found[name]["ms"]) if present else None


def exact(found: dict[str, Any], name: str) -> str:
    """The ratio to a peer in exact arithmetic, where localdiff's figures are those of fast."""
    ours = found.get("localdiff exact")
    return f"{found[name]['ms'] / ours['ms']:.2f}" if ours else "-"


def spread(ratio: list[float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"


def markdown(result: dict[str, Any]) -> str:
    card = result["models"][0]["card"]
    clock = "processor time" if result["clock"] == "cpu" else "wall time"
    lines = [
        f"{card['cpu']}, {card['threads']} threads, kernel row {card['isa']}, localdiff {card['localdiff']}, "
        f"{card['date']}; other load on the machine {card['load']}.",
        f"Medians of {result['pairs']} alternating rounds, {clock}; ratio: speed of localdiff over the peer (min-max). "
        f"Quantised weights in {result.get('math', 'exact')} arithmetic; last column: ratio to the better setting in "
        "exact.",
        "",
    ]
    lines += _forwards(result) + _steps(result) + _answers(result) + _torch(result)
    return "\n".join(lines) + "\n"


def _forwards(result: dict[str, Any]) -> list[str]:
    lines = [
        "| model | rows | localdiff ms | GOPS | of peak | llama.cpp ms | ratio | its better setting ms | ratio | "
        "exact |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        bound = model["peak"][BOUND[model["arithmetic"]]]
        for found in model["forwards"]:
            ours, theirs, name = found["localdiff"], found.get("llama.cpp"), better(found)
            peers = (
                f"{theirs['ms']:.0f} | {spread(theirs['ratio'])} | {found[name]['ms']:.0f} | "
                f"**{spread(found[name]['ratio'])}** | {exact(found, name)}"
                if theirs and name
                else "- | - | - | - | -"
            )
            shared = " (shared machine)" if result["clock"] == "wall" and found["processor_share"] < SHARED else ""
            lines.append(
                f"| {model['model']} | {found['rows']}{shared} | {ours['ms']:.1f} | {ours['gops']:.0f} | "
                f"{ours['gops'] / bound:.0%} | {peers} |"
            )
    return [*lines, ""]


def _steps(result: dict[str, Any]) -> list[str]:
    step = result["models"][0]["step"]
    lines = [
        f"One denoise step, {step['prompt']} + {step['answer']} rows, half the answer masked, against llama.cpp's "
        "diffusion loop:",
        "",
        "| model | localdiff ms | llama.cpp ms | ratio | its better setting ms | ratio | exact |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        found = model["step"]
        name = better(found)
        if name:
            theirs = found["llama.cpp"]
            lines.append(
                f"| {model['model']} | {found['localdiff']['ms']:.1f} | {theirs['ms']:.0f} | "
                f"{spread(theirs['ratio'])} | {found[name]['ms']:.0f} | **{spread(found[name]['ratio'])}** | "
                f"{exact(found, name)} |"
            )
    return [*lines, ""] if len(lines) > 4 else []


def _answers(result: dict[str, Any]) -> list[str]:
    measured = [(model["model"], model["answer"]) for model in result["models"] if "answer" in model]
    if not measured:
        return []
    shape = measured[0][1]
    lines = [
        f"An answer of {shape['answer']} tokens after {shape['prompt']} of prompt in {shape['steps']} steps, against "
        "llama.cpp's diffusion loop of as many, and against llama.cpp writing it token by token (an autoregressive "
        "model of the same shape); its better setting of each:",
        "",
        f"| model | localdiff s | with the cache {CACHE} | llama.cpp's loop s | ratio | with the cache | token by "
        "token s | ratio | with the cache |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in measured:
        cells = [f"{found[each]['ms'] / 1e3:.2f}" for each in ("localdiff", CACHED)]
        for doing in ("", WRITES):
            peer = better(found, doing)
            if peer is None:
                cells += ["-"] * 3
                continue
            theirs = found[peer]
            cells += [f"{theirs['ms'] / 1e3:.2f}", spread(theirs["ratio"]), f"**{spread(theirs['ratio_cached'])}**"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _torch(result: dict[str, Any]) -> list[str]:
    lines = [
        "The products of the same shapes alone in torch (no attention, no norms), against localdiff's whole forward:",
        "",
        "| model | rows | localdiff GOPS | torch | its GOPS | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        for found in model.get("torch", []):
            theirs = found[f"torch {found['kind']}"]
            lines.append(
                f"| {model['model']} | {found['rows']} | {found['localdiff']['gops']:.0f} | {found['kind']} | "
                f"{theirs['gops']:.0f} | {spread(theirs['ratio'])} |"
            )
    return [*lines, ""] if len(lines) > 4 else []


def plot(result: dict[str, Any], to: Path) -> None:
    """GOPS against rows, one panel per model, with the machine's peak."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = result["models"]
    columns = min(4, len(models))
    figure, axes = pyplot.subplots(
        -(-len(models) // columns), columns, squeeze=False, figsize=(4 * columns, 3.2 * -(-len(models) // columns))
    )
    for panel in axes.flat[len(models) :]:
        panel.axis("off")
    for panel, model in zip(axes.flat, models, strict=False):
        rows = [found["rows"] for found in model["forwards"]]
        for name in ("localdiff", "localdiff exact", *LLAMA):
            if name in model["forwards"][0]:
                panel.plot(rows, [found[name]["gops"] for found in model["forwards"]], "o-", label=name)
        for kind in {found["kind"] for found in model.get("torch", [])}:
            points = [found for found in model["torch"] if found["kind"] == kind]
            panel.plot(
                [found["rows"] for found in points],
                [found[f"torch {kind}"]["gops"] for found in points],
                "x:",
                label=f"torch {kind}, products only",
            )
        panel.axhline(model["peak"][BOUND[model["arithmetic"]]], color="grey", linestyle="--", label="measured peak")
        panel.set(title=model["model"], xlabel="rows", ylabel="GOPS", xscale="log", ylim=(0, None))
        panel.set_xticks(rows, [str(row) for row in rows])
        panel.minorticks_off()
    axes.flat[0].legend(fontsize=7)
    card = models[0]["card"]
    figure.suptitle(f"{card['cpu']}, {card['threads']} threads, {card['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(to, dpi=110)
    pyplot.close(figure)
