"""Success rates by LeRobot's own `lerobot-eval`, beside those of `jaxreflow.sim` for the same policies.

    P=benchmarks/recipe/policies
    python -m benchmarks.recipe.lerobot_eval --program VENV/bin/lerobot-eval --policy $P/teacher $P/teacher $P/student \\
        --num-steps 10 1 1 --env metaworld:button-press-topdown-v3

VENV is an environment with LeRobot and the simulator. `lerobot-eval` runs in batches of `--batch` episodes, and each batch is
appended to docs/results/lerobot_eval.jsonl when it has ended. Episodes that are there do not run again. Then `jaxreflow.sim` runs
the same episodes with the same pictures, into docs/results/stock_pictures.jsonl. In the end a table of docs/results.md is filled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recipe.page import fill_page, markdown_table
from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.sim.closed_loop import SimConfig, run_trials
from jaxreflow.sim.environment import EnvOptions, check_tasks, parse_env
from jaxreflow.sim.intervals import wilson
from jaxreflow.sim.metaworld_experts import WALL_DETOUR
from jaxreflow.sim.results import Result, policy_label, read_results
from jaxreflow.sim.timing import Timing
from jaxreflow.support.command_line import parse
from jaxreflow.support.command_line import run as run_command

RESULTS, OWN_RESULTS = "lerobot_eval.jsonl", "stock_pictures.jsonl"
TOKENIZER = "tokenizer_name"
TASKS = {"transfer-cube": "AlohaTransferCube-v0"}
LONGEST = {"metaworld": 500, "aloha": 400}
"""Control steps after which `lerobot-eval` ends an episode."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Runs of `lerobot-eval`: policies, an environment, and episodes."""

    program: Path
    """`lerobot-eval`, in the `bin` of an environment with LeRobot."""
    policy: tuple[Path, ...]
    """Policies with their `vlm/` folder: no hub is asked."""
    env: str
    """NAME:TASK, as for `python -m jaxreflow.sim`; one of LeRobot's own tasks."""
    num_steps: tuple[int, ...] = (10,)
    """Euler steps of each policy: one number for all, or one each."""
    n_action_steps: int = 10
    """Actions executed per chunk."""
    episodes: int = 50
    """Episodes of each policy."""
    batch: int = 25
    """Episodes of one run of `lerobot-eval`, at most."""
    parallel: int = 5
    """Environments at once."""
    seed: int = 100_000
    """Seed of the first episode. LeRobot 0.6 gives it to the environment, as `jaxreflow.sim` does."""
    out: Path = Path("docs")
    """Where results.md and results/ lie."""

    def __post_init__(self) -> None:
        if len(self.num_steps) not in (1, len(self.policy)):
            raise ConfigError(
                f"--num-steps: expected one number, or one for each of the {len(self.policy)} policies, found {self.num_steps}"
            )
        if min(self.num_steps) < 1:
            raise ConfigError(f"--num-steps must be at least 1, found {self.num_steps}")
        for name in ("n_action_steps", "episodes", "batch", "parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")
        _, tasks = parse_env(self.env)
        if len(tasks) > 1 or tasks[0] == WALL_DETOUR:
            raise ConfigError(
                f"--env: expected one task that LeRobot has, as metaworld:button-press-topdown-v3, found {self.env!r}"
            )
        self.trials()  # It refuses a seed that no simulation takes.

    def trials(self) -> SimConfig:
        """The same episodes in `jaxreflow.sim`."""
        return SimConfig(
            policy=tuple(map(str, self.policy)),
            env=self.env,
            num_steps=self.num_steps,
            n_action_steps=(self.n_action_steps,),
            episodes=self.episodes,
            seed=self.seed,
            parallel=self.parallel,
            out=self.out / "results" / OWN_RESULTS,
            options=EnvOptions(render="stock", max_steps=LONGEST[parse_env(self.env)[0]]),
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """What runs: a policy, by its weights wherever they lie, in an environment. `env` is NAME:TASK."""

    policy: str
    sha256: str
    num_steps: int
    n_action_steps: int
    env: str

    @property
    def identity(self) -> tuple[Any, ...]:
        """What must be equal for episodes to belong together."""
        return self.sha256, self.num_steps, self.n_action_steps, self.env


@dataclasses.dataclass(frozen=True)
class Batch:
    """Which episodes succeeded in one run of a version of `lerobot-eval`, from the first seed on."""

    lerobot: str
    run: Run
    seed: int
    success: tuple[int, ...]


def read_batches(path: Path) -> list[Batch]:
    """The batches of a file, none if there is no file; ConfigError names a damaged line."""
    batches = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), start=1):
        try:
            fields = json.loads(line)
            batches.append(Batch(**{**fields, "run": Run(**fields["run"]), "success": tuple(fields["success"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}:{number}: no batch of `lerobot-eval` ({error!r}); remove the line") from error
    return batches


def evaluate(config: EvalConfig) -> None:
    """Runs the episodes that are missing, in LeRobot and in `jaxreflow.sim`, and writes the table."""
    trials = config.trials()
    check_tasks(*parse_env(config.env), trials.options)
    version, out = _version(config.program), config.out / "results" / RESULTS
    steps = config.num_steps * len(config.policy) if len(config.num_steps) == 1 else config.num_steps
    for policy, num_steps in zip(config.policy, steps, strict=True):
        sha256 = load_saved_policy(policy).tensors.sha256
        run = Run(str(policy), sha256, num_steps, config.n_action_steps, config.env)
        for first, count in _missing(config, _episodes(read_batches(out), version, run)):
            batch = Batch(version, run, first, _run_program(config, run, first, count))
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(batch)) + "\n")
            print(f"{policy}@{num_steps}: {sum(batch.success)} of {count} from seed {first} on", flush=True)
    run_trials(trials)
    own = list(read_results(config.out / "results" / OWN_RESULTS))
    fill_page(config.out / "results.md", {"lerobot-eval": lambda: rates_table(read_batches(out), own)})


def _missing(config: EvalConfig, there: dict[int, int]) -> Iterator[tuple[int, int]]:
    """First seeds and lengths of batches of episodes that are not there."""
    batch: list[int] = []
    end = config.seed + config.episodes
    for seed in range(config.seed, end + 1):
        missing = seed < end and seed not in there
        if batch and (not missing or len(batch) == config.batch):
            yield batch[0], len(batch)
            batch = []
        if missing:
            batch.append(seed)


def rates_table(batches: Sequence[Batch], own: Sequence[Result]) -> str:
    """Success by LeRobot's versions and by `jaxreflow.sim`, and in how many episodes these agree.

    From 0.6 on an episode of LeRobot's is that of its seed. Older versions draw layouts from another generator.
    """
    versions = sorted({batch.lerobot for batch in batches}, key=_numbers, reverse=True)
    seeded = versions[0] if _numbers(versions[0]) >= (0, 6) else None
    rows = []
    for run in {batch.run.identity: batch.run for batch in batches}.values():
        by_version = {version: _episodes(batches, version, run) for version in versions}
        ours = _own_episodes(own, run)
        row = [run.env, policy_label(run.policy, run.num_steps), str(run.n_action_steps)]
        row += [_rate(list(found.values())) for found in (*by_version.values(), ours)]
        if seeded is not None:
            common = by_version[seeded].keys() & ours.keys()
            row.append(f"{sum(by_version[seeded][seed] == ours[seed] for seed in common)} of {len(common)}")
        rows.append(row)
    heads = ["task", "policy", "executed", *(f"LeRobot {version}" for version in versions), "jaxreflow.sim"]
    return markdown_table([*heads, *([f"the same as LeRobot {seeded}"] if seeded else [])], rows)


def _episodes(batches: Iterable[Batch], version: str, run: Run) -> dict[int, int]:
    """Success by seed."""
    own = [batch for batch in batches if (batch.lerobot, batch.run.identity) == (version, run.identity)]
    return {batch.seed + i: success for batch in own for i, success in enumerate(batch.success)}


def _own_episodes(results: Sequence[Result], run: Run) -> dict[int, int]:
    """Success by seed, in a world that waits, with stock pictures and episodes of the same length."""
    wanted = (run.identity, Timing(run.n_action_steps), "stock", LONGEST[parse_env(run.env)[0]])
    found: dict[int, int] = {}
    for r in results:
        identity = (r.sha256, r.num_steps, r.n_action_steps, f"{r.env}:{r.task}")
        if (identity, r.timing, r.options.get("render"), r.options.get("max_steps")) == wanted:
            found |= {r.seed + i: success for i, success in enumerate(r.success)}
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _rate(success: Sequence[int]) -> str:
    if not success:
        return ""
    rate = wilson(sum(success), len(success))
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}] of {len(success)}"


