"""The policy that a run starts from: a checkpoint, or a new one."""

from __future__ import annotations

import dataclasses

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import ConfigError
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy
from jaxreflow.run.config import RunConfig
from jaxreflow.run.config_groups import FREE_FIELDS, PolicySource
from jaxreflow.run.new_policy import create_policy
from jaxreflow.support import processes
from jaxreflow.support.storage import AnyPath, is_taken, remove_folder


def open_initial_policy(config: RunConfig, dataset: LeRobotDataset, folder: AnyPath) -> SavedPolicy:
    """The policy that the run starts from; a new one is first written into `folder`.

    Raises:
        CheckpointError, ConfigError, DatasetError, ProcessorError: it cannot be read or made, or is not what the flags say.
    """
    source, path = config.source, config.source.path
    if isinstance(source, PolicySource) and source.new:
        initial = folder / "initial_policy"
        path = str(initial)
        if processes.is_first() and not (config.resume and is_taken(initial)):
            if is_taken(initial):
                remove_folder(initial)
            new = dataclasses.replace(source, vlm=source.vlm or config.vlm)
            create_policy(initial, new, dataset, rename_map=config.rename_map, seed=config.seed)
        processes.wait_for_all("the new policy")
    if not path:
        raise ConfigError(config.missing())
    saved = load_policy_for(config, path, dataset, source.revision)
    return _with_flags(source, saved) if isinstance(source, PolicySource) else saved


def load_policy_for(config: RunConfig, path: str, dataset: LeRobotDataset, revision: str | None = None) -> SavedPolicy:
    """A policy as a run with these settings computes with it, on this dataset."""
    return load_saved_policy(
        path,
        revision=revision,
        vlm=config.vlm,
        dtype=config.dtype,
        vision_positions=config.vision_positions,
        stats_from=config.stats_from,
        dataset_stats=dataset.stats,
        rename_map=config.rename_map or None,
    )


def _with_flags(source: PolicySource, saved: SavedPolicy) -> SavedPolicy:
    """The policy under the flags; ConfigError where they change what existing weights were made for."""
    if source.new:
        return saved
    changed = source.apply(saved.policy)
    fixed = [n for n, value in vars(changed).items() if n not in FREE_FIELDS and value != getattr(saved.policy, n)]
    if fixed:
        raise ConfigError(
            f"--policy.{fixed[0].replace('_', '-')} differs from {source.path}'s, whose weights were made for its own; "
            "leave it out, or make a new policy with --policy.new"
        )
    return dataclasses.replace(saved, policy=changed)
