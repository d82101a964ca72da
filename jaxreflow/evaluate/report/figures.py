"""Pictures of a report: no background, lines in mid-tones, text in the page's own colour, for light and dark alike."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from jaxreflow.data.frames import ALL
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.paths import Example
from jaxreflow.evaluate.report.table import find, policy_order
from jaxreflow.run.record.metrics import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"teacher": "#3b86c8", "student": "#d9682b"}
MARKS = {"teacher": "o", "student": "s"}
INK = "#010203"
"""Stands for the colour of text, which `svg` makes dark on light pages and light on dark ones."""
_INK_STYLE = (
    "<style>:root { color: #1b1f24; } @media (prefers-color-scheme: dark) { :root { color: #e4e8ec; } }</style>"
)
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file that names no address; text stays text."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxreflow"}):
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=about)
    element = file.getvalue().partition("<svg")[2]
    return f"<svg{element}".replace(INK, "currentColor").replace("<defs>", f"<defs>{_INK_STYLE}", 1).encode()


def _name(label: str) -> str:
    return label.split("@")[0]


@mpl.rc_context(_STYLE)
def plot_errors(measures: Measures) -> Figure:
    """Same-noise error over step count, with its intervals, one panel per set of frames."""
    sets = list(measures.frames)
    figure, axes = _figure(1, len(sets), (4.4 * len(sets), 3.3))
    for axis, frames in zip(axes[0], sets, strict=True):
        for name in dict.fromkeys(row.name for row in measures.fidelity):
            rows = [r for r in measures.fidelity if (r.name, r.frames) == (name, frames)]
            rows = [r for r in rows if r.label != measures.reference]
            values = [r.error.value for r in rows]
            low = [r.error.value if r.error.low is None else min(r.error.low, r.error.value) for r in rows]
            high = [r.error.value if r.error.high is None else max(r.error.high, r.error.value) for r in rows]
            spans = [np.subtract(values, low), np.subtract(high, values)]
            style = {"color": COLOURS[name], "marker": MARKS[name], "capsize": 3, "label": name}
            axis.errorbar([r.num_steps for r in rows], values, yerr=spans, **style)
        steps = sorted({r.num_steps for r in measures.fidelity})
        axis.set(xscale="log", xlabel="Euler steps", title=f"{frames} frames", ylim=(0, None))
        axis.set_xticks(steps, [str(s) for s in steps])
        axis.minorticks_off()
        axis.grid(visible=True)
    axes[0][0].set_ylabel(f"relative error to {measures.reference}")
    axes[0][0].legend()
    return figure


def _fewest(measures: Measures, count: int) -> list[str]:
    """Labels of each subject's fewest step counts."""
    labels = policy_order(measures)
    return [label for name in ("teacher", "student") for label in [x for x in labels if _name(x) == name][-count:]]


@mpl.rc_context(_STYLE)
def plot_positions(measures: Measures) -> Figure:
    """Error along the chunk, at the fewest steps."""
    figure, axes = _figure(1, 1, (8.8, 3.1))
    axis = axes[0][0]
    least = min(row.num_steps for row in measures.fidelity)
    for label in _fewest(measures, 2):
        row = find(measures.fidelity, label, ALL)
        style = "-" if row.num_steps == least else "--"
        axis.plot(row.per_position, style, color=COLOURS[row.name], label=label, linewidth=1.8)
    axis.set(xlabel="position in the chunk", ylabel=f"relative error to {measures.reference}", ylim=(0, None))
    axis.grid(visible=True)
    axis.legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure


@mpl.rc_context(_STYLE)
def plot_fields(measures: Measures, action_dim: int) -> Figure:
    """Velocity error and straightness over t, noise at the right."""
    figure, axes = _figure(1, 2, (8.8, 3.3))
    for field in measures.fields:
        colour, mark = COLOURS[field.name], MARKS[field.name]
        errors = np.array(field.error)[:, :action_dim]
        axes[0][0].plot(field.times, errors, color=colour, alpha=0.3, linewidth=0.9)
        axes[0][0].plot(field.times, errors.mean(1), color=colour, marker=mark, markersize=4, label=field.name)
        axes[0][1].plot(field.path_times, field.straightness, color=colour, label=field.name)
    titles = ("velocity error (thin: each dim)", "straightness of the own path, 0 is straight")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set(xlabel="t (1 is noise, 0 is the action)", title=title, ylim=(0, None))
        axis.grid(visible=True)
    axes[0][0].legend()
    return figure


