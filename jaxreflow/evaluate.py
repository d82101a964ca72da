"""Is the student the teacher? Compares a distilled policy with its teacher on held-out episodes and says what to deploy.

    python -m jaxreflow.evaluate --teacher DIR --student RUN/checkpoints/last/pretrained_model --dataset.root DATASET --out REPORT
    python -m jaxreflow.evaluate --teacher DIR --dataset.root DATASET --out REPORT     # without a student: do you need to distil?

Writes report.json and report.html, a page of its own without links, into REPORT, and prints the table and the verdict. What is
measured is the student in its folder, in the dtypes that it is stored in. A student that a run of train.py made brings the run's
dataset and held-out episodes along; other policies are measured on all episodes unless --dataset.episodes names some. Give
--early-task where several ways are open at the start of an episode: only there, and where whole chunks are
executed, do policies of few steps differ in what a robot does.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxreflow.checkpoint import newest_policy
from jaxreflow.command_line import parse, run
from jaxreflow.compilation import use_compilation_cache
from jaxreflow.data.features import check_serves
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.loader import TrainingSource
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.evaluation.checks import Thresholds
from jaxreflow.evaluation.consistency import find_run, last_update
from jaxreflow.evaluation.frames import ALL, EARLY, early_positions, frame_sets, pick
from jaxreflow.evaluation.latency import device_name
from jaxreflow.evaluation.measure import Training, measure
from jaxreflow.evaluation.page import render_page
from jaxreflow.evaluation.paths import Example, sample_examples
from jaxreflow.evaluation.report import About, Report
from jaxreflow.evaluation.sampling import Candidate, Trial, make_subject
from jaxreflow.evaluation.settings import Settings
from jaxreflow.evaluation.table import format_report
from jaxreflow.evaluation.verdict import judge
from jaxreflow.metrics import METRICS_FILE, Record, read_metrics
from jaxreflow.normalization import ACTION, STATE
from jaxreflow.pretrained import Checkpoint, find_checkpoint, load_checkpoint
from jaxreflow.run_config import DatasetConfig, ReflowConfig, RenameMap, RunConfig
from jaxreflow.run_data import open_dataset, open_run_features, split_data
from jaxreflow.run_directory import recorded_settings
from jaxreflow.storage import AnyPath, as_path, check_path, is_remote, make_folder, place_of_copy

REPORT_JSON, REPORT_HTML = "report.json", "report.html"


@dataclasses.dataclass(frozen=True)
class DatasetFlags:
    """The LeRobotDataset to measure on (default: that of the student's run)."""

    root: str | None = None
    """Its directory."""
    repo_id: str | None = None
    """Its name on the hub, if it is not on disk."""
    revision: str | None = None
    """Of --dataset.repo-id: a commit, tag or branch (default: main)."""
    episodes: tuple[int, ...] | None = None
    """Episodes to measure on (default: of the run's dataset those that it held out, of another all)."""


def check_early_task(config: RunConfig, held_out: TrainingSource | None) -> None:
    """DatasetError, with the tasks that there are, if the report at a run's end would find no episode of its `early_task`."""
    if isinstance(config, ReflowConfig) and config.report and config.early_task and held_out:
        early_positions(held_out, config.early_task, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Compares a student with its teacher, or looks at a teacher alone, and writes a report."""

    teacher: str
    """The policy that was distilled: directory or hub name."""
    teacher_revision: str | None = None
    """Of a teacher from the hub: a commit, tag or branch (default: main)."""
    student: str | None = None
    """The distilled policy: directory or hub name."""
    student_revision: str | None = None
    """Of a student from the hub: a commit, tag or branch (default: main)."""
    out: str
    """Directory of the report; files of an earlier report there are replaced."""
    dataset: DatasetFlags = DatasetFlags()
    run: str | None = None
    """Directory of the student's run, for its training loss (default: the run whose checkpoint the student is)."""
    features: str | None = None
    """Cache of image tokens made by `python -m jaxreflow.data.features`."""
    rename_map: RenameMap | None = None
    """Dataset names to policy names, as for train.py (default: as the student's run)."""
    stats_from: str | None = None
    """Statistics, as for train.py (default: as the student's run)."""
    vlm: str | None = None
    """Directory of the VLM's config and tokenizer, as for train.py."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype (default: as the student's run, else float32)."""
    vision_positions: Literal["exact", "shifted"] | None = None
    """Position ids of the vision tower (default: as the student's run, else exact)."""
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher", "student", "out", "run", "features"):
            check_path(f"--{name}", getattr(self, name))
        check_path("--dataset.root", self.dataset.root)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A report, and what its pictures are drawn from."""

    report: Report
    examples: list[Example]
    records: list[Record]


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Measures and judges; writes `report.json` and `report.html` into `config.out`.

    Raises:
        CheckpointError, ConfigError, DatasetError, ProcessorError: a policy or the dataset cannot be read, or they do not fit.
    """
    student_dir = find_checkpoint(config.student, config.student_revision) if config.student else None
    recorded = recorded_settings(student_dir) if student_dir else None
    basis = _basis(config, recorded)
    dataset = open_dataset(basis.dataset)
    teacher = _open(config.teacher, basis, dataset, config.teacher_revision)
    student = _open(str(student_dir), basis, dataset) if student_dir else None
    if student is not None:
        check_comparable(teacher, student)
    source = _source(basis, teacher, student, dataset)
    first = make_subject("teacher", teacher.load_params(), teacher.config)
    subjects = [first]
    if student is not None:
        subjects.append(make_subject("student", student.load_params(), student.config, like=first))
    settings = Settings(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Settings)})
    reference = Candidate(first, _reference_steps(recorded, teacher))
    trial = Trial(tuple(subjects), reference, source, teacher.load_transforms(), settings)
    training = _training(config.run, recorded, teacher, student)
    measures = measure(trial, training)
    verdict = judge(measures, teacher.policy.chunk_size, settings.n_action_steps, config.thresholds)
    report = Report(_about(config, trial, basis.dataset.holdout > 0), measures, verdict)
    run = training.run if training is not None else None
    records = list(read_metrics(run)) if run is not None and (run / METRICS_FILE).is_file() else []
    evaluation = Evaluation(report, _examples(trial), records)
    _write(as_path(config.out), evaluation)
    return evaluation


