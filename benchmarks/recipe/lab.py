"""The steps of the experiments as commands. Each runs once: a step is left out if its product exists."""

from __future__ import annotations

import dataclasses
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.recipe.variants import SNAPFLOW, Variant, length
from jaxreflow.errors import ConfigError, TrainingError
from jaxreflow.sim.results import Result, append_result

TASKS = ("wall-detour", "button-press-topdown-v3", "handle-press-v3", "drawer-close-v3")
ENV = "metaworld:" + ",".join(TASKS)
# Files of a lab's results: the ways round the wall of the default and of students of more and more updates, and success in
# closed loop.
SIDES, SIDES_LENGTHS = "sides.json", "sides_lengths.json"
CLOSED_LOOP = "closed_loop.jsonl"
TEACHER, STUDENTS = "teacher", "students"
_EXPORTED = Path("checkpoints", "last", "pretrained_model")
EARLY_TASK = "Bypass a wall and reach a goal"
# Layouts of the demonstrations, of the episodes on which students are measured, and of the closed loop are drawn far apart.
DATA_SEED, HELD_OUT_SEED, CLOSED_LOOP_SEED = 1_000, 50_000, 100_000


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything."""

    demonstrations: tuple[int, ...]
    held_out: tuple[int, ...]
    teacher_updates: int | None
    """None: as the config says."""
    student_updates: int | None
    screening_updates: int
    equal_cost_updates: dict[str, int]
    """Updates of the variants of `EQUAL_COST` that evaluate the network as often as `screening_updates` of the default."""
    episodes: int
    frames: int
    draws: int
    screening_draws: int


# By arithmetic: M (10 + 3 T) evaluations of the field for every observation, where the default takes 16 of 16 observations.
EQUAL = {"noises_4": 250, "noises_8": 125, "batch_8": 2_000, "times_1": 1_230, "times_4": 730}
FULL = Scale((600, 250, 150, 200), (60, 20, 20, 20), None, None, 1_000, EQUAL, 325, 480, 256, 64)
SMOKE = Scale((3, 2, 2, 2), (2, 1, 1, 1), 20, 10, 4, dict.fromkeys(EQUAL, 4), 2, 16, 8, 8)


@dataclasses.dataclass(frozen=True)
class Lab:
    """Where everything lies: below `root`. Pictures are squares of `image_size` pixels."""

    root: Path
    scale: Scale
    image_size: int = 96
    teacher_flags: tuple[str, ...] = ()
    """What differs from the teacher's config."""
    env: str = ENV
    teacher_config: str = "metaworld_teacher"
    early_task: str = EARLY_TASK

    @property
    def results(self) -> Path:
        """The folder of reports and closed loops, beside the policies that they measure."""
        return self.root / "results"

    @property
    def data(self) -> Path:
        """The demonstrations."""
        return self.root / "data"

    @property
    def held_out(self) -> Path:
        """The episodes on which students are measured."""
        return self.root / "held_out"

    @property
    def teacher(self) -> Path:
        """The policy that is distilled."""
        return self.root / TEACHER / _EXPORTED

    def student(self, name: str) -> Path:
        """A variant's exported policy."""
        return self.root / STUDENTS / name / _EXPORTED

    def prepare(self) -> None:
        """Records the demonstrations, trains the teacher, and computes image tokens."""
        self.record()
        self.train_teacher()
        self.compute_features()

    def record(self) -> None:
        """Demonstrations to train on, and others to measure on."""
        for out, counts, seed in (
            (self.data, self.scale.demonstrations, DATA_SEED),
            (self.held_out, self.scale.held_out, HELD_OUT_SEED),
        ):
            record = ("-m", "jaxreflow.sim", "record", "--env", self.env, "--episodes", *map(str, counts))
            size = ("--options.size", str(self.image_size))
            self.run(out.name, out, *record, *size, "--seed", str(seed), "--out", out)

    def train_teacher(self) -> None:
        """The teacher, by its config."""
        updates = length(self.scale.teacher_updates) if self.scale.teacher_updates else ()
        where = ("--dataset.root", self.data, "--output-dir", self.root / TEACHER)
        self._train(TEACHER, self.teacher_config, *self.teacher_flags, *updates, *where)

    def compute_features(self) -> None:
        """The teacher's image tokens of both datasets."""
        for data, features in ((self.data, "features"), (self.held_out, "held_out_features")):
            out = self.root / features
            # Without a product: a cache that was interrupted goes on, and a whole one is left as it is.
            self.run(features, None, "-m", "jaxreflow.data.features", data, "--policy", self.teacher, "--out", out)

    def train(self, variant: Variant) -> None:
        """Trains a student."""
        teacher = self.teacher if variant.teacher is None else self.student(variant.teacher)
        out = self.root / STUDENTS / variant.name
        updates = (self.scale.student_updates or 0) * variant.times_as_long
        if variant.config == SNAPFLOW:
            own = ("--teacher", teacher, "--dataset", self.data, "--features", self.root / "features")
            more = ("--updates", str(updates)) if updates else ()
            rival = ("-m", "benchmarks.recipe.snapflow", *own, "--out", out, *variant.flags, *more)
            self.run(f"{STUDENTS}/{variant.name}", None, *rival)
            return
        flag = "--policy.path" if variant.config == "metaworld_biased" else "--teacher.path"
        self._train(
            f"{STUDENTS}/{variant.name}",
            variant.config,
            flag,
            teacher,
            "--dataset.root",
            self.data,
            *self._images(variant),
            *(() if variant.config == "metaworld_biased" else ("--no-report",)),
            *variant.flags,
            *(length(updates) if updates else ()),
            "--output-dir",
            out,
        )

    def _images(self, variant: Variant) -> tuple[str | Path, ...]:
        frames = ("--dataset.cache-frames", "4")
        if not variant.cached:
            return "--dataset.features", "None", *frames
        sees_otherwise = "--student.image-size" in variant.flags
        return "--dataset.features", self.root / "features", *(frames if sees_otherwise else ())

    def evaluate(
        self, variant: Variant, num_steps: Sequence[int] = (10, 2, 1), repeats: int = 0, draws: int | None = None
    ) -> None:
        """Measures a student against the teacher, on layouts that neither has seen."""
        out, scale = self.results / variant.name, self.scale
        cached: tuple[str | Path, ...] = ()
        if variant.shares_tokens:
            cached = ("--features", self.root / "held_out_features")
        self.run(
            f"evaluate/{variant.name}",
            out / "report.json",
            *("-m", "jaxreflow.evaluate"),
            *("--teacher", self.teacher, "--student", self.student(variant.name)),
            *("--dataset.root", self.held_out, *cached, "--out", out),
            *("--early-task", self.early_task, "--frames", str(scale.frames), "--draws", str(draws or scale.draws)),
            *("--num-steps", *map(str, num_steps), "--repeats", str(repeats)),
        )

    def evaluate_short(self, variant: Variant) -> None:
        """Measures what the screening compares, with fewer draws."""
        self.evaluate(variant, num_steps=(2, 1), draws=self.scale.screening_draws)

    def measure_sides(self, name: str, variants: Sequence[Variant]) -> None:
        """Counts chunks of early wall frames that take neither side, into the file `name`."""
        policies = (self.teacher, *(self.student(variant.name) for variant in variants))
        self.run(
            Path(name).stem,
            self.results / name,
            *("-m", "benchmarks.recipe.sides", "--policy"),
            *policies,
            *("--dataset", self.held_out, "--draws", str(self.scale.draws), "--out", self.results / name),
        )

    def close_loop(self, variants: Sequence[Variant]) -> None:
        """Success of the teacher in ten, two and one steps, and of the students in one and two, on the same episodes."""
        policies: list[tuple[Path, int]] = [(self.teacher, steps) for steps in (10, 2, 1)]
        policies += [(self.student(variant.name), steps) for variant in variants for steps in variant.acts_in]
        self.simulate(
            "closed_loop",
            *("--policy", *(str(path) for path, _ in policies)),
            *("--num-steps", *(str(steps) for _, steps in policies), "--n-action-steps", "10", "50"),
            *("--env", self.env, "--episodes", str(self.scale.episodes), "--seed", str(CLOSED_LOOP_SEED)),
            *("--options.size", str(self.image_size)),
            *("--out", str(self.results / CLOSED_LOOP)),
        )

    def simulate(self, name: str, *flags: str) -> None:
        """Closed loops; those that are in their `--out` already do not run again."""
        self.run(name, None, "-m", "jaxreflow.sim", *flags)

    def _train(self, name: str, config: str, *flags: str | Path) -> None:
        """A run of train.py, from its last checkpoint if it was interrupted."""
        resume = ("--resume",) if (self.root / name / "checkpoints").exists() else ()
        self.run(name, None, "train.py", config, *flags, *resume)

    def run(self, name: str, product: Path | None, *command: str | Path) -> None:
        """Runs a command of this Python unless its product exists. If it fails, TrainingError says where its output lies."""
        if product is not None and product.exists():
            return
        log = self.root / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        print(f"python {shlex.join(words)}   # {log}", flush=True)
        with log.open("a", encoding="utf-8") as output:
            status = subprocess.run([sys.executable, *words], stdout=output, stderr=output, check=False)
        if status.returncode:
            raise TrainingError(f"{name} failed with exit status {status.returncode}; its output is in {log}")


