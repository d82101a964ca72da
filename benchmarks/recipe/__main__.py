"""Makes docs/results.md from nothing: data, teacher, students, their reports, closed loops, tables and figures.

    python -m benchmarks.recipe                        # everything; what is there is not made again
    python -m benchmarks.recipe --parts core           # data, teacher, default student, baselines
    python -m benchmarks.recipe --parts core --smoke   # the same with next to no data, and figures that mean nothing

Every step is a command that is printed before it runs and that could be given by hand; its output goes to ROOT/logs.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.recipe.lab import FULL, SMOKE, Lab
from benchmarks.recipe.variants import (
    DEFAULT,
    EQUAL_TIME,
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
from jaxreflow.errors import JaxReflowError

Part = Literal["core", "screen", "confirm", "rounds"]


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """The experiments behind docs/results.md."""

    parts: tuple[Part, ...] = ("core", "screen", "confirm", "rounds")
    """core: the tables of the default and the baselines; screen: one change at a time; confirm: three seeds; rounds: k = 2, 3."""
    root: Path = Path("runs/metaworld")
    """Where data, runs and logs lie."""
    out: Path = Path("docs")
    """Where results.md, results/ and images/ lie."""
    confirmed: tuple[str, ...] = ("law_half-at-one-beta", "law_exponential")
    """The runners-up that are trained with three seeds, too."""
    smoke: bool = False
    """Runs every step with next to no data and updates, to see that it runs."""


def run(config: RecipeConfig) -> None:
    """Makes what is missing and writes the results."""
    lab = Lab(config.root, config.out / "results", SMOKE if config.smoke else FULL)
    lab.prepare()
    if "core" in config.parts:
        _core(lab)
    if "screen" in config.parts:
        _screen(lab)
    if "confirm" in config.parts:
        _confirm(lab, config.confirmed)
    if "rounds" in config.parts:
        _rounds(lab)
    write_up(config.out, lab)


def _core(lab: Lab) -> None:
    for variant in (DEFAULT, NOISE_BIASED):
        lab.train(variant)
    lab.evaluate(DEFAULT, "--num-steps", "10", "4", "2", "1")  # With latencies: this is also the example of a report.
    lab.evaluate(NOISE_BIASED)
    lab.measure_sides([DEFAULT, NOISE_BIASED])
    lab.close_loop([DEFAULT, NOISE_BIASED])


def _screen(lab: Lab) -> None:
    for variant in (DEFAULT, *SCREENED, *EQUAL_TIME):
        _train_short(lab, variant)


def _confirm(lab: Lab, names: tuple[str, ...]) -> None:
    for variant in (DEFAULT, *(variant for variant in SCREENED if variant.name in names)):
        for seed in SEEDS:
            _train_short(lab, seeded(variant, seed))


def _rounds(lab: Lab) -> None:
    for variant in (DEFAULT, REAL_SHARE, *ROUNDS):
        _train_short(lab, variant)


def _train_short(lab: Lab, variant: Variant) -> None:
    """Trains and measures it for as many updates as all that are compared with it, or for as long."""
    updates = lab.scale.equal_time_updates.get(variant.name, lab.scale.screening_updates)
    own = shortened(variant, updates)
    lab.train(own)
    lab.evaluate(own)


def main() -> int:
    """0 if all was made, 1 after an error."""
    try:
        run(tyro.cli(RecipeConfig, prog="python -m benchmarks.recipe", description=__doc__))
    except JaxReflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
