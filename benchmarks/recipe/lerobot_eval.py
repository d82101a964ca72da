"""Success rates by LeRobot's own `lerobot-eval`, beside those of `jaxreflow.sim` for the same policies.

    P=benchmarks/recipe/policies
    python -m benchmarks.recipe.lerobot_eval --program VENV/bin/lerobot-eval --policy $P/teacher $P/teacher $P/student \\
        --num-steps 10 1 1 --env metaworld:button-press-topdown-v3
    python -m jaxreflow.sim --policy $P/teacher $P/teacher $P/student --num-steps 10 1 1 --n-action-steps 10 \\
        --env metaworld:button-press-topdown-v3 --episodes 50 --options.render stock --options.max-steps 400 \\
        --out docs/results/stock_pictures.jsonl

VENV is an environment with LeRobot and the simulator. `lerobot-eval` runs in batches of `--batch` episodes, and each batch is
appended to docs/results/lerobot_eval.jsonl when it has ended. Batches that are there do not run again. In the end the table of
docs/results.md is written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recipe.page import fill_page, markdown_table
from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.sim.environment import parse_env
from jaxreflow.sim.intervals import wilson
from jaxreflow.sim.results import Result, read_results
from jaxreflow.support.command_line import parse
from jaxreflow.support.command_line import run as run_command

RESULTS, OWN_RESULTS = "lerobot_eval.jsonl", "stock_pictures.jsonl"
TOKENIZER = "tokenizer_name"
TASKS = {"transfer-cube": "AlohaTransferCube-v0"}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Runs of `lerobot-eval`: policies, an environment, and episodes."""

    program: Path
    """`lerobot-eval`, in the `bin` of an environment with LeRobot."""
    policy: tuple[Path, ...]
    """Policies with their `vlm/` folder: no hub is asked."""
    env: str
    """NAME:TASK, as for `python -m jaxreflow.sim`."""
    num_steps: tuple[int, ...] = (10,)
    """Euler steps of each policy."""
    n_action_steps: int = 10
    """Actions executed per chunk."""
    episodes: int = 50
    """Episodes of each policy."""
    batch: int = 25
    """Episodes of one run of `lerobot-eval`."""
    parallel: int = 5
    """Environments at once."""
    seed: int = 100_000
    """Seed of the first episode. LeRobot 0.6 gives it to the environment, as `jaxreflow.sim` does."""
    out: Path = Path("docs")
    """Where results.md and results/ lie."""

    def __post_init__(self) -> None:
        if len(self.num_steps) != len(self.policy):
            raise ConfigError(
                f"--num-steps needs a number for each policy: expected {len(self.policy)}, found {len(self.num_steps)}"
            )
        if self.episodes % self.batch:
            raise ConfigError(f"--episodes must be a multiple of --batch ({self.batch}), found {self.episodes}")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Episodes of one policy in one run of `lerobot-eval`, and which of them succeeded."""

    lerobot: str
    policy: str
    num_steps: int
    n_action_steps: int
    env: str
    seed: int
    success: tuple[int, ...] = ()

    @property
    def identity(self) -> tuple[Any, ...]:
        """What must be equal for a batch to stand for a run."""
        return dataclasses.astuple(self)[:-1]


def read_batches(path: Path) -> list[Batch]:
    """The batches of a file; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Batch(**{**fields, "success": tuple(fields["success"])}) for fields in map(json.loads, lines)]


def run(config: EvalConfig) -> None:
    """Runs the batches that are missing."""
    version, out = _version(config.program), config.out / "results" / RESULTS
    there = {batch.identity for batch in read_batches(out)}
    for batch in _plan(config, version):
        if batch.identity in there:
            continue
        success = _run_program(config, batch)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(dataclasses.replace(batch, success=success))) + "\n")
        print(
            f"{batch.policy}@{batch.num_steps}: {sum(success)} of {len(success)} from seed {batch.seed} on", flush=True
        )
    own = list(read_results(config.out / "results" / OWN_RESULTS))
    fill_page(config.out / "results.md", {"lerobot-eval": lambda: rates_table(read_batches(out), own)})


