"""The students that docs/results.md compares: configs/metaworld.py with one change at a time."""

from __future__ import annotations

import dataclasses

SNAPFLOW = "snapflow"
"""In place of a config of `train.py`: `benchmarks.recipe.snapflow`."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One student: what differs from the default, the flags of `train.py` for it, and its teacher."""

    name: str
    group: str
    change: str
    flags: tuple[str, ...] = ()
    config: str = "metaworld"
    """The config of `train.py`; metaworld_biased is the fine-tune that has no teacher. Or SNAPFLOW."""
    teacher: str | None = None
    """Another student that is its teacher; None: the teacher itself."""
    cached: bool = True
    """Whether it learns from cached image tokens of its teacher; not if it shares a vision tower that is trained, too."""
    times_as_long: int = 1
    """Its updates, where the study sets a number of them, in multiples of that number."""
    acts_in: tuple[int, ...] = (1, 2)
    """The numbers of Euler steps in which it is tried in closed loop."""

    @property
    def shares_tokens(self) -> bool:
        """Whether these tokens are the student's, too."""
        return self.cached and "--student.image-size" not in self.flags and "connector" not in " ".join(self.flags)


def _law(name: str, change: str) -> Variant:
    return Variant(f"law_{name}", "law of t", change, ("--time-law", name))


DEFAULT = Variant("default", "default", "half of the times at 1, the others as e^4t; M = 1, 2 times; Muon, 2e-3")
# Ordinary flow matching at the same number of updates, with times near noise: arXiv 2606.05737's way to one step.
NOISE_BIASED = Variant(
    "noise_biased", "baseline", "flow matching on the data, t from Beta(4, 1)", config="metaworld_biased"
)

# Its policy knows one step only. An update of reflow takes 2.06 times as long on Meta-World (`step_time` .42 and .204 s, on one
# shared core) and 2.29 times as long on Aloha (.22 and .096 s, on one core). So it gets at least as much time.
RIVAL = Variant("snapflow", "baseline", "SnapFlow, as many updates", ("--updates", "16000"), SNAPFLOW, acts_in=(1,))
RIVALS = (
    RIVAL,
    dataclasses.replace(
        RIVAL, name="snapflow_long", change="SnapFlow, as much time (37,000 updates)", flags=("--updates", "37000")
    ),
)

# Reflow's optimizer and learning rate were chosen on these tasks, so the rival's are tried, too; 1e-4 is that of Intel's code.
RIVAL_RATES = tuple(
    dataclasses.replace(
        RIVAL,
        name=f"snapflow_{optimizer}_{rate}",
        change=f"{label}, {rate}",
        flags=("--updates", "1000", "--optimizer", optimizer, "--lr", rate),
    )
    for optimizer, label, rates in (
        ("muon", "Muon", ("1e-3", "2e-3", "4e-3", "8e-3")),
        ("adamw", "AdamW", ("1e-4", "1e-3", "2e-3")),
    )
    for rate in rates
)

# As many pairs per update, of fewer observations: a share of an observation's noises can be inverted from its actions.
_GROUPED = ("--noises", "4", "--batch-size", "4")
_REAL = (*_GROUPED, "--real-share", "0.25")
GROUPED = Variant("grouped", "M", "M = 4 of 4 observations, as many pairs", _GROUPED)
REAL_SHARE = Variant("real_share", "real data", "M = 4 of 4 observations, one of them real", _REAL)

SCREENED = (
    _law("beta", "t from Beta(1.5, 1)"),
    _law("uniform", "t uniform"),
    _law("u-shaped", "t U-shaped"),
    _law("exponential", "t as e^4t"),
    _law("half-at-one", "half of the times at 1, the others U-shaped"),
    _law("half-at-one-beta", "half of the times at 1, the others from Beta(1.5, 1)"),
    _law("discrete", "t at 1 and 1/2"),
    Variant("adamw", "optimizer", "AdamW, 1e-3", ("--optimizer.name", "adamw", "--optimizer.lr", "1e-3")),
    Variant("adamw_double", "optimizer", "AdamW, 2e-3", ("--optimizer.name", "adamw")),
    Variant("lr_half", "learning rate", "Muon, 1e-3", ("--optimizer.lr", "1e-3")),
    Variant("lr_double", "learning rate", "Muon, 4e-3", ("--optimizer.lr", "4e-3")),
    Variant("no_ema", "EMA", "no moving average", ("--ema-decay", "0")),
    Variant("short_ema", "EMA", "moving average of 0.99", ("--ema-decay", "0.99")),
    Variant("real_dims", "loss", "loss over real action dims", ("--loss-dims", "real")),
    Variant("pseudo_huber", "loss", "pseudo-Huber", ("--objective", "pseudo-huber")),
    Variant(
        "heun", "teacher's solver", "Heun's method in 5 steps", ("--teacher-solver", "heun", "--teacher-steps", "5")
    ),
    GROUPED,
    REAL_SHARE,
)
ROUNDS = (
    Variant("round_2", "rounds", "2 rounds", teacher="default"),
    Variant("round_3", "rounds", "3 rounds", teacher="round_2"),
    Variant("round_2_grouped", "rounds", "2 rounds, M = 4 of 4 observations", _GROUPED, teacher="grouped"),
    Variant("round_3_grouped", "rounds", "3 rounds, M = 4 of 4 observations", _GROUPED, teacher="round_2_grouped"),
    Variant("round_2_real", "rounds", "2 rounds, one of four pairs real", _REAL, teacher="real_share"),
    Variant("round_3_real", "rounds", "3 rounds, one of four pairs real", _REAL, teacher="round_2_real"),
)


