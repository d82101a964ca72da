"""The study of students that see cheaper: fewer image tokens, fewer layers, and what of them is trained.

    python -m benchmarks.recipe --study compact

Its teacher has slack, as SmolVLA has: 8 VLM layers, and 64 image tokens of pictures of 128 pixels. One that was trained so lies in
`benchmarks/recipe/policies/compact_teacher`: with ten of its actions executed it succeeds in .892 [.823, .936] of 120 episodes.

    python -m jaxreflow.sim --policy benchmarks/recipe/policies/compact_teacher --num-steps 10 --n-action-steps 10 --episodes 30 \\
        --seed 500000 --options.size 128 \\
        --env metaworld:wall-detour,button-press-topdown-v3,handle-press-v3,drawer-close-v3
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.recipe.lab import FULL, TEACHER, Lab, Scale, side_by_side
from benchmarks.recipe.page import markdown_table
from benchmarks.recipe.variants import Variant
from benchmarks.recipe.write_up import (
    difference,
    measured,
    read_report,
    shown_name,
    write_study,
)
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.run.arithmetic import call_operations
from jaxreflow.sim.intervals import wilson
from jaxreflow.sim.results import Result, pooled
from jaxreflow.support.new_folder import new_directory

VLM = Path("tests/assets/teacher/vlm")
IMAGE_SIZE, PATCH_SIZE, LAYERS = 128, 8, 8
_HALF, _QUARTER, _LAYERS = ("--student.image-size", "96"), ("--student.image-size", "64"), ("--student.vlm-layers", "4")
_EXPERT, _LANGUAGE = ("--trainable", "expert"), ("--trainable", "expert+connector+language")
# With as many image tokens as the teacher, which are then the teacher's own.
_SAME_TOKENS = ("--trainable", "expert+language")

SAME = Variant("full", "network", "the teacher's", _EXPERT)
QUARTER = Variant("tokens_16", "network", "16 of 64 image tokens", (*_QUARTER, *_LANGUAGE))
NETWORKS = (
    SAME,
    Variant("tokens_36", "network", "36 of 64 image tokens", (*_HALF, *_LANGUAGE)),
    QUARTER,
    Variant("layers_first", "network", "the first 4 of 8 layers", (*_LAYERS, *_SAME_TOKENS)),
    Variant(
        "layers_spaced", "network", "4 of 8 layers, spaced", (*_LAYERS, "--student.layers", "spaced", *_SAME_TOKENS)
    ),
    Variant("both", "network", "16 of 64 image tokens, the first 4 of 8 layers", (*_QUARTER, *_LAYERS, *_LANGUAGE)),
)
TRAINED = tuple(
    Variant(f"tokens_16_{name}", "trained, at 16 image tokens", trainable, (*_QUARTER, "--trainable", trainable, *more))
    for name, trainable, more in (
        ("expert", "expert", ()),
        ("connector", "expert+connector", ()),
        ("vision", "expert+connector+language+vision", ()),
        ("adapters", "expert+connector+language:lora", ("--lora.rank", "16")),
    )
)
LONGER = (
    Variant(
        "tokens_16_long",
        "network",
        "16 of 64 image tokens, three times as long",
        (*_QUARTER, *_LANGUAGE),
        times_as_long=3,
    ),
    Variant(
        "both_long",
        "network",
        "16 of 64 image tokens, the first 4 of 8 layers, three times as long",
        (*_QUARTER, *_LAYERS, *_LANGUAGE),
        times_as_long=3,
    ),
)
STUDENTS = (*NETWORKS, *LONGER, *TRAINED)
# What runs in closed loop, too.
FINALISTS = tuple(
    dataclasses.replace(student, acts_in=(1,))
    for student in STUDENTS
    if student.name in ("full", "tokens_16", "tokens_16_long", "layers_first", "both", "both_long")
)
# Fewer demonstrations and shorter runs than the first study: an update of this teacher takes five times as long.
COMPACT = dataclasses.replace(
    FULL, demonstrations=(400, 160, 100, 140), teacher_updates=8_000, student_updates=3_000, episodes=130
)


def compact_lab(root: Path, scale: Scale) -> Lab:
    """The lab of this study, with the VLM's config and tokenizer in `root`/vlm."""
    vlm = root / "vlm"
    if not vlm.is_dir():
        write_vlm(vlm)
    size = ("--policy.resize-imgs-with-padding", str(IMAGE_SIZE), str(IMAGE_SIZE))
    return Lab(root, scale, IMAGE_SIZE, ("--policy.vlm", str(vlm), "--policy.num-vlm-layers", str(LAYERS), *size))