def named(result: Result) -> Result:
    """The result under its policy's name in a study, instead of a path: `teacher`, or a student's."""
    return dataclasses.replace(result, policy=policy_name(result.policy))


def policy_name(policy: str) -> str:
    """What a study calls a policy: `teacher`, or a student's name, from where it lies."""
    path = Path(policy)
    if STUDENTS in path.parts:
        return path.parts[path.parts.index(STUDENTS) + 1]
    return TEACHER if path.name == _EXPORTED.name else path.name


def keep_results(path: Path, results: Iterable[Result]) -> None:
    """Writes the results that stand behind a page, in place of those that are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    for result in results:
        append_result(path, result)


def check_jobs(jobs: int) -> None:
    """ConfigError unless each job can have a core."""
    cores = len(os.sched_getaffinity(0))
    if not 1 <= jobs <= cores:
        raise ConfigError(f"--jobs must be between 1 and {cores}, the cores at hand, found {jobs}")


def side_by_side(jobs: int, steps: Sequence[Callable[[], None]]) -> None:
    """Runs the steps, `jobs` at a time. Steps that run together share this process's cores equally (Linux).

    Raises:
        ConfigError: if there are fewer cores than jobs.
        Exception: of a step that failed. Running steps go on to their end, and others do not start.
    """
    check_jobs(jobs)
    if jobs == 1:
        for step in steps:
            step()
        return
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.Queue[list[int]] = queue.Queue()
    for i in range(jobs):
        shares.put(cores[i::jobs])
    failed = threading.Event()

    def run(step: Callable[[], None]) -> None:
        if not failed.is_set():
            try:
                step()
            except BaseException:
                failed.set()
                raise

    # The thread that starts a step's processes passes its cores on to them.
    with ThreadPoolExecutor(jobs, initializer=lambda: os.sched_setaffinity(0, shares.get())) as pool:
        list(pool.map(run, steps))
