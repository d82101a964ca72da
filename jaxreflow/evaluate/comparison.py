"""Compares a distilled policy with its teacher on held-out episodes and says what to deploy."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.data.advice import EVALUATE_OPTIONS
from jaxreflow.data.feature_cache import ImageTokens
from jaxreflow.data.feature_match import check_serves
from jaxreflow.data.frames import ALL, EARLY, frame_sets, pick
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.loader import TrainingSource
from jaxreflow.data.matching import dataset_key
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.evaluate.measure import Training, measure
from jaxreflow.evaluate.measures.consistency import find_run, last_update
from jaxreflow.evaluate.options import DatasetFlags, EvaluateConfig
from jaxreflow.evaluate.paths import Example, sample_examples
from jaxreflow.evaluate.report.page import render_page
from jaxreflow.evaluate.report.report import About, Report
from jaxreflow.evaluate.sampling import Candidate, Trial, make_subject
from jaxreflow.evaluate.settings import Settings
from jaxreflow.evaluate.verdict import judge
from jaxreflow.policy.latency import device_name
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.public_names import name_policy
from jaxreflow.policy.saved import SavedPolicy, find_saved_policy
from jaxreflow.run.checkpoints import newest_policy
from jaxreflow.run.config import DatasetConfig, ReflowConfig, RunConfig
from jaxreflow.run.data import open_dataset, open_run_features, split_data
from jaxreflow.run.directory import recorded_settings
from jaxreflow.run.record.metrics import METRICS_FILE, Record, read_metrics
from jaxreflow.run.start import load_policy_for
from jaxreflow.support.storage import AnyPath, as_path, is_remote, make_folder, place_of_copy

REPORT_JSON, REPORT_HTML = "report.json", "report.html"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A report, and what its pictures are drawn from."""

    report: Report
    examples: list[Example]
    records: list[Record]


def compare(config: EvaluateConfig) -> Comparison:
    """Measures and judges; writes `report.json` and `report.html` into `config.out`.

    Raises:
        CheckpointError, ConfigError, DatasetError, ProcessorError: a policy or the dataset cannot be read, or they do not fit.
    """
    student_dir = find_saved_policy(config.student, config.student_revision) if config.student else None
    recorded = recorded_settings(student_dir) if student_dir else None
    basis = _basis(config, recorded)
    dataset = open_dataset(basis.dataset, EVALUATE_OPTIONS)
    teacher = load_policy_for(basis, config.teacher, dataset, config.teacher_revision)
    student = load_policy_for(basis, str(student_dir), dataset) if student_dir else None
    if student is not None:
        check_comparable(teacher, student)
    source = _source(basis, teacher, student, dataset)
    first = make_subject("teacher", teacher.load_params(), teacher.config)
    subjects = [first]
    if student is not None:
        subjects.append(make_subject("student", student.load_params(), student.config, like=first))
    settings = Settings(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Settings)})
    distilled = _distilled(recorded, teacher)
    reference = Candidate(first, _reference_steps(distilled, teacher))
    trial = Trial(tuple(subjects), reference, source, teacher.load_transforms(), settings)
    training = _training(config.run, distilled, teacher, student)
    measures = measure(trial, training)
    verdict = judge(measures, teacher.policy.chunk_size, settings.n_action_steps, config.thresholds)
    about = _about(
        trial,
        teacher=name_policy(config.teacher, str(teacher.directory)).name,
        student=name_policy(config.student, str(student.directory)).name if config.student and student else None,
        dataset=config.dataset.repo_id or dataset.root.name,
        held_out=basis.dataset.holdout > 0,
    )
    report = Report(about, measures, verdict)
    run = training.run if training is not None else None
    records = list(read_metrics(run)) if run is not None and (run / METRICS_FILE).is_file() else []
    evaluation = Comparison(report, _examples(trial), records)
    _write(as_path(config.out), evaluation)
    return evaluation


