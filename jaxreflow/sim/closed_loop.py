"""Success of policies in closed loop, on the same episodes with the same noise; it needs `pip install '.[sim]'`.

    python -m jaxreflow.sim --policy benchmarks/recipe/policies/teacher --env metaworld:wall-detour --episodes 10
    python -m jaxreflow.sim --policy TEACHER STUDENT STUDENT --num-steps 10 1 2 --n-action-steps 10 50 \\
        --env metaworld:wall-detour,handle-press-v3 --episodes 100 --out results.jsonl --video VIDEOS

The others are compared with the first policy. Results are appended to --out as they come, and a result that is there is not run
again. `python -m jaxreflow.sim record` records demonstrations.

The simulated world stands still while a policy thinks, unless you say how long that takes:

    python -m jaxreflow.sim --policy TEACHER STUDENT --num-steps 10 1 --env metaworld:wall-detour \\
        --execution blocking asynchronous rtc candidates --delay 0 5 20
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxreflow.errors import ConfigError
from jaxreflow.policy.real_time_chunking import execution_horizon
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.sim.acting import delays_in_steps, make_act, noise_shape
from jaxreflow.sim.environment import EnvOptions, check_tasks, environment, parse_env
from jaxreflow.sim.results import Result, append_result, comparison_table, read_results
from jaxreflow.sim.rollout import parallel_envs, rollout
from jaxreflow.sim.timing import GUIDED, Execution, Timing
from jaxreflow.sim.video import write_videos
from jaxreflow.support.console import progress
from jaxreflow.support.storage import check_path

MEASURED = "measured"
QUEUE_THRESHOLD, CANDIDATES = 30, 16
"""The first is LeRobot's (`RTCInferenceEngine`)."""