def rates_table(batches: Sequence[Batch], own: Sequence[Result]) -> str:
    """Success by LeRobot's versions and by `jaxreflow.sim`, and in how many episodes LeRobot 0.6 and `jaxreflow.sim` agree."""
    versions = sorted({batch.lerobot for batch in batches}, reverse=True)
    rows = []
    for env, name, num_steps, executed in dict.fromkeys(map(_cell, batches)):
        cell = [batch for batch in batches if _cell(batch) == (env, name, num_steps, executed)]
        by_version = {version: _episodes(batch for batch in cell if batch.lerobot == version) for version in versions}
        ours = {
            r.seed + i: success
            for r in own
            if (f"{r.env}:{r.task}", Path(r.policy).name, r.num_steps, r.n_action_steps)
            == (env, name, num_steps, executed)
            for i, success in enumerate(r.success)
        }
        common = [seed for seed in by_version[versions[0]] if seed in ours]
        agreed = sum(by_version[versions[0]][seed] == ours[seed] for seed in common)
        rates = [_rate(list(found.values())) for found in (*by_version.values(), ours)]
        rows.append([env, f"{name}@{num_steps}", str(executed), *rates, f"{agreed} of {len(common)}"])
    heads = ["task", "policy", "executed", *(f"LeRobot {version}" for version in versions), "jaxreflow.sim"]
    return markdown_table([*heads, f"the same as LeRobot {versions[0]}"], rows)


def _cell(batch: Batch) -> tuple[str, str, int, int]:
    return batch.env, Path(batch.policy).name, batch.num_steps, batch.n_action_steps


def _episodes(batches: Iterable[Batch]) -> dict[int, int]:
    return {batch.seed + i: success for batch in batches for i, success in enumerate(batch.success)}


def _rate(success: Sequence[int]) -> str:
    if not success:
        return ""
    rate = wilson(sum(success), len(success))
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}] of {len(success)}"


def _plan(config: EvalConfig, version: str) -> Iterator[Batch]:
    for policy, num_steps in zip(config.policy, config.num_steps, strict=True):
        for first in range(config.seed, config.seed + config.episodes, config.batch):
            yield Batch(version, str(policy), num_steps, config.n_action_steps, config.env, first)


def _version(program: Path) -> str:
    ask = "import importlib.metadata; print(importlib.metadata.version('lerobot'))"
    python = program.parent / "python"
    if not program.exists():
        raise ConfigError(f"--program: expected the program of an environment with LeRobot, found no {program}")
    return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def _run_program(config: EvalConfig, batch: Batch) -> tuple[int, ...]:
    name, (task,) = parse_env(config.env)
    with tempfile.TemporaryDirectory() as folder:
        policy, out = Path(folder) / "policy", Path(folder) / "out"
        _copy_without_hub(Path(batch.policy), policy)
        flags = {
            "policy.path": policy,
            "policy.vlm_model_name": policy / "vlm",
            "policy.device": "cpu",
            "policy.num_steps": batch.num_steps,
            "policy.n_action_steps": batch.n_action_steps,
            "env.type": name,
            "env.task": TASKS.get(task, task),
            "eval.n_episodes": config.batch,
            "eval.batch_size": config.parallel,
            "eval.use_async_envs": "false",
            "seed": batch.seed,
            "output_dir": out,
        }
        words = [str(config.program.absolute()), *(f"--{flag}={value}" for flag, value in flags.items())]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SimulationError(f"lerobot-eval failed with exit status {done.returncode}: {done.stderr[-2000:]}")
        told = json.loads((out / "eval_info.json").read_text(encoding="utf-8"))
    return tuple(int(success) for success in told["per_task"][0]["metrics"]["successes"])


def _copy_without_hub(policy: Path, out: Path) -> None:
    """A copy whose tokenizer is that of its `vlm/` folder."""
    shutil.copytree(policy, out)
    path = out / "policy_preprocessor.json"
    processor = json.loads(path.read_text(encoding="utf-8"))
    for step in processor["steps"]:
        if TOKENIZER in step.get("config", {}):
            step["config"][TOKENIZER] = str(out / "vlm")
    path.write_text(json.dumps(processor), encoding="utf-8")


def main() -> int:
    """0 if all batches are there, 1 after an error."""
    return run_command(_main, None)


def _main(args: list[str]) -> int:
    run(parse(EvalConfig, args, prog="python -m benchmarks.recipe.lerobot_eval", about=__doc__ or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