def compare_run(config: ReflowConfig, run_dir: AnyPath, **settings: Any) -> Comparison:
    """Compares a finished run's student with its teacher; the report lies beside the student's weights."""
    assert config.teacher.path is not None
    student = str(newest_policy(run_dir / "checkpoints"))
    return compare(
        EvaluateConfig(
            teacher=config.teacher.path,
            teacher_revision=config.teacher.revision,
            student=student,
            out=student,
            dataset=DatasetFlags(config.dataset.root, config.dataset.repo_id, config.dataset.revision),
            # A remote student is measured on a copy, which has no run around it.
            run=str(run_dir) if is_remote(run_dir) else None,
            # Tokens of the teacher's images only: a student that sees otherwise is measured on the frames.
            features=None if config.student.sees_otherwise else config.dataset.features,
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
    there = DatasetFlags(base.dataset.root, base.dataset.repo_id, base.dataset.revision)
    here = DatasetFlags(flags.root, flags.repo_id, flags.revision)
    chosen = here if any(dataclasses.astuple(here)) else there
    # The student keeps the statistics of its own dataset.
    if base.stats_from == "dataset" and chosen != there:
        base = dataclasses.replace(base, stats_from="policy")
    # What a run held out says nothing of another dataset, which is measured whole.
    same = recorded is not None and flags.episodes is None and chosen == there
    own = base.dataset if same else DatasetConfig(holdout=0.0)
    dataset = dataclasses.replace(
        own,
        root=chosen.root,
        repo_id=chosen.repo_id,
        revision=chosen.revision,
        episodes=own.episodes if flags.episodes is None else flags.episodes,
        tolerance_s=own.tolerance_s if flags.tolerance_s is None else flags.tolerance_s,
        cache_frames=0.0,
        features=config.features,
    )
    return dataclasses.replace(
        base, dataset=dataset, num_workers=0, **{name: value for name, value in given.items() if value is not None}
    )


# What a student's network may have otherwise than its teacher's: how it computes, but not what it is given and gives.
MAY_DIFFER = frozenset(
    {
        *("num_vlm_layers", "expert_layer_kinds", "expert_hidden_size", "expert_intermediate_size"),
        *("resize_imgs_with_padding", "min_period", "max_period"),
    }
)


def check_comparable(teacher: SavedPolicy, student: SavedPolicy) -> None:
    """ConfigError, naming it, for what keeps two policies from being compared in normalised units: inputs, outputs, statistics."""
    own, other = dataclasses.asdict(student.config), dataclasses.asdict(teacher.config)
    changed = [
        f"{name} {other[name]} -> {own[name]}" for name in own if own[name] != other[name] and name not in MAY_DIFFER
    ]
    if changed:
        raise ConfigError(
            f"--student {student.directory} does not see and act as its teacher: {', '.join(changed)}; "
            "give the teacher that it was distilled from"
        )
    for key in (STATE, ACTION):
        ours, theirs = (saved.processors.normalizer.stats.get(key, {}) for saved in (student, teacher))
        wrong = [n for n in {**ours, **theirs} if not np.array_equal(ours.get(n, np.nan), theirs.get(n, np.nan))]
        if wrong:
            raise ConfigError(
                f"--student {student.directory}: its statistics of `{key}` ({', '.join(sorted(wrong))}) are not the "
                "teacher's, so the same numbers mean other actions; give --stats-from as its run had it"
            )


def _source(
    basis: RunConfig, teacher: SavedPolicy, student: SavedPolicy | None, dataset: LeRobotDataset
) -> TrainingSource:
    features = open_run_features(basis, teacher, dataset, "--features")
    if features is not None and student is not None:
        check_serves(features, student, dataset)
    data = split_data(dataset, teacher.policy, teacher.load_transforms(), basis, ImageTokens(features))
    source = data.held_out or data.train
    if not len(source):
        raise DatasetError(f"{dataset.root}: no frames to measure on; give other --dataset.episodes")
    return source


def _training(
    run: str | None, distilled: ReflowConfig | None, teacher: SavedPolicy, student: SavedPolicy | None
) -> Training | None:
    if student is None or distilled is None:
        return None
    if run is not None:
        return Training(distilled, teacher, as_path(run), None)
    return Training(distilled, teacher, find_run(student.directory), last_update(student.directory))


def _distilled(recorded: RunConfig | None, teacher: SavedPolicy) -> ReflowConfig | None:
    """The settings of the student's run, if it was reflow of this teacher."""
    reflow = recorded.distillation if recorded else None
    return None if reflow is None or _has_other_teacher(reflow, teacher) else reflow


def _reference_steps(distilled: ReflowConfig | None, teacher: SavedPolicy) -> int:
    """Euler steps of the sampler that is compared with: what the student's run imitated, else the teacher's own.

    A teacher that is a student itself names one step, and its students still imitate ten.
    """
    own = teacher.policy.num_steps
    return distilled.reference_steps(own) if distilled else own


def _has_other_teacher(recorded: ReflowConfig, teacher: SavedPolicy) -> bool:
    """Whether the run's teacher lies here and is another, as that of a second round of reflow."""
    path = recorded.teacher.path
    if not path:
        return False
    own = place_of_copy(path) if is_remote(path) else Path(path).expanduser()
    return own.is_dir() and own.resolve() != teacher.directory


def _about(trial: Trial, **names: Any) -> About:
    data, policy = trial.source.dataset, trial.transforms.policy
    here = set(trial.source.frames.tolist())
    return About(
        **names,
        episodes=tuple(episode.index for episode in data.episodes if episode.first in here),
        teacher_steps=trial.reference.num_steps,
        chunk_size=policy.chunk_size,
        action_names=_action_names(trial),
        padded_dims=policy.max_action_dim - policy.action_dim,
        fps=data.fps,
        dtype=trial.config.dtype,
        device=device_name(),
        versions={name: version(name) for name in ("jaxreflow", "jax")},
        settings=trial.settings,
    )


def _action_names(trial: Trial) -> tuple[str, ...]:
    features = trial.source.dataset.features
    names = features[dataset_key(ACTION, trial.transforms.processors.rename_map, features)].dim_names
    return tuple(f"action {name}" if name.isdigit() else name for name in names)


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


def _write(out: AnyPath, evaluation: Comparison) -> None:
    page = render_page(evaluation.report, evaluation.examples, evaluation.records)
    try:
        make_folder(out)
        (out / REPORT_HTML).write_text(page, encoding="utf-8")
        (out / REPORT_JSON).write_text(json.dumps(evaluation.report.to_json(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error}); choose another directory") from error