@dataclasses.dataclass(frozen=True)
class SimConfig:
    """Runs policies in simulation: success rates with Wilson intervals, and differences to the first policy."""

    policy: tuple[str, ...]
    """Policies in LeRobot's layout, as directories or hub names. The first is the reference."""
    env: str
    """NAME:TASK[,TASK...], as metaworld:wall-detour,handle-press-v3 or aloha:transfer-cube."""
    revision: str | None = None
    """Of the policies from the hub: a commit, tag or branch (default: main)."""
    num_steps: tuple[int, ...] = ()
    """Euler steps of each policy: one number for all, or one each (default: as their config.json says)."""
    n_action_steps: tuple[int, ...] = ()
    """Actions of a chunk after which the robot looks again. Every policy runs with each of these numbers (default: as config.json
    says; for executions that do not block, the chunk less --queue-threshold)."""
    act_every: tuple[int, ...] = ()
    """Another name for --n-action-steps, beside --look-every."""
    execution: tuple[Execution, ...] = ("blocking",)
    """blocking: the robot stands still until a chunk is there. asynchronous: it goes on with the old chunk, then switches. rtc: as
    LeRobot's engine for real-time chunking. rtc-counted: the same, but it leaves out only actions that were executed. candidates:
    asynchronous with the best of --candidates chunks. Several may be named."""
    delay: tuple[str, ...] = ("0",)
    """Control steps between an observation and the first action that knows it. `measured` takes the policy's latency on this
    machine. Several may be named."""
    slower: float = 1.0
    """With --delay measured: the robot's computer takes so many times as long as this machine."""
    queue_threshold: int | None = None
    """Actions that are left when a robot that does not block asks for the next chunk (default: 30, as in LeRobot)."""
    execution_horizon: int | None = None
    """Actions towards which rtc guides (default: as the policy's rtc_config says, else 10, as in LeRobot)."""
    candidates: int | None = None
    """Chunks among which --execution candidates chooses (default: 16)."""
    look_every: int = 0
    """Control steps between two looks at the images. Chunks between them know newer states only (default: a look for each)."""
    look_delay: int = 0
    """Control steps after which what was looked at counts. With --delay measured it is measured, too."""
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
        for name, least in (("episodes", 1), ("parallel", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} must be at least {least}, found {getattr(self, name)}")
        if not self.policy or len(self.num_steps) not in (0, 1, len(self.policy)):
            raise ConfigError(
                f"--num-steps: expected one number, or one for each of the {len(self.policy)} policies, found {self.num_steps}"
            )
        if min((*self.num_steps, *self.n_action_steps, *self.act_every, 1)) < 1:
            found = f"found {self.num_steps} and {(*self.n_action_steps, *self.act_every)}"
            raise ConfigError(f"--num-steps, --n-action-steps and --act-every must be at least 1, {found}")
        self._check_timing()
        check_path("--stats-from", self.stats_from, schemes=())

    def _check_timing(self) -> None:
        for name in ("delay", "execution"):
            if not getattr(self, name):
                raise ConfigError(f"--{name}: expected at least one value, found none; leave it out for the default")
        for delay in self.delay:
            if delay != MEASURED and not delay.isdecimal():
                raise ConfigError(f"--delay: expected whole numbers of control steps, or {MEASURED}, found {delay!r}")
        spacings = {"--n-action-steps": self.n_action_steps, "--act-every": self.act_every}
        given = [name for name, value in spacings.items() if value]
        if len(given) + (self.queue_threshold is not None) > 1:
            given += ["--queue-threshold"] * (self.queue_threshold is not None)
            raise ConfigError(f"{' and '.join(given)} say the same thing: when the robot looks again; give one of them")
        if self.queue_threshold is not None and (self.queue_threshold < 0 or "blocking" in self.execution):
            raise ConfigError(
                f"--queue-threshold {self.queue_threshold}: expected 0 or more actions, and no blocking --execution, which has no "
                f"queue; found --execution {' '.join(self.execution)}"
            )
        if not (math.isfinite(self.slower) and self.slower > 0):
            raise ConfigError(f"--slower: expected a positive number, found {self.slower}")
        if self.execution_horizon is not None and self.execution_horizon < 1:
            raise ConfigError(f"--execution-horizon: expected at least 1 action, found {self.execution_horizon}")
        if self.candidates is not None and self.candidates < 2:
            raise ConfigError(f"--candidates: expected at least 2, found {self.candidates}")
        for name, typed, read, needed in (
            ("--slower", self.slower != 1, MEASURED in self.delay, f"--delay {MEASURED}"),
            ("--candidates", self.candidates is not None, "candidates" in self.execution, "--execution candidates"),
            (
                "--execution-horizon",
                self.execution_horizon is not None,
                not set(GUIDED).isdisjoint(self.execution),
                f"--execution {' or '.join(GUIDED)}",
            ),
        ):
            if typed and not read:
                raise ConfigError(
                    f"{name}: expected {needed} beside it, found none; without it, {name} changes nothing"
                )


def run_trials(config: SimConfig) -> str:
    """Runs what `config.out` does not hold yet, and returns the table.

    Raises:
        ConfigError, CheckpointError, ProcessorError, SimulationError: a policy, a task or the simulator cannot be had, or `out` or
            `video` cannot be written.
    """
    policies = _load(config)
    _check_outputs(config)
    done = {result.identity: result for result in read_results(config.out)} if config.out else {}
    plan = _plan(config, policies)
    missing = {cell.identity: cell for cell in plan if cell.identity not in done}
    tasks = dict.fromkeys(cell.task for cell in missing.values())
    check_tasks(parse_env(config.env)[0], tasks, config.options)
    for task in tasks:
        for result in _run(config, [cell for cell in missing.values() if cell.task == task], policies):
            done[result.identity] = result
            if config.out:
                append_result(config.out, result)
    results = [dataclasses.replace(done[cell.identity], policy=cell.policy, measured=cell.measured) for cell in plan]
    if config.video is not None:
        write_videos(config.video, results, policies, config.instruction)
    return comparison_table(results)


def _check_outputs(config: SimConfig) -> None:
    """ConfigError now, and not after hours of episodes."""
    try:
        if config.out is not None:
            config.out.parent.mkdir(parents=True, exist_ok=True)
            config.out.open("a").close()
        if config.video is not None:
            config.video.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out and --video: expected a file and a folder that can be written ({error}); choose others"
        ) from error


def _load(config: SimConfig) -> dict[str, SmolVLAPolicy]:
    policies = {}
    for path in dict.fromkeys(config.policy):
        revision = None if Path(path).expanduser().is_dir() else config.revision
        policy = SmolVLAPolicy.from_pretrained(
            path, vlm=config.vlm, dtype=config.dtype, revision=revision, stats_from=config.stats_from
        )
        too_long = [n for n in (*config.n_action_steps, *config.act_every) if n > policy.config.chunk_size]
        if too_long:
            raise ConfigError(
                f"--n-action-steps {too_long[0]}: {path} predicts {policy.config.chunk_size} actions at once"
            )
        policies[path] = policy
    return policies


