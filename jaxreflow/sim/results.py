"""Closed-loop results: as JSON lines in a file, and as a table with intervals."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.errors import ConfigError
from jaxreflow.sim.intervals import mcnemar, paired_difference, wilson
from jaxreflow.sim.rollout import Outcomes
from jaxreflow.sim.timing import Execution, Timing

_COMPARED = ("difference", "lower bound", "McNemar p")


@dataclasses.dataclass(frozen=True)
class Result:
    """One policy on one task: what was run, and what became of each episode (see `rollout.Outcomes`).

    The fields from `n_action_steps` to `look_delay` are those of `timing.Timing`.
    """

    policy: str
    sha256: str
    num_steps: int
    n_action_steps: int
    env: str
    task: str
    options: dict[str, Any]
    seed: int
    episodes: int
    execution: Execution = "blocking"
    delay: int = 0
    candidates: int = 1
    execution_horizon: int = 10
    look_every: int = 0
    look_delay: int = 0
    success: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    jerk: tuple[float | None, ...] = ()
    jump: tuple[float | None, ...] = ()
    also: dict[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    measured: bool = False
    """Whether the delays are those that the policy has on the machine: then it is compared with others at their own delays."""

    @property
    def timing(self) -> Timing:
        """How the chunks followed each other."""
        return Timing(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Timing)})

    @property
    def identity(self) -> tuple[Any, ...]:
        """What must be equal for a result to stand for a run; a policy is its weights, wherever they lie."""
        options = tuple(sorted(self.options.items()))
        return self.sha256, self.num_steps, self.timing, self.env, self.task, options, self.seed, self.episodes

    @property
    def pairing(self) -> tuple[bool, Timing]:
        """What must be equal for two policies to be compared: the timing, without delays if they were measured."""
        timing = dataclasses.replace(self.timing, delay=0, look_delay=0) if self.measured else self.timing
        return self.measured, timing

    @property
    def contender(self) -> tuple[str, int]:
        """The policy at its number of Euler steps."""
        return self.sha256, self.num_steps

    def with_outcomes(self, outcomes: Outcomes) -> Result:
        """What was run with what became of it."""
        fields: dict[str, Any] = {
            name: tuple(getattr(outcomes, name).astype(int).tolist()) for name in ("success", "steps", "held")
        }
        fields["also"] = {name: values.astype(int).tolist() for name, values in outcomes.also.items()}
        # A file has six digits, and null for an episode without a switch.
        for name in ("jerk", "jump"):
            values = getattr(outcomes, name).tolist()
            fields[name] = tuple(None if math.isnan(value) else float(f"{value:.6g}") for value in values)
        return dataclasses.replace(self, **fields)

    @property
    def label(self) -> str:
        """The policy's name and number of steps."""
        return policy_label(self.policy, self.num_steps)


def policy_label(policy: str, num_steps: int) -> str:
    """NAME@STEPS: the policy's folder, or its run's where the folder has the name that all exports have."""
    path = Path(policy)
    parts = [part for part in path.parts if part not in ("pretrained_model", "checkpoints", "last")]
    return f"{parts[-1] if parts else path.name}@{num_steps}"


def read_results(path: Path) -> Iterator[Result]:
    """The results in a file, none if there is no such file; ConfigError names a damaged line."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
            result = Result(**{**fields, **lists})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path}:{number}: no result of `python -m jaxreflow.sim` ({error!r}); remove the line"
            ) from error
        yield result


def append_result(path: Path, result: Result) -> None:
    """Adds a line to the file, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")


def pooled(results: Sequence[Result]) -> np.ndarray:
    """Success of all episodes of all tasks, in the order of `results`."""
    return np.concatenate([np.array(result.success, np.bool_) for result in results])


def comparison_table(results: Sequence[Result]) -> str:
    """A Markdown table: a line per policy and timing, success with Wilson's 95 % interval on each task and over all,
    if there are several.

    The last columns compare with the first policy at the same timing, or at its own delay if delays were measured, on the same
    episodes: the difference with Newcombe's 95 % interval and its one-sided lower 95 % bound, and McNemar's exact p. Where not
    every robot blocks without a delay, there are columns of how it moved: the means over episodes of jerk and jump, and the steps
    in which it stood still. What else an environment says of its episodes, as of a handover, has a column after the success.
    """
    tasks = list(dict.fromkeys(result.task for result in results))
    reference = results[0].contender
    plain = all(
        result.timing == Timing(result.n_action_steps, execution_horizon=result.execution_horizon) for result in results
    )
    motion = [] if plain else ["jerk", "jump", "steps held"]
    whole = ["all"] if len(tasks) > 1 else []
    also = list(dict.fromkeys(name for result in results for name in result.also))
    heads = ["policy", "n_action_steps", *([] if plain else ["execution"]), *tasks, *whole, *also, *_COMPARED, *motion]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]
    for contender, timing, measured in dict.fromkeys((r.contender, r.timing, r.measured) for r in results):
        own = [r for r in results if (r.contender, r.timing, r.measured) == (contender, timing, measured)]
        cells = [own[0].label, str(timing.n_action_steps), *([] if plain else [timing.label])]
        by_task = {result.task: result for result in own}
        cells += [_rate(pooled([by_task[task]])) if task in by_task else "" for task in tasks]
        cells += [_rate(pooled(own)) for _ in whole]
        cells += [_rate(np.concatenate([r.also[name] for r in own])) if _all_say(own, name) else "" for name in also]
        rivals = _rivals(results, reference, own)
        if contender == reference or not rivals:
            cells += [""] * len(_COMPARED)
        else:
            cells += _comparison(pooled(rivals), pooled(own))
        lines.append("| " + " | ".join([*cells, *([] if plain else _motion(own))]) + " |")
    return "\n".join(lines)


def _all_say(results: Sequence[Result], name: str) -> bool:
    """Whether no result is of a time when its environment did not say this of its episodes."""
    return all(name in result.also for result in results)


def _rivals(results: Sequence[Result], reference: tuple[str, int], own: Sequence[Result]) -> list[Result]:
    """The reference's results on the same episodes at the same timing, or at its own measured one; none unless it has all."""
    found = {
        (r.task, r.seed, r.episodes): r for r in results if r.contender == reference and r.pairing == own[0].pairing
    }
    wanted = [(r.task, r.seed, r.episodes) for r in own]
    return [found[key] for key in wanted] if set(wanted) <= set(found) else []


def _motion(results: Sequence[Result]) -> list[str]:
    values = {
        name: [v for r in results for v in getattr(r, name) if v is not None] for name in ("jerk", "jump", "held")
    }
    return [f"{np.mean(found):.3g}" if found else "" for found in values.values()]


def _rate(success: np.ndarray) -> str:
    rate = wilson(int(success.sum()), len(success))
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _comparison(reference: np.ndarray, own: np.ndarray) -> list[str]:
    difference = paired_difference(reference, own)
    bound = paired_difference(reference, own, confidence=0.90).low
    return [
        f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
        f"{bound:+.3f}",
        f"{mcnemar(reference, own):.2g}",
    ]
