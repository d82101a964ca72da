"""The data of a run: which episodes are trained on and which are held out, and how they meet the policy."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxreflow.data.advice import TRAIN_OPTIONS, DatasetOptions
from jaxreflow.data.feature_cache import NO_TOKENS, FeatureCache, ImageTokens
from jaxreflow.data.feature_match import check_vision_frozen, open_features, sees_as
from jaxreflow.data.frames import early_positions
from jaxreflow.data.holdout import holdout_split
from jaxreflow.data.lerobot import LeRobotDataset, load_dataset
from jaxreflow.data.loader import Example, TrainingSource, iterate_once, make_loader, to_batch
from jaxreflow.data.matching import check_features, dataset_key, match_cameras
from jaxreflow.errors import ConfigError
from jaxreflow.model.types import Batch, Params
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.config import DatasetConfig, RunConfig
from jaxreflow.support.console import progress

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunData:
    """A dataset split by episode, as examples for one policy; `held_out` is None where nothing is held out."""

    train: TrainingSource
    held_out: TrainingSource | None
    held_out_episodes: tuple[int, ...]
    transforms: Transforms

    @property
    def action_names(self) -> tuple[str, ...]:
        """The dataset's names of the action dims, or their numbers."""
        features = self.train.dataset.features
        return features[dataset_key(ACTION, self.transforms.processors.rename_map, features)].dim_names


def open_dataset(config: DatasetConfig, options: DatasetOptions = TRAIN_OPTIONS) -> LeRobotDataset:
    """The dataset that the flags name; DatasetError or ConfigError otherwise, which advise only `options`."""
    return load_dataset(
        config.root,
        config.repo_id,
        config.revision,
        config.episodes,
        tolerance_s=config.tolerance_s,
        options=options,
    )


def open_run_features(
    config: RunConfig,
    saved: SavedPolicy,
    dataset: LeRobotDataset,
    option: str = "--dataset.features",
    folder: str | None = None,
) -> FeatureCache | None:
    """The cached image tokens that `option` names, if any; DatasetError unless they are this policy's and dataset's.

    `folder` is the option's value, by default that of --dataset.features.
    """
    folder = folder or config.dataset.features
    if not folder:
        return None
    return open_features(
        folder, saved, dataset, rename_map=config.rename_map, stats_from=config.stats_from, option=option
    )


def open_image_tokens(config: RunConfig, saved: SavedPolicy, dataset: LeRobotDataset, trained: Params) -> ImageTokens:
    """The caches that the run's flags name; `saved` is what it starts to train, and `trained` has the structure of what changes.

    Raises:
        ConfigError: a cache would not serve the policy whose tokens it is to hold, or soon be wrong.
        DatasetError: it holds other tokens.
    """
    found = _open_image_tokens(config, saved, dataset, trained)
    if config.dataset.cache_frames and not found.leave_images:
        raise ConfigError(
            "--dataset.features and --dataset.cache-frames exclude each other, as nobody needs images: give one of them"
        )
    return found


def _open_image_tokens(config: RunConfig, saved: SavedPolicy, dataset: LeRobotDataset, trained: Params) -> ImageTokens:
    features = open_run_features(config, saved.original, dataset)
    distillation = config.distillation
    own = distillation.student.features if distillation is not None else None
    if distillation is None or sees_as(saved, saved.original):
        if own:
            raise ConfigError(
                "--student.features: the student sees as its teacher, whose tokens --dataset.features holds for both; leave it out"
            )
        if features is not None:
            check_vision_frozen(trained, "--dataset.features")
        return ImageTokens(features)
    if not own:
        return ImageTokens(features, student_sees_images=features is not None)
    check_vision_frozen(trained, "--student.features")
    return ImageTokens(features, open_run_features(config, saved, dataset, "--student.features", own))