def _version(program: Path) -> str:
    ask = "import importlib.metadata; print(importlib.metadata.version('lerobot'))"
    python = program.parent / "python"
    for path in (program, python):
        if not path.exists():
            raise ConfigError(f"--program: expected `lerobot-eval` in the bin of an environment, found no {path}")
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    if found.returncode:
        raise ConfigError(
            f"--program: expected an environment with LeRobot, found none in {program.parent.parent}; install it there, or give "
            f"another environment's lerobot-eval: {found.stderr[-500:].strip()}"
        )
    return found.stdout.strip()


def _run_program(config: EvalConfig, run: Run, first: int, count: int) -> tuple[int, ...]:
    name, (task,) = parse_env(config.env)
    with tempfile.TemporaryDirectory() as folder:
        policy, out = Path(folder) / "policy", Path(folder) / "out"
        copy_without_hub(Path(run.policy), policy)
        flags = {
            "policy.path": policy,
            "policy.vlm_model_name": policy / "vlm",
            "policy.device": "cpu",
            "policy.num_steps": run.num_steps,
            "policy.n_action_steps": run.n_action_steps,
            "env.type": name,
            "env.task": TASKS.get(task, task),
            "eval.n_episodes": count,
            "eval.batch_size": min(config.parallel, count),
            "eval.use_async_envs": "false",
            "seed": first,
            "output_dir": out,
        }
        words = [str(config.program.absolute()), *(f"--{flag}={value}" for flag, value in flags.items())]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SimulationError(f"lerobot-eval failed with exit status {done.returncode}: {done.stderr[-2000:]}")
        told = json.loads((out / "eval_info.json").read_text(encoding="utf-8"))
    successes = tuple(int(success) for success in told["per_task"][0]["metrics"]["successes"])
    if len(successes) != count:
        raise SimulationError(f"lerobot-eval was asked for {count} episodes, and told of {len(successes)}")
    return successes


def copy_without_hub(policy: Path, out: Path) -> None:
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
    evaluate(parse(EvalConfig, args, prog="python -m benchmarks.recipe.lerobot_eval", about=__doc__ or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
