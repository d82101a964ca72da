"""Makes the studies of docs/results.md: data, teacher, students, their reports, closed loops, tables and figures.

    python -m benchmarks.recipe                        # the first study, except for what was made before
    python -m benchmarks.recipe --parts core           # data, teacher, default student, baselines
    python -m benchmarks.recipe --jobs 4               # the short runs of the screening four at a time
    python -m benchmarks.recipe --smoke                # the same with almost no data, in build/smoke
    python -m benchmarks.recipe --study compact        # students that see cheaper, of a teacher of their own
    python -m benchmarks.recipe --study latency        # robots that do not wait for their policy
    python -m benchmarks.recipe --study rival          # SnapFlow beside reflow
    python -m benchmarks.recipe --study aloha          # two arms that hand over a cube
    python -m benchmarks.recipe --study width --root runs/metaworld   # learning rates of wider experts, on the first study's data

`make results` runs all of them, which takes many hours on two cores. The first teacher alone takes 48 minutes. Tables, pictures and
results below --out are replaced. `python -m benchmarks.recipe.lerobot_eval` asks LeRobot's own judge.

Every step is a command, which is printed before it runs. You can give it by hand, too. Its output goes to ROOT/logs.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from benchmarks.recipe import aloha, compact, latency, rival, width
from benchmarks.recipe.lab import FULL, SIDES, SIDES_LENGTHS, SMOKE, Lab, Scale, check_jobs, side_by_side
from benchmarks.recipe.summary import write_summary
from benchmarks.recipe.variants import (
    CAPACITY,
    DEFAULT,
    EQUAL_COST,
    FULL_COST,
    GROUPED,
    LENGTHS,
    NOISE_BIASED,
    NOISE_BIASED_MIDDLE,
    REAL_SHARE,
    ROUNDS,
    SCREENED,
    SEEDS,
    Variant,
    seeded,
    shortened,
)
from benchmarks.recipe.write_up import write_up
from jaxreflow.errors import ConfigError
from jaxreflow.support.command_line import parse
from jaxreflow.support.command_line import run as run_command

Part = Literal["core", "screen", "confirm", "rounds", "length", "capacity", "full-cost"]
PARTS: tuple[Part, ...] = get_args(Part)
CONFIRMED = ("pseudo_huber", "no_ema")


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """The experiments behind docs/results.md."""

    study: Literal["recipe", "compact", "latency", "rival", "aloha", "width"] = "recipe"
    """recipe: the first study; compact: students with fewer image tokens and layers, of a teacher of their own; latency:
    success where time passes while the policies of benchmarks/recipe/policies think; rival: SnapFlow on their teacher; aloha:
    gym-aloha's TransferCube; width: learning rates of experts of three widths."""
    parts: tuple[Part, ...] = PARTS
    """core: the tables of the default and the baselines; screen: one change at a time; confirm: three seeds; rounds: students
    of students; length: more and more updates; capacity: fewer and more trained parameters; full-cost: noises per observation
    in the time that they take at full size."""
    root: Path | None = None
    """Where data, runs, their reports and logs lie (default: runs/metaworld, and for studies runs/STUDY)."""
    out: Path = Path("docs")
    """Where results.md, results/ and images/ lie."""
    confirmed: tuple[str, ...] = CONFIRMED
    """The runners-up that are trained with three seeds, too."""
    jobs: int = 1
    """Number of short runs at the same time, each on its share of the CPU's cores."""
    smoke: bool = False
    """Runs every step with almost no data and updates, to see that it runs. --root and --out then lie below build/smoke."""

    def __post_init__(self) -> None:
        unknown = set(self.confirmed) - {variant.name for variant in (*SCREENED, *EQUAL_COST)}
        if unknown:
            raise ConfigError(f"--confirmed: expected names of benchmarks/recipe/variants.py, found {sorted(unknown)}")
        if self.parts != PARTS and self.study != "recipe":
            raise ConfigError(f"--parts are of --study recipe only, found --study {self.study}; leave --parts out")
        if self.confirmed != CONFIRMED and self.study != "recipe":
            raise ConfigError(
                f"--confirmed is of --study recipe only, found --study {self.study}; leave --confirmed out"
            )
        if self.smoke and any(path.is_absolute() for path in (self.root or Path(), self.out)):
            raise ConfigError(
                "--smoke works below build/smoke: expected relative paths as --root and --out, found an absolute one"
            )
        check_jobs(self.jobs)
        if self.jobs > 1 and self.study not in ("recipe", "compact", "width"):
            raise ConfigError(
                f"--jobs: expected 1, because the steps of --study {self.study} run one by one, found {self.jobs}"
            )