@mpl.rc_context(_STYLE)
def plot_paths(examples: Sequence[Example]) -> Figure:
    """Each example in a row: the sampler's paths from noise to action, in the plane of the reference's chunks."""
    labels = list(examples[0].paths)
    figure, axes = _figure(len(examples), len(labels), (2.9 * len(labels), 2.8 * len(examples)))
    for row, example in zip(axes, examples, strict=True):
        points = np.concatenate([path.reshape(-1, 2) for path in example.paths.values()])
        low, high = points.min(0), points.max(0)
        margin = 0.06 * (high - low) + 1e-9
        for axis, label in zip(row, labels, strict=True):
            _plot_path(axis, example.paths[label], COLOURS[_name(label)])
            axis.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
            axis.set_title(label)
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def _plot_path(axis: Axes, paths: np.ndarray, colour: str) -> None:
    for path in paths:
        axis.plot(path[:, 0], path[:, 1], color="#888888", alpha=0.45, linewidth=0.8)
    axis.plot(paths[:, 0, 0], paths[:, 0, 1], ".", color="#888888", markersize=4)
    axis.plot(paths[:, -1, 0], paths[:, -1, 1], "o", color=colour, markersize=4)


@mpl.rc_context(_STYLE)
def plot_chunks(examples: Sequence[Example], axes_names: Sequence[str]) -> Figure:
    """Each example in a row: the camera, then the chunks of every policy as paths of the first two action dims summed up."""
    labels = list(examples[0].chunks)
    figure, axes = _figure(len(examples), 1 + len(labels), (2.6 * (1 + len(labels)), 2.7 * len(examples)))
    for row, example in zip(axes, examples, strict=True):
        row[0].imshow(example.image)
        row[0].set_axis_off()
        row[0].set_title(example.task, fontsize=9)
        paths = {label: _summed(chunk) for label, chunk in example.chunks.items()}
        reach = 1.05 * max(np.abs(path).max() for path in paths.values())
        for axis, (label, path) in zip(row[1:], paths.items(), strict=True):
            for one in path:
                axis.plot(one[:, 0], one[:, 1], color=COLOURS[_name(label)], alpha=0.55, linewidth=1.1)
            axis.plot(0, 0, "o", color=INK, markersize=3)
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=label)
            axis.set_xlabel(f"sum of {axes_names[0]}", fontsize=8)
            axis.tick_params(labelsize=7)
        row[1].set_ylabel(f"sum of {axes_names[1]}", fontsize=8)
    return figure


def _summed(chunk: np.ndarray) -> np.ndarray:
    start = np.zeros((chunk.shape[0], 1, 2), chunk.dtype)
    return np.concatenate([start, np.cumsum(chunk[..., :2], axis=1)], axis=1)


@mpl.rc_context(_STYLE)
def plot_latency(measures: Measures) -> Figure:
    """Median milliseconds per chunk: the prefix, then the Euler steps."""
    rows = measures.calls
    figure, axes = _figure(1, 1, (8.8, 0.7 + 0.42 * len(rows)))
    axis = axes[0][0]
    names, prefixes = [row.label for row in rows], [row.prefix for row in rows]
    axis.barh(names, prefixes, color="#888888", label="prefix")
    axis.barh(names, [row.loop for row in rows], left=prefixes, color=COLOURS["teacher"], label="Euler steps")
    axis.invert_yaxis()
    axis.set_xlabel("ms per chunk, median")
    axis.legend()
    return figure


@mpl.rc_context(_STYLE)
def plot_losses(records: Sequence[Record]) -> Figure:
    """Training and held-out loss over updates, on a logarithmic scale."""
    figure, axes = _figure(1, 1, (8.8, 3.1))
    axis = axes[0][0]
    for name, label, style in (("loss", "training", "-"), ("held_out_loss", "held-out episodes", "o-")):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            colour = COLOURS["teacher" if name == "loss" else "student"]
            axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)
    axis.set(xlabel="update", ylabel="loss", yscale="log")
    axis.grid(visible=True, which="both")
    axis.legend()
    return figure