def evaluate_run(config: ReflowConfig, run_dir: AnyPath, **settings: Any) -> Evaluation:
    """Compares a finished run's student with its teacher; the report lies beside the student's weights."""
    assert config.teacher.path is not None
    student = str(newest_policy(run_dir / "checkpoints"))
    return evaluate(
        EvaluateConfig(
            teacher=config.teacher.path,
            teacher_revision=config.teacher.revision,
            student=student,
            out=student,
            dataset=DatasetFlags(config.dataset.root, config.dataset.repo_id, config.dataset.revision),
            # A remote student is measured on a copy, which has no run around it.
            run=str(run_dir) if is_remote(run_dir) else None,
            features=config.dataset.features,
            vlm=config.vlm,
            early_task=config.early_task,
            frames=config.eval_frames,
            **settings,
        )
    )


def _basis(config: EvaluateConfig, recorded: RunConfig | None) -> RunConfig:
    """The settings that say which data meet which policy how: the student's run's, under the flags."""
    base = recorded or ReflowConfig()
    given = {name: getattr(config, name) for name in ("rename_map", "stats_from", "vlm", "dtype", "vision_positions")}
    flags = config.dataset
    there = (base.dataset.root, base.dataset.repo_id, base.dataset.revision)
    given_here = (flags.root, flags.repo_id, flags.revision)
    chosen = given_here if any(given_here) else there
    # What a run held out says nothing of another dataset, which is measured whole.
    same = recorded is not None and flags.episodes is None and chosen == there
    own = base.dataset if same else DatasetConfig(holdout=0.0)
    dataset = dataclasses.replace(
        own,
        root=chosen[0],
        repo_id=chosen[1],
        revision=chosen[2],
        episodes=own.episodes if flags.episodes is None else flags.episodes,
        cache_frames=0.0,
        features=config.features,
    )
    return dataclasses.replace(
        base, dataset=dataset, num_workers=0, **{name: value for name, value in given.items() if value is not None}
    )


def _open(path: str, basis: RunConfig, dataset: LeRobotDataset, revision: str | None = None) -> Checkpoint:
    return load_checkpoint(
        path,
        revision=revision,
        vlm=basis.vlm,
        dtype=basis.dtype,
        vision_positions=basis.vision_positions,
        stats_from=basis.stats_from,
        dataset_stats=dataset.stats,
        rename_map=basis.rename_map or None,
    )


def check_comparable(teacher: Checkpoint, student: Checkpoint) -> None:
    """ConfigError, naming it, for what keeps two policies from being compared in normalised units: architecture, statistics."""
    own, other = dataclasses.asdict(student.config), dataclasses.asdict(teacher.config)
    changed = [f"{name} {other[name]} -> {own[name]}" for name in own if own[name] != other[name]]
    if changed:
        raise ConfigError(
            f"--student {student.directory} is of another architecture than its teacher: {'; '.join(changed)}; give the "
            "teacher that it was distilled from"
        )
    for key in (STATE, ACTION):
        ours, theirs = (checkpoint.processors.normalizer.stats.get(key, {}) for checkpoint in (student, teacher))
        wrong = [n for n in {**ours, **theirs} if not np.array_equal(ours.get(n, np.nan), theirs.get(n, np.nan))]
        if wrong:
            raise ConfigError(
                f"--student {student.directory}: its statistics of `{key}` ({', '.join(sorted(wrong))}) are not the "
                "teacher's, so the same numbers mean other actions; give --stats-from as its run had it"
            )


