"""What a run shows when it is over: a table of same-noise errors, example chunks, and the loss curve."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8

from jaxreflow.evaluation import Fidelity
from jaxreflow.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEACHER_COLOUR, STUDENT_COLOUR = "#2b5c8a", "#c1521f"


@dataclasses.dataclass(frozen=True)
class Example:
    """One frame: its camera image, its instruction, and chunks `[M, C, d]` of each policy by its label."""

    image: UInt8[np.ndarray, "H W 3"]
    task: str
    chunks: Mapping[str, Float[np.ndarray, "M C d"]]


def table(rows: Sequence[Fidelity], reference: str) -> str:
    """A Markdown table: one line per policy and step count, one column per set of frames."""
    sets = list(dict.fromkeys(row.frames for row in rows))
    lines = [
        f"| relative error to {reference}, same noise | " + " | ".join(sets) + " |",
        "| --- |" + " --- |" * len(sets),
    ]
    for name, steps in dict.fromkeys((row.name, row.num_steps) for row in rows):
        cells = {row.frames: row.relative_error for row in rows if (row.name, row.num_steps) == (name, steps)}
        lines.append(f"| {name}@{steps} | " + " | ".join(f"{cells[s]:.3f}" for s in sets) + " |")
    return "\n".join(lines)


def plot_chunks(examples: Sequence[Example], axes_names: Sequence[str]) -> Figure:
    """Each example in a row: the camera, then the chunks of every policy as paths of the first two action dims summed up."""
    labels = list(examples[0].chunks)
    figure, axes = _figure(len(examples), 1 + len(labels), (2.6 * (1 + len(labels)), 2.7 * len(examples)))
    for row, example in zip(axes, examples, strict=True):
        row[0].imshow(example.image)
        row[0].set_axis_off()
        row[0].set_title(example.task, fontsize=9)
        paths = {label: _path(chunk) for label, chunk in example.chunks.items()}
        reach = 1.05 * max(np.abs(path).max() for path in paths.values())
        for axis, (label, path) in zip(row[1:], paths.items(), strict=True):
            colour = STUDENT_COLOUR if label.startswith("student") else TEACHER_COLOUR
            for one in path:
                axis.plot(one[:, 0], one[:, 1], color=colour, alpha=0.55, linewidth=1.1)
            axis.plot(0, 0, "o", color="black", markersize=3)
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            axis.set_title(label, fontsize=9)
            axis.set_xlabel(f"sum of {axes_names[0]}", fontsize=8)
            axis.tick_params(labelsize=7)
        row[1].set_ylabel(f"sum of {axes_names[1]}", fontsize=8)
    return figure


def _path(chunk: Float[np.ndarray, "M C d"]) -> Float[np.ndarray, "M T 2"]:
    start = np.zeros((chunk.shape[0], 1, 2), chunk.dtype)
    return np.concatenate([start, np.cumsum(chunk[..., :2], axis=1)], axis=1)


def plot_losses(run_dir: Path) -> Figure:
    """Training and held-out loss over updates, on a logarithmic scale."""
    records = list(read_metrics(run_dir))
    figure, axes = _figure(1, 1, (6.4, 3.6))
    axis = axes[0][0]
    for name, label, style in (("loss", "training", "-"), ("held_out_loss", "held-out episodes", "o-")):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            axis.plot(*zip(*points, strict=True), style, markersize=4, label=label)
    axis.set(xlabel="update", ylabel="reflow loss", yscale="log")
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend()
    return figure


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False)


def write_report(out: Path, rows: Sequence[Fidelity], reference: str, figures: Mapping[str, Figure]) -> str:
    """Writes `report.json`, `report.md` and one PNG per figure into `out`; returns the table."""
    out.mkdir(parents=True, exist_ok=True)
    text = table(rows, reference)
    (out / "report.json").write_text(
        json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8"
    )
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=130)
    pictures = "\n\n".join(f"![{name}]({name}.png)" for name in figures)
    (out / "report.md").write_text(f"{text}\n\n{pictures}\n", encoding="utf-8")
    return text