def write_vlm(folder: Path) -> None:
    """The demo's VLM with more layers, for larger pictures of smaller patches; no weights."""
    config = json.loads((VLM / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = LAYERS
    config["vision_config"] |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    with new_directory(folder) as out:
        shutil.copytree(VLM, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def run_study(lab: Lab, out: Path, jobs: int) -> None:
    """Trains and measures what is missing: all students at equal updates, then the finalists in closed loop."""
    lab.prepare()
    side_by_side(jobs, [functools.partial(_train_and_measure, lab, student) for student in STUDENTS])
    lab.close_loop(FINALISTS)
    write_compact(out, lab)


def _train_and_measure(lab: Lab, student: Variant) -> None:
    lab.train(student)
    lab.evaluate(student, num_steps=(10, 2, 1), repeats=30, draws=lab.scale.screening_draws)


def write_compact(out: Path, lab: Lab) -> None:
    """Fills the study's blocks of `out`/results.md, draws the figure, and keeps the results behind them."""
    results = write_study(out, lab, "compact", STUDENTS, lambda: students_table(lab))
    if results:
        picture = out / "images" / "compact.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot_cost(lab, results).savefig(picture, dpi=130, facecolor="white")


def _cost(path: Path, steps: int) -> float:
    """Floating-point operations of one call of a policy."""
    policy = load_saved_policy(path)
    return sum(call_operations(policy.config, policy.processors.tokenizer.max_length, steps).values())


def students_table(lab: Lab) -> str | None:
    """What each student costs, and how far it is from its teacher, which comes first; None before one is measured."""
    found = [(student, report) for student in STUDENTS if (report := read_report(lab, student.name)) is not None]
    if not found:
        return None
    whole = _cost(lab.teacher, 10)
    quarter = read_report(lab, QUARTER.name)
    rows: list[list[str]] = []
    for student, report in found:
        if not rows:
            rows += [
                [
                    "teacher",
                    f"@{n}",
                    "",
                    *measured(report, "teacher", n)[:3],
                    "",
                    f"{_cost(lab.teacher, n) / whole:.2f}",
                ]
                for n in (2, 1)
            ]
        cost = _cost(lab.student(student.name), 1) / whole
        trained = student.flags[student.flags.index("--trainable") + 1]
        rows.append(
            [
                student.change if student.group == "network" else student.group,
                "@1",
                trained,
                *measured(report, "student", 1)[:3],
                difference(quarter, report, "student", 1) if quarter and student != QUARTER else "",
                f"{cost:.2f}",
            ]
        )
    heads = [
        "policy",
        "steps",
        "trained",
        "error, all frames",
        "early wall frames",
        "energy distance",
        f"all frames, less {QUARTER.change}",
        "operations of a call",
    ]
    return markdown_table(heads, rows)


def plot_cost(lab: Lab, results: Sequence[Result]) -> Figure:
    """Success over the operations of a call, with Wilson's intervals; a panel for each number of executed actions."""
    executed = sorted({result.n_action_steps for result in results})
    costs = {
        (name, steps): _cost(lab.teacher if name == TEACHER else lab.student(name), steps)
        for name, steps in dict.fromkeys((result.policy, result.num_steps) for result in results)
    }
    whole = costs[TEACHER, 10]
    places = _beside_each_other([cost / whole for cost in costs.values()])
    colours = [*mpl.color_sequences["tab10"], *mpl.color_sequences["Dark2"]]
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(2.4 + 4.0 * len(executed), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(executed), sharey=True, squeeze=False)[0]
        for axis, n in zip(axes, executed, strict=True):
            for (name, steps), place, colour in zip(costs, places, colours, strict=False):
                own = [r for r in results if (r.policy, r.num_steps, r.n_action_steps) == (name, steps, n)]
                if own:
                    success = pooled(own)
                    rate = wilson(int(success.sum()), len(success))
                    bars = [[rate.value - rate.low], [rate.high - rate.value]]
                    label = f"{shown_name(name)}@{steps}"
                    axis.errorbar(place, rate.value, bars, fmt="o", ms=4, capsize=3, color=colour, label=label)
            axis.set(title=f"{n} actions executed", xlabel="operations of a call, teacher@10 = 1", xlim=(0, 1.1))
            axis.grid(visible=True, alpha=0.3)
        axes[0].set_ylabel("success")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return figure


def _beside_each_other(places: Sequence[float], apart: float = 0.02) -> list[float]:
    """The places of points on an axis, with those that would lie on each other moved to the right."""
    taken: list[float] = []
    for place in places:
        while any(abs(place - other) < apart * 0.9 for other in taken):
            place += apart
        taken.append(place)
    return taken
