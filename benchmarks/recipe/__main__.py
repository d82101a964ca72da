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
from benchmarks.recipe.variants import DEFAULT, NOISE_BIASED, ROUNDS, SCREENED, Variant, length, noises_variants
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
    confirmed: tuple[str, ...] = ("law_exponential", "law_discrete")
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
    """Shorter runs, all equally long, the default among them."""
    short = length(lab.scale.screening_updates)
    for variant in (DEFAULT, *SCREENED, *noises_variants(lab.scale.equal_time_updates)):
        own = dataclasses.replace(variant, name=f"screen_{variant.name}", flags=(*short, *variant.flags))
        lab.train(own)
        lab.evaluate(own)


def _confirm(lab: Lab, names: tuple[str, ...]) -> None:
    runners_up = [variant for variant in SCREENED if variant.name in names]
    for variant in (DEFAULT, *runners_up):
        for seed in (0, 1, 2):
            own = _seeded(variant, seed)
            lab.train(own)
            lab.evaluate(own)


def _seeded(variant: Variant, seed: int) -> Variant:
    if seed == 0:
        return variant
    return dataclasses.replace(variant, name=f"{variant.name}_seed{seed}", flags=(*variant.flags, "--seed", str(seed)))


def _rounds(lab: Lab) -> None:
    for variant in (*(v for v in SCREENED if v.name == "real_share"), *ROUNDS):
        lab.train(variant)
        lab.evaluate(variant)


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