def run(config: RecipeConfig) -> None:
    """Makes what is missing and writes the results."""
    base = Path("build/smoke") if config.smoke else Path()
    scale, out = SMOKE if config.smoke else FULL, base / config.out
    if config.study == "recipe":
        _run_recipe(config, Lab(base / (config.root or "runs/metaworld"), scale), out)
    else:
        _run_study(config, base / (config.root or f"runs/{config.study}"), out)
    write_summary(out)


def _run_recipe(config: RecipeConfig, lab: Lab, out: Path) -> None:
    lab.prepare()
    if "core" in config.parts:
        _core(lab)
    for part, chains in _short_runs(lab.scale, config.confirmed).items():
        if part in config.parts:
            side_by_side(config.jobs, [functools.partial(_train_and_measure, lab, chain) for chain in chains])
    if "length" in config.parts:
        lab.measure_sides(SIDES_LENGTHS, LENGTHS)
    write_up(out, lab)


def _run_study(config: RecipeConfig, root: Path, out: Path) -> None:
    if config.study == "compact":
        compact.run_study(compact.compact_lab(root, SMOKE if config.smoke else compact.COMPACT), out, config.jobs)
    elif config.study == "latency":
        latency.run_study(Lab(root, FULL), latency.SMOKE if config.smoke else latency.FULL, out)
    elif config.study == "rival":
        rival.run_study(rival.RivalLab(root, SMOKE if config.smoke else rival.SCALE), out)
    elif config.study == "width":
        width.run_study(Lab(root, SMOKE if config.smoke else width.SCALE), out, config.jobs)
    else:
        smoke = dataclasses.replace(SMOKE, demonstrations=(3,), held_out=(6,))
        aloha.run_study(aloha.aloha_lab(root, smoke if config.smoke else aloha.ALOHA), out)


def _core(lab: Lab) -> None:
    for variant in (DEFAULT, NOISE_BIASED):
        lab.train(variant)
    lab.evaluate(DEFAULT, num_steps=(10, 4, 2, 1), repeats=100)  # With latencies: this is also the example of a report.
    lab.evaluate(NOISE_BIASED)
    lab.measure_sides(SIDES, [DEFAULT, NOISE_BIASED])
    lab.close_loop([DEFAULT, NOISE_BIASED])


def _short_runs(scale: Scale, confirmed: tuple[str, ...]) -> dict[Part, list[tuple[Variant, ...]]]:
    """The students that the parts train for their tables. Students that wait for each other form a group."""

    def short(*variants: Variant) -> tuple[Variant, ...]:
        """The variants at the length of their comparison: as many updates as the others, or at as much cost."""
        updates = scale.equal_cost_updates
        return tuple(shortened(variant, updates.get(variant.name, scale.screening_updates)) for variant in variants)

    baseline = short(NOISE_BIASED)
    finalists = (DEFAULT, *(variant for variant in (*SCREENED, *EQUAL_COST) if variant.name in confirmed))
    return {
        "screen": [baseline, *(short(variant) for variant in (DEFAULT, *SCREENED, *EQUAL_COST))],
        "confirm": [baseline, *(short(seeded(variant, seed)) for variant in finalists for seed in SEEDS)],
        "rounds": [baseline, short(DEFAULT, *ROUNDS[:2]), short(GROUPED, *ROUNDS[2:4]), short(REAL_SHARE, *ROUNDS[4:])],
        "length": [(variant,) for variant in (NOISE_BIASED_MIDDLE, *LENGTHS)],
        "capacity": [(variant,) for variant in (NOISE_BIASED_MIDDLE, *CAPACITY)],
        "full-cost": [(variant,) for variant in FULL_COST],
    }


def _train_and_measure(lab: Lab, variants: Sequence[Variant]) -> None:
    for variant in variants:
        lab.train(variant)
        lab.evaluate_short(variant)


def main() -> int:
    """0 if all was made, 1 after an error."""
    return run_command(_main, None)


def _main(args: list[str]) -> int:
    run(parse(RecipeConfig, args, prog="python -m benchmarks.recipe", about=__doc__ or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