# As many updates as take as many evaluations of the network as the screening's default: `Scale.equal_cost_updates`.
EQUAL_COST = (
    Variant("noises_4", "M", "M = 4, fewer updates", ("--noises", "4")),
    Variant("noises_8", "M", "M = 8, fewer updates", ("--noises", "8")),
    Variant("batch_8", "batch", "8 observations, more updates", ("--batch-size", "8")),
    Variant("times_1", "times per pair", "each pair at 1 time, more updates", ("--times", "1")),
    Variant("times_4", "times per pair", "each pair at 4 times, fewer updates", ("--times", "4")),
)


SEEDS = (0, 1, 2)


def length(updates: int) -> tuple[str, ...]:
    """The flags of a run of so many updates."""
    return ("--steps", str(updates), "--optimizer.decay-steps", str(updates))


# The loss that won the screening, for longer and longer. The last is as long as the law of the others asks for an error of .08.
_HUBER = ("--objective", "pseudo-huber")
LENGTHS = tuple(
    Variant(f"length_{n}", "length", f"{n:,} updates", (*_HUBER, *length(n)))
    for n in (1_000, 2_000, 4_000, 8_000, 16_000, 39_000)
)

# Fewer and more trained parameters; the expert and its projections are what is trained elsewhere.
_MIDDLE = length(2_000)
CAPACITY = (
    Variant("length_2000", "trained parameters", "the expert and the projections", (*_HUBER, *_MIDDLE)),
    Variant("lora_4", "trained parameters", "adapters of rank 4 to these", (*_HUBER, *_MIDDLE, "--lora.rank", "4")),
    Variant("lora_16", "trained parameters", "adapters of rank 16 to these", (*_HUBER, *_MIDDLE, "--lora.rank", "16")),
    Variant(
        "everything",
        "trained parameters",
        "the VLM, too",
        (*_HUBER, *_MIDDLE, "--trainable", "as-policy"),
        cached=False,
    ),
)
# Noises per observation at equal time on a full-size policy, whose updates take so many seconds: `benchmarks reflow-step --noises`
# on two Intel cores, with AdamW and the images in every update, batch 1, float32, each pair at one time. The small policy's own
# updates cost otherwise. As much time as 1,000 updates at M = 4.
_FULL_SIZE_SECONDS = {1: 3.85, 2: 4.40, 4: 6.01, 8: 7.74}
FULL_COST = tuple(
    Variant(
        f"full_cost_{noises}",
        "M at full size's cost",
        f"M = {noises}, {updates:,} updates",
        (*_HUBER, "--noises", str(noises), "--times", "1", *length(updates)),
    )
    for noises, updates in ((m, round(1_000 * _FULL_SIZE_SECONDS[4] / s)) for m, s in _FULL_SIZE_SECONDS.items())
)
NOISE_BIASED_MIDDLE = dataclasses.replace(NOISE_BIASED, name="noise_biased_2000", flags=_MIDDLE)


def shortened(variant: Variant, updates: int) -> Variant:
    """The variant's short run for a comparison. The students from which it learns are as short."""
    teacher = short_name(variant.teacher) if variant.teacher else None
    flags = (*variant.flags, *length(updates))
    return dataclasses.replace(variant, name=short_name(variant.name), flags=flags, teacher=teacher)


def short_name(name: str) -> str:
    """The name of a variant's short run."""
    return f"short_{name}"


def seeded(variant: Variant, seed: int) -> Variant:
    """The variant with another seed. Seed 0 is the variant itself."""
    if seed == 0:
        return variant
    name, change = f"{variant.name}_seed{seed}", f"{variant.change}; seed {seed}"
    return dataclasses.replace(variant, name=name, change=change, flags=(*variant.flags, "--seed", str(seed)))
