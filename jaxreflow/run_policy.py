"""The policy that a run starts from: a checkpoint, or a new one."""

from __future__ import annotations

import dataclasses

from jaxreflow import distributed
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import ConfigError
from jaxreflow.new_policy import create_policy
from jaxreflow.option_groups import FREE_FIELDS, PolicySource, TeacherSource
from jaxreflow.pretrained import Checkpoint, load_checkpoint
from jaxreflow.run_config import FinetuneConfig, ReflowConfig, RunConfig
from jaxreflow.storage import AnyPath, is_taken


def open_checkpoint(config: RunConfig, dataset: LeRobotDataset, folder: AnyPath) -> Checkpoint:
    """The policy that the run starts from; a new one is first written into `folder`.

    Raises:
        CheckpointError, ConfigError, DatasetError, ProcessorError: it cannot be read or made, or is not what the flags say.
    """
    source: TeacherSource | PolicySource
    if isinstance(config, ReflowConfig):
        source, flag = config.teacher, "--teacher.path"
    else:
        assert isinstance(config, FinetuneConfig)
        source, flag = config.policy, "--policy.path (or --policy.new)"
    path = source.path
    if isinstance(source, PolicySource) and source.new:
        initial = folder / "initial_policy"
        path = str(initial)
        if distributed.is_first() and not is_taken(initial):
            new = dataclasses.replace(source, vlm=source.vlm or config.vlm)
            create_policy(initial, new, dataset, rename_map=config.rename_map, seed=config.seed)
        distributed.wait_for_all("the new policy")
    if not path:
        raise ConfigError(f"{flag} is missing: the directory or hub name of a policy in LeRobot's layout")
    checkpoint = load_checkpoint(
        path,
        revision=source.revision,
        vlm=config.vlm,
        dtype=config.dtype,
        vision_positions=config.vision_positions,
        stats_from=config.stats_from,
        dataset_stats=dataset.stats,
        rename_map=config.rename_map or None,
    )
    return _with_flags(config.policy, checkpoint) if isinstance(config, FinetuneConfig) else checkpoint


def _with_flags(source: PolicySource, checkpoint: Checkpoint) -> Checkpoint:
    """The policy under the flags; ConfigError where they change what existing weights were made for."""
    if source.new:
        return checkpoint
    changed = source.apply(checkpoint.policy)
    fixed = [n for n, value in vars(changed).items() if n not in FREE_FIELDS and value != getattr(checkpoint.policy, n)]
    if fixed:
        raise ConfigError(
            f"--policy.{fixed[0].replace('_', '-')} differs from {source.path}'s, whose weights were made for its own; "
            "leave it out, or make a new policy with --policy.new"
        )
    return dataclasses.replace(checkpoint, policy=changed)
