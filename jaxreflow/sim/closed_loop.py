"""Success of policies in closed loop, on the same episodes with the same noise.

    python -m jaxreflow.sim --policy TEACHER STUDENT STUDENT --num-steps 10 1 2 --n-action-steps 10 50 \\
        --env metaworld:wall-detour,handle-press-v3 --episodes 100 --out results.jsonl --video VIDEOS

The others are compared with the first policy. Results are appended to --out as they come, and a result that is there is not run
again. `python -m jaxreflow.sim record` records demonstrations.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxreflow.errors import ConfigError
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.sim.environment import EnvOptions, parse_env
from jaxreflow.sim.results import Result, append_result, comparison_table, read_results
from jaxreflow.sim.rollout import parallel_envs, rollout
from jaxreflow.sim.video import write_videos
from jaxreflow.support.console import progress
from jaxreflow.support.storage import check_path


@dataclasses.dataclass(frozen=True)
class SimConfig:
    """Runs policies in simulation: success rates with Wilson intervals, and differences to the first policy."""

    policy: tuple[str, ...]
    """Policies in LeRobot's layout, as directories or hub names. The first is the reference."""
    env: str
    """NAME:TASK[,TASK...], as metaworld:wall-detour,handle-press-v3."""
    revision: str | None = None
    """Of the policies from the hub: a commit, tag or branch (default: main)."""
    num_steps: tuple[int, ...] = ()
    """Euler steps of each policy: one number for all, or one each (default: as their config.json says)."""
    n_action_steps: tuple[int, ...] = ()
    """Actions executed per chunk. Every policy runs with each of these numbers (default: as config.json says)."""
    episodes: int = 50
    """Episodes per task."""
    seed: int = 100_000
    """Seed of the first episode. Keep away from the seeds of the demonstrations."""
    parallel: int = 8
    """Environments that run at once, each in a process of its own."""
    out: Path | None = None
    """File of JSON lines. New results are appended to it, and finished ones are taken from it."""
    video: Path | None = None
    """Folder for videos of a success and a failure of every policy on every task."""
    stats_from: str | None = None
    """Normalise by a FILE's statistics (stats.json or safetensors) instead of the policies' own."""
    vlm: str | None = None
    """Directory of the VLM's config and tokenizer (default: the policy's vlm/ folder, else its vlm_model_name)."""
    instruction: str | None = None
    """What the policies are told (default: the environment's description of its task)."""
    dtype: str = "float32"
    """Compute dtype of the policies."""
    options: EnvOptions = dataclasses.field(default_factory=EnvOptions)

    def __post_init__(self) -> None:
        parse_env(self.env)
        for name in ("episodes", "parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, found {getattr(self, name)}")
        if not self.policy or len(self.num_steps) not in (0, 1, len(self.policy)):
            raise ConfigError(
                f"--num-steps: expected one number, or one for each of the {len(self.policy)} policies, found {self.num_steps}"
            )
        if min((*self.num_steps, *self.n_action_steps, 1)) < 1:
            found = f"found {self.num_steps} and {self.n_action_steps}"
            raise ConfigError(f"--num-steps and --n-action-steps must be at least 1, {found}")
        check_path("--stats-from", self.stats_from, schemes=())


def run_trials(config: SimConfig) -> str:
    """Runs what `config.out` does not hold yet, and returns the table.

    Raises:
        ConfigError, CheckpointError, ProcessorError, SimulationError: a policy, a task or the simulator cannot be had.
    """
    policies = _load(config)
    done = {result.identity: result for result in read_results(config.out)} if config.out else {}
    plan = [cell for task in parse_env(config.env)[1] for cell in _plan(config, task, policies)]
    for task in parse_env(config.env)[1]:
        missing = [cell for cell in plan if cell.task == task and cell.identity not in done]
        for result in _run(config, missing, policies) if missing else ():
            done[result.identity] = result
            if config.out:
                append_result(config.out, result)
    results = [dataclasses.replace(done[cell.identity], policy=cell.policy) for cell in plan]
    if config.video is not None:
        write_videos(config.video, results, policies, config.instruction)
    return comparison_table(results)


def _load(config: SimConfig) -> dict[str, SmolVLAPolicy]:
    policies = {}
    for path in dict.fromkeys(config.policy):
        revision = None if Path(path).expanduser().is_dir() else config.revision
        policy = SmolVLAPolicy.from_pretrained(
            path, vlm=config.vlm, dtype=config.dtype, revision=revision, stats_from=config.stats_from
        )
        too_long = [n for n in config.n_action_steps if n > policy.config.chunk_size]
        if too_long:
            raise ConfigError(
                f"--n-action-steps {too_long[0]}: {path} predicts {policy.config.chunk_size} actions at once"
            )
        policies[path] = policy
    return policies


def _plan(config: SimConfig, task: str, policies: dict[str, SmolVLAPolicy]) -> Iterator[Result]:
    """What is to be run on a task, as results without outcomes."""
    steps = config.num_steps * len(config.policy) if len(config.num_steps) == 1 else config.num_steps
    options = {**dataclasses.asdict(config.options), "dtype": config.dtype, "instruction": config.instruction}
    if config.stats_from is not None:
        # By its content: whatever lies in that file later makes other results.
        options["stats_from"] = hashlib.sha256(Path(config.stats_from).read_bytes()).hexdigest()
    for i, path in enumerate(config.policy):
        policy = policies[path]
        for executed in config.n_action_steps or (policy.config.n_action_steps,):
            yield Result(
                policy=path,
                sha256=policy.checkpoint.tensors.sha256,
                num_steps=steps[i] if steps else policy.config.num_steps,
                n_action_steps=executed,
                env=parse_env(config.env)[0],
                task=task,
                options=options,
                seed=config.seed,
                episodes=config.episodes,
            )


def _run(config: SimConfig, cells: Sequence[Result], policies: dict[str, SmolVLAPolicy]) -> Iterator[Result]:
    first = cells[0]
    chunk_size = max(policy.config.chunk_size for policy in policies.values())
    count = min(config.parallel, config.episodes)
    with parallel_envs(first.env, first.task, config.options, count, chunk_size) as envs:
        task = config.instruction or envs.get_attr("task_description")[0]
        for cell in cells:
            policy = policies[cell.policy]
            label = f"{cell.task} {cell.label} n={cell.n_action_steps}"
            with progress(label, cell.episodes, unit="episode") as advance:
                outcomes = rollout(
                    envs,
                    functools.partial(policy.predict_action_chunk, num_steps=cell.num_steps),
                    task,
                    range(cell.seed, cell.seed + cell.episodes),
                    noise_shape=(policy.config.chunk_size, policy.config.max_action_dim),
                    n_action_steps=cell.n_action_steps,
                    progress=advance,
                )
            success, steps = outcomes.success.astype(int), outcomes.steps
            yield dataclasses.replace(cell, success=tuple(success.tolist()), steps=tuple(steps.tolist()))
