"""The policy that a run starts from: a checkpoint, or a new one."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.matching import dataset_key
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.policy.compact import compact_policy
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.fitting import with_features
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.saved import TRAIN_CONFIG, SavedPolicy, load_saved_policy, read_config_fields
from jaxreflow.policy.statistics import chosen_stats
from jaxreflow.run.config import RunConfig
from jaxreflow.run.config_groups import FIXED_FIELDS, PolicySource, StudentConfig
from jaxreflow.run.new_policy import create_policy
from jaxreflow.support import processes
from jaxreflow.support.storage import AnyPath, is_taken, remove_folder

_log = logging.getLogger(__name__)
# In the train_config.json of a policy that a run has made.
ACTION_NAMES = "action_names"


def open_initial_policy(config: RunConfig, dataset: LeRobotDataset, folder: AnyPath) -> SavedPolicy:
    """The policy that the run starts from; a new one is first written into `folder`.

    Raises:
        CheckpointError, ConfigError, DatasetError, ProcessorError: it cannot be read or made, or is not what the flags say.
    """
    source, path = config.source, config.source.path
    adapt = None
    if isinstance(source, PolicySource) and source.new:
        initial = folder / "initial_policy"
        path = str(initial)
        if processes.is_first() and not (config.resume and is_taken(initial)):
            if is_taken(initial):
                remove_folder(initial)
            new = dataclasses.replace(source, vlm=source.vlm or config.vlm)
            stats = chosen_stats(config.stats_from, dataset.stats, config.rename_map)
            create_policy(initial, new, dataset, rename_map=config.rename_map, seed=config.seed, stats=stats)
        processes.wait_for_all("the new policy")
    elif isinstance(source, PolicySource):
        adapt = functools.partial(_adapted, source=source, dataset=dataset, rename_map=config.rename_map)
    if not path:
        raise ConfigError(config.missing())
    saved = _with_free_state(load_policy_for(config, path, dataset, source.revision, adapt), dataset)
    distillation = config.distillation
    return saved if distillation is None else student_start(distillation.student, saved)


def student_start(student: StudentConfig, teacher: SavedPolicy) -> SavedPolicy:
    """What a student starts as: its teacher, or the part of it that the student's network has; ConfigError if there is none."""
    return compact_policy(teacher, image_size=student.image_size, vlm_layers=student.vlm_layers, choice=student.layers)


def load_policy_for(
    config: RunConfig,
    path: str,
    dataset: LeRobotDataset,
    revision: str | None = None,
    adapt: Callable[[PolicyConfig], PolicyConfig] | None = None,
) -> SavedPolicy:
    """A policy as a run with these settings computes with it, on this dataset; `adapt` changes its config first."""
    return load_saved_policy(
        path,
        revision=revision,
        vlm=config.vlm,
        dtype=config.dtype,
        vision_positions=config.vision_positions,
        stats_from=config.stats_from,
        dataset_stats=dataset.stats,
        rename_map=config.rename_map or None,
        adapt=adapt,
    )


def _adapted(
    policy: PolicyConfig, *, source: PolicySource, dataset: LeRobotDataset, rename_map: Mapping[str, str]
) -> PolicyConfig:
    """The config of a policy that is trained further: under the flags, for the dataset's state and actions, as in LeRobot.

    Raises:
        ConfigError: a flag differs from what the weights were made for, or the actions are too wide.
    """
    changed = source.apply(policy)
    fixed = [name for name in vars(changed) if name in FIXED_FIELDS and getattr(changed, name) != getattr(policy, name)]
    if fixed:
        raise ConfigError(
            f"--policy.{fixed[0].replace('_', '-')} differs from {source.path}'s, whose weights were made for its own; "
            "leave it out, or make a new policy with --policy.new"
        )
    if changed.tokenizer_max_length != policy.tokenizer_max_length:
        _log.warning(
            "--policy.tokenizer-max-length goes into config.json only, as in LeRobot: the length in policy_preprocessor.json counts"
        )
    for key, dim, with_dim in (
        (STATE, changed.state_dim, PolicyConfig.with_state_dim),
        (ACTION, changed.action_dim, PolicyConfig.with_action_dim),
    ):
        feature = dataset.features.get(dataset_key(key, rename_map, dataset.features))
        if feature is not None and len(feature.shape) == 1 and feature.shape[0] != dim:
            _log.warning("`%s` of the policy has %d dimension(s), now %d as in the dataset", key, dim, feature.shape[0])
            changed = with_dim(changed, feature.shape[0])
    return changed


def _with_free_state(saved: SavedPolicy, dataset: LeRobotDataset) -> SavedPolicy:
    """The policy for states as wide as the dataset's, where no statistics of its own say how wide they are."""
    if saved.processors.fixes_state_width:
        return saved
    feature = dataset.features.get(dataset_key(STATE, saved.processors.rename_map, dataset.features))
    if feature is None or feature.shape == (saved.policy.state_dim,):
        return saved
    policy = saved.policy.with_state_dim(feature.shape[0])
    return dataclasses.replace(
        saved, policy=policy, processors=with_features(saved.processors, policy, inputs=(STATE,))
    )


def check_action_names(saved: SavedPolicy, names: Sequence[str], *, distils: bool) -> None:
    """Compares the dataset's names of the action dims with those that a run of ours has recorded beside the policy, if any.

    Other names are logged as a warning.

    Raises:
        DatasetError: the dataset has the recorded names in another order, and the policy is to be distilled, which cannot
            mend that.
    """
    file = saved.directory / TRAIN_CONFIG
    recorded = read_config_fields(file).get(ACTION_NAMES) if file.is_file() else None
    unnamed = [str(number) for number in range(len(names))]
    if not isinstance(recorded, list) or list(names) == recorded or unnamed in (list(names), recorded):
        return
    found = (
        f"the policy was trained on actions named {', '.join(map(str, recorded))}, the dataset has {', '.join(names)}"
    )
    if distils and sorted(map(str, recorded)) == sorted(names):
        raise DatasetError(
            f"{found}, the same in another order, so that its state would be misread, too; take a dataset with the policy's order, "
            f"or remove `{ACTION_NAMES}` from {file} if the names are wrong and not the order"
        )
    _log.warning("%s; see that they mean the same, in this order", found)