def _source(
    basis: RunConfig, teacher: Checkpoint, student: Checkpoint | None, dataset: LeRobotDataset
) -> TrainingSource:
    features = open_run_features(basis, teacher, dataset)
    if features is not None and student is not None:
        check_serves(features, student, dataset)
    data = split_data(dataset, teacher.policy, teacher.load_transforms(), basis, features)
    source = data.held_out or data.train
    if not len(source):
        raise DatasetError(f"{dataset.root}: no frames to measure on; give other --dataset.episodes")
    return source


def _training(
    run: str | None, recorded: RunConfig | None, teacher: Checkpoint, student: Checkpoint | None
) -> Training | None:
    if student is None or not isinstance(recorded, ReflowConfig) or _has_other_teacher(recorded, teacher):
        return None
    if run is not None:
        return Training(recorded, teacher, as_path(run), None)
    return Training(recorded, teacher, find_run(student.directory), last_update(student.directory))


def _reference_steps(recorded: RunConfig | None, teacher: Checkpoint) -> int:
    """Euler steps of the sampler that is compared with: what the student's run imitated, if this is its teacher.

    A teacher that is a student itself names one step, and its students still imitate ten.
    """
    own = teacher.policy.num_steps
    if not isinstance(recorded, ReflowConfig) or _has_other_teacher(recorded, teacher):
        return own
    return recorded.reference_steps(own)


def _has_other_teacher(recorded: ReflowConfig, teacher: Checkpoint) -> bool:
    """Whether the run's teacher lies here and is another, as that of a second round of reflow."""
    path = recorded.teacher.path
    if not path:
        return False
    own = place_of_copy(path) if is_remote(path) else Path(path)
    return own.is_dir() and own.resolve() != teacher.directory


def _about(config: EvaluateConfig, trial: Trial, held_out: bool) -> About:
    dataset, policy = trial.source.dataset, trial.transforms.policy
    here = set(trial.source.frames.tolist())
    return About(
        teacher=config.teacher,
        student=config.student,
        dataset=config.dataset.repo_id or dataset.root.name,
        episodes=tuple(episode.index for episode in dataset.episodes if episode.first in here),
        held_out=held_out,
        teacher_steps=trial.reference.num_steps,
        chunk_size=policy.chunk_size,
        action_names=tuple((dataset.features[ACTION].names or []) if ACTION in dataset.features else [])
        or tuple(f"action {i}" for i in range(policy.action_dim)),
        padded_dims=policy.max_action_dim - policy.action_dim,
        fps=dataset.fps,
        dtype=trial.config.dtype,
        device=device_name(),
        versions={name: version(name) for name in ("jaxreflow", "jax")},
        settings=trial.settings,
    )


def _examples(trial: Trial) -> list[Example]:
    """Two early frames, of different episodes, if there are such, and one of another task, or else from amid all frames."""
    settings = trial.settings
    sets = frame_sets(trial.source, settings.frames, settings.early_task, settings.early_frames)
    early = pick(sets[EARLY][:: settings.early_frames], 2) if EARLY in sets else []
    few = min(settings.num_steps)
    chosen = [trial.reference, *(Candidate(subject, few) for subject in trial.subjects)]
    frames, dataset = trial.source.frames, trial.source.dataset
    other = [i for i in sets[ALL] if dataset.frame(int(frames[i]), ())["task"] != settings.early_task] or sets[ALL]
    return sample_examples(trial, list({c.label: c for c in chosen}.values()), [*early, other[len(other) // 2]])


def _write(out: AnyPath, evaluation: Evaluation) -> None:
    page = render_page(evaluation.report, evaluation.examples, evaluation.records)
    try:
        make_folder(out)
        (out / REPORT_JSON).write_text(json.dumps(evaluation.report.to_json(), indent=1) + "\n", encoding="utf-8")
        (out / REPORT_HTML).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error}); choose another directory") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if the report was written, 1 after an error. A failed check is a result, not an error."""
    return run(_main, argv)


def _main(args: list[str]) -> int:
    sections = {"measurement": [field.name for field in dataclasses.fields(Settings)]}
    prog, about = "python -m jaxreflow.evaluate", __doc__ or ""
    config = parse(EvaluateConfig, args, prog=prog, about=about, sections=sections)
    use_compilation_cache()
    report = evaluate(config).report
    print(format_report(report))
    print(f"\n{as_path(config.out) / REPORT_HTML}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