def split_data(
    dataset: LeRobotDataset,
    policy: PolicyConfig,
    transforms: Transforms,
    config: RunConfig,
    tokens_of_images: ImageTokens = NO_TOKENS,
) -> RunData:
    """Examples of the training and the held-out episodes, with cached image tokens instead of images if given.

    Raises:
        DatasetError: the dataset does not fit the policy.
    """
    rename_map = transforms.processors.rename_map
    check_features(dataset, state_dim=transforms.state_dim, action_dim=policy.action_dim, rename_map=rename_map)
    dataset.refuse_depth(policy.visual_keys, rename_map)
    cameras = match_cameras(dataset.camera_keys, policy.visual_keys, rename_map, policy.empty_cameras)
    if config.dataset.cache_frames:
        dataset.cache_frames(list(cameras.values()), limit_bytes=round(config.dataset.cache_frames * 2**30))
    train, held_out = holdout_split(dataset, config.dataset.holdout, config.seed)

    def source(episodes: Sequence[int]) -> TrainingSource:
        return TrainingSource(
            dataset,
            dataset.frame_indices(episodes),
            cameras=cameras,
            chunk_size=policy.chunk_size,
            max_state_dim=policy.max_state_dim,
            max_action_dim=policy.max_action_dim,
            tokenize=transforms.tokenize,
            normalize_state=transforms.normalize_state,
            normalize_action=transforms.normalize_action,
            state_key=dataset_key(STATE, rename_map, dataset.features),
            action_key=dataset_key(ACTION, rename_map, dataset.features),
            tokens_of_images=tokens_of_images,
            skip_bad=config.dataset.skip_bad,
        )

    return RunData(source(train), source(held_out) if held_out else None, held_out, transforms)


def check_early_task(config: RunConfig, held_out: TrainingSource | None) -> None:
    """DatasetError, with the tasks that there are, if the report at a run's end would find no episode of its `early_task`."""
    if config.reported_task and held_out:
        early_positions(held_out, config.reported_task, 1)


def training_batches(data: RunData, config: RunConfig, start_step: int) -> Generator[Batch]:
    """This process's slices of the endless global batches from update `start_step` on; `close()` stops the workers."""
    examples: Any = make_loader(
        data.train,
        batch_size=config.batch_size,
        seed=config.seed,
        start_example=start_step * config.batch_size,
        num_workers=config.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    skipped = SkippedFrames(data.train.dataset)

    def batches() -> Generator[Batch]:
        try:
            for example in examples:
                skipped.note(example)
                yield normalized_batch(example, data.transforms)
        finally:
            examples.close()

    return batches()


class SkippedFrames:
    """Counts and logs the frames in whose place others are trained on, each once."""

    def __init__(self, dataset: LeRobotDataset) -> None:
        self._dataset = dataset
        self._known: set[int] = set()

    def note(self, example: Example) -> None:
        """Looks through a batch."""
        for skipped, index in zip(example["skipped"].tolist(), example["index"].tolist(), strict=True):
            if skipped >= 0 and skipped not in self._known:
                self._known.add(skipped)
                _log.warning(
                    "%s: %s cannot be decoded, %s takes its place (--dataset.skip-bad; %d bad frame(s) so far)",
                    self._dataset.root,
                    self._dataset.describe(skipped),
                    self._dataset.describe(index),
                    len(self._known),
                )


def held_out_batches(data: RunData, config: RunConfig) -> Iterator[Batch]:
    """This process's slices of at most `eval_batches` batches, spread evenly over the held-out frames."""
    if data.held_out is None:
        return
    frames = len(data.held_out)
    batches = min(max(frames // config.batch_size, 1), config.eval_batches)
    positions = np.linspace(0, frames - 1, batches * config.batch_size).round().astype(int)
    local = config.batch_size // jax.process_count()
    positions = positions.reshape(batches, jax.process_count(), local)[:, jax.process_index()]
    with progress("held-out episodes", batches, unit="batch") as advance:
        for example, _ in iterate_once(data.held_out, local, positions.reshape(-1).tolist()):
            yield normalized_batch(example, data.transforms)
            advance(1)


def normalized_batch(example: Example, transforms: Transforms) -> Batch:
    """Normalises the images if the policy asks for it; by default it does not, and uint8 stays uint8."""
    images = {key: transforms.normalize_image(key, image) for key, image in example["images"].items()}
    return to_batch({**example, "images": images})