def _plan(config: SimConfig, policies: dict[str, SmolVLAPolicy]) -> list[Result]:
    """What is to be run, task by task, as results without outcomes. Nothing is there twice."""
    steps = config.num_steps * len(config.policy) if len(config.num_steps) == 1 else config.num_steps
    name, tasks = parse_env(config.env)
    options = {**dataclasses.asdict(config.options.of(name)), "dtype": config.dtype, "instruction": config.instruction}
    if config.stats_from is not None:
        # By its content: whatever lies in that file later makes other results.
        options["stats_from"] = hashlib.sha256(Path(config.stats_from).read_bytes()).hexdigest()
    cells = []
    for i, path in enumerate(config.policy):
        policy = policies[path]
        num_steps = steps[i] if steps else policy.config.num_steps
        cells += [
            Result(
                policy=path,
                sha256=policy.checkpoint.tensors.sha256,
                num_steps=num_steps,
                env=name,
                task=tasks[0],
                options=options,
                seed=config.seed,
                episodes=config.episodes,
                measured=measured,
                **dataclasses.asdict(timing),
            )
            for timing, measured in _timings(config, policy, num_steps)
        ]
    plan: dict[tuple[object, ...], Result] = {}
    for cell in (dataclasses.replace(cell, task=task) for task in tasks for cell in cells):
        plan.setdefault((cell.identity, cell.measured), cell)
    return list(plan.values())


def _timings(config: SimConfig, policy: SmolVLAPolicy, num_steps: int) -> Iterator[tuple[Timing, bool]]:
    """How a policy runs, and whether its delay was measured: each execution with each delay and each spacing of chunks."""
    for execution, delay in itertools.product(dict.fromkeys(config.execution), dict.fromkeys(config.delay)):
        for spacing in _spacings(config, policy, execution):
            horizon = config.execution_horizon or execution_horizon(policy.config)
            if execution in GUIDED and horizon > policy.config.chunk_size:
                raise ConfigError(
                    f"--execution-horizon {horizon}: {policy.checkpoint.directory} predicts {policy.config.chunk_size} actions at "
                    "once; give at most so many"
                )
            timing = Timing(
                n_action_steps=spacing,
                execution=execution,
                delay=0 if delay == MEASURED else int(delay),
                candidates=(config.candidates or CANDIDATES) if execution == "candidates" else 1,
                **({"execution_horizon": horizon} if execution in GUIDED else {}),
                look_every=config.look_every,
                look_delay=config.look_delay,
            )
            timing = timing if delay != MEASURED else _measured(config, policy, num_steps, timing)
            _check_length(config, timing)
            yield timing, delay == MEASURED


def _check_length(config: SimConfig, timing: Timing) -> None:
    name = parse_env(config.env)[0]
    most = config.options.of(name).max_steps
    for flag, steps in (("--delay", timing.delay), ("--look-delay", timing.look_delay)):
        if most is not None and steps >= most:
            raise ConfigError(
                f"{flag} {steps}: expected fewer than the {most} steps of an episode (--options.max-steps), in which the robot "
                f"would never act; lower it, or --slower with --delay {MEASURED}"
            )


def _spacings(config: SimConfig, policy: SmolVLAPolicy, execution: Execution) -> tuple[int, ...]:
    given, chunk_size = config.n_action_steps or config.act_every, policy.config.chunk_size
    if given or execution == "blocking":
        return given or (policy.config.n_action_steps,)
    return (max(chunk_size - (QUEUE_THRESHOLD if config.queue_threshold is None else config.queue_threshold), 1),)


def _measured(config: SimConfig, policy: SmolVLAPolicy, num_steps: int, timing: Timing) -> Timing:
    rate = float(environment(parse_env(config.env)[0]).metadata["render_fps"])
    delay, look_delay = delays_in_steps(policy, num_steps, timing, rate, config.slower)
    print(f"{policy.checkpoint.directory}@{num_steps}, {timing.execution}: --delay {delay} --look-delay {look_delay}")
    return dataclasses.replace(timing, delay=delay, look_delay=look_delay)


def _run(config: SimConfig, cells: Sequence[Result], policies: dict[str, SmolVLAPolicy]) -> Iterator[Result]:
    first = cells[0]
    chunk_size = max(policy.config.chunk_size for policy in policies.values())
    count = min(config.parallel, config.episodes)
    with parallel_envs(first.env, first.task, config.options, count, chunk_size) as envs:
        task = config.instruction or envs.get_attr("task_description")[0]
        for cell in cells:
            policy = policies[cell.policy]
            label, timing = f"{cell.task} {cell.label} {cell.timing.label}", cell.timing
            with progress(label, cell.episodes, unit="episode") as advance:
                outcomes = rollout(
                    envs,
                    make_act(policy, cell.num_steps, timing),
                    task,
                    range(cell.seed, cell.seed + cell.episodes),
                    timing,
                    noise_shape=noise_shape(policy, timing, count),
                    also=environment(cell.env).also_reports,
                    progress=advance,
                )
            yield cell.with_outcomes(outcomes)
