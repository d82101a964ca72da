"""The students that docs/results.md compares: configs/metaworld.py with one change at a time."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """One student: what is changed from the default, by which flags of `train.py`, and whose student it is."""

    name: str
    group: str
    change: str
    flags: tuple[str, ...] = ()
    config: str = "metaworld"
    """The config of `train.py`; metaworld_biased is the fine-tune that has no teacher."""
    teacher: str | None = None
    """Another student that is its teacher; None: the teacher itself."""


def _law(name: str, change: str) -> Variant:
    return Variant(f"law_{name}", "law of t", change, ("--time-law", name))


DEFAULT = Variant("default", "default", "half of the times at 1, the others U-shaped")
# Ordinary flow matching at the same number of updates, with times near noise: arXiv 2606.05737's way to one step.
NOISE_BIASED = Variant(
    "noise_biased", "baseline", "flow matching on the data, t from Beta(4, 1)", config="metaworld_biased"
)

SCREENED = (
    _law("beta", "t from Beta(1.5, 1)"),
    _law("uniform", "t uniform"),
    _law("u-shaped", "t U-shaped"),
    _law("exponential", "t as e^4t"),
    _law("discrete", "t at 1 and 1/2"),
    Variant("lr_half", "learning rate", "half the learning rate", ("--optimizer.lr", "5e-4")),
    Variant("lr_double", "learning rate", "twice the learning rate", ("--optimizer.lr", "2e-3")),
    Variant("no_ema", "EMA", "no moving average", ("--ema-decay", "0")),
    Variant("short_ema", "EMA", "moving average of 0.99", ("--ema-decay", "0.99")),
    Variant("real_dims", "loss", "loss over real action dims", ("--loss-dims", "real")),
    Variant("pseudo_huber", "loss", "pseudo-Huber", ("--objective", "pseudo-huber")),
    Variant(
        "heun", "teacher's solver", "Heun's method in 5 steps", ("--teacher-solver", "heun", "--teacher-steps", "5")
    ),
    Variant("real_share", "real data", "a quarter of the pairs real", ("--real-share", "0.25")),
)
ROUNDS = (
    Variant("round_2", "rounds", "2 rounds", teacher="default"),
    Variant("round_3", "rounds", "3 rounds", teacher="round_2"),
    Variant("round_2_real", "rounds", "2 rounds, a quarter real", ("--real-share", "0.25"), teacher="real_share"),
    Variant("round_3_real", "rounds", "3 rounds, a quarter real", ("--real-share", "0.25"), teacher="round_2_real"),
)


def noises_variants(updates: dict[int, int]) -> tuple[Variant, ...]:
    """M noises per observation with as many updates as take the default's wall time."""
    return tuple(
        Variant(f"noises_{m}", "M at equal time", f"M = {m}, {n} updates", ("--noises", str(m), *length(n)))
        for m, n in updates.items()
    )


def length(updates: int) -> tuple[str, ...]:
    """The flags of a run of so many updates."""
    return ("--steps", str(updates), "--optimizer.decay-steps", str(updates))
