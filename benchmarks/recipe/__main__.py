"""Makes docs/results.md from nothing: data, teacher, students, their reports, closed loops, tables and figures.

    python -m benchmarks.recipe                        # everything; what is there is not made again
    python -m benchmarks.recipe --parts core           # data, teacher, default student, baselines
    python -m benchmarks.recipe --jobs 4               # the short runs of the screening four at a time
    python -m benchmarks.recipe --parts core --smoke   # the same with next to no data, and figures that mean nothing

Every step is a command that is printed before it runs and that could be given by hand; its output goes to ROOT/logs.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.recipe.lab import FULL, SMOKE, Lab, side_by_side
from benchmarks.recipe.variants import (
    DEFAULT,
    EQUAL_TIME,
    LONG,
    NOISE_BIASED,
    REAL_SHARE,
    ROUNDS,
    SCREENED,
    SEEDS,
    Variant,
    seeded,
    shortened,
)
from benchmarks.recipe.write_up import write_up
from jaxreflow.command_line import parse
from jaxreflow.command_line import run as run_command

Part = Literal["core", "long", "screen", "confirm", "rounds"]


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """The experiments behind docs/results.md."""

    parts: tuple[Part, ...] = ("core", "long", "screen", "confirm", "rounds")
    """core: the tables of the default and the baselines; long: a student of three times as many updates in them; screen: one
    change at a time; confirm: three seeds; rounds: k = 2, 3."""
    root: Path = Path("runs/metaworld")
    """Where data, runs and logs lie."""
    out: Path = Path("docs")
    """Where results.md, results/ and images/ lie."""
    confirmed: tuple[str, ...] = ("pseudo_huber", "no_ema")
    """The runners-up that are trained with three seeds, too."""
    jobs: int = 1
    """Short runs at the same time, each on its share of the CPU's cores."""
    smoke: bool = False
    """Runs every step with next to no data and updates, to see that it runs."""


def run(config: RecipeConfig) -> None:
    """Makes what is missing and writes the results."""
    lab = Lab(config.root, config.out / "results", SMOKE if config.smoke else FULL)
    lab.prepare()
    if "core" in config.parts:
        _core(lab)
    if "long" in config.parts:
        _long(lab)
    for part, chains in _short_runs(config.confirmed).items():
        if part in config.parts:
            side_by_side(config.jobs, [functools.partial(_train_short, lab, chain) for chain in chains])
    write_up(config.out, lab)


def _core(lab: Lab) -> None:
    for variant in (DEFAULT, NOISE_BIASED):
        lab.train(variant)
    lab.evaluate(DEFAULT, num_steps=(10, 4, 2, 1), repeats=100)  # With latencies: this is also the example of a report.
    lab.evaluate(NOISE_BIASED)
    lab.measure_sides("sides.json", [DEFAULT, NOISE_BIASED])
    lab.close_loop([DEFAULT, NOISE_BIASED])


def _long(lab: Lab) -> None:
    lab.train(LONG)
    lab.evaluate(LONG)
    lab.measure_sides("sides_long.json", [LONG])
    lab.close_loop([LONG])


def _short_runs(confirmed: tuple[str, ...]) -> dict[Part, list[tuple[Variant, ...]]]:
    """What the parts train for their tables; those that wait for each other stand together."""
    finalists = (DEFAULT, *(variant for variant in SCREENED if variant.name in confirmed))
    return {
        "screen": [(variant,) for variant in (DEFAULT, *SCREENED, *EQUAL_TIME)],
        "confirm": [(seeded(variant, seed),) for variant in finalists for seed in SEEDS],
        "rounds": [(DEFAULT, *ROUNDS[:2]), (REAL_SHARE, *ROUNDS[2:])],
    }


def _train_short(lab: Lab, variants: Sequence[Variant]) -> None:
    """Trains and measures each in turn, for as many updates as all that are compared with it, or for as long."""
    for variant in variants:
        own = shortened(variant, lab.scale.equal_time_updates.get(variant.name, lab.scale.screening_updates))
        lab.train(own)
        lab.evaluate_short(own)


def main() -> int:
    """0 if all was made, 1 after an error."""
    return run_command(_main, None)


def _main(args: list[str]) -> int:
    run(parse(RecipeConfig, args, prog="python -m benchmarks.recipe", about=__doc__ or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
