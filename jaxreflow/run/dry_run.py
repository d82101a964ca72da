"""What `train.py NAME --dry-run` says: what the run would do, on what and in how much memory. Nothing is trained or written.

The update is compiled, from shapes alone, but never executed; a new policy is made in a temporary folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from jaxreflow.data.feature_cache import ImageTokens
from jaxreflow.data.feature_match import camera_map, sees_as
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.packed_frames import FOLDER
from jaxreflow.errors import ConfigError
from jaxreflow.model.params import count_parameters
from jaxreflow.model.types import Batch
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.processors import read_processor_files
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.policy.statistics import BUFFER_PREFIXES
from jaxreflow.policy.weights import expected_tensors
from jaxreflow.run.checkpoints import last_step
from jaxreflow.run.config import RunConfig
from jaxreflow.run.data import training_batches
from jaxreflow.run.directory import check_directory
from jaxreflow.run.programs import Weights, weight_shapes
from jaxreflow.run.setup import Setup, set_up, set_up_devices
from jaxreflow.run.update_costs import arithmetic_lines, batch_size_lines, call_lines, memory_lines
from jaxreflow.run.update_shapes import UpdateShapes
from jaxreflow.support import processes
from jaxreflow.support.option import labelled
from jaxreflow.support.storage import AnyPath
from jaxreflow.training.optimizer import fitted_lengths

_COLUMN, _TABLES = 13, ("first batch", "memory", "arithmetic", "call")


def dry_run(config: RunConfig) -> None:
    """Prints what `describe` finds, in the first process, as soon as it is found."""
    for title, lines in describe(config):
        if processes.is_first():
            print(_paragraph(title, lines), flush=True)


def _paragraph(title: str, lines: list[str]) -> str:
    """The lines in a column of their own; prose is wrapped to the terminal, columns are not."""
    if title not in _TABLES:
        width = max(shutil.get_terminal_size().columns - _COLUMN, 60)
        fill = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False).fill
        lines = [fill(line) for line in lines]
    return f"{title:{_COLUMN}}" + textwrap.indent("\n".join(lines), " " * _COLUMN).lstrip()


def describe(config: RunConfig) -> Iterator[tuple[str, list[str]]]:
    """What there is to know before a run: titles and their lines; the errors of a wrong setting are those of the run."""
    mesh = set_up_devices(config)
    run_dir = check_directory(config) if config.output_dir else None
    # Nothing is decoded but the first batch, by this process.
    light = dataclasses.replace(config, num_workers=0, dataset=dataclasses.replace(config.dataset, cache_frames=0.0))
    with _folder(config, run_dir) as folder:
        setup = set_up(light, mesh, folder)
        saved, data, weights = setup.saved, setup.data, weight_shapes(config, setup.saved)
        with contextlib.closing(training_batches(data, light, 0)) as batches:
            batch = next(batches)
        yield "run", _run_lines(config, run_dir)
        yield "devices", _device_lines(mesh)
        yield "policy", _policy_lines(config, saved, weights)
        yield "statistics", [statistics_source(config, saved)]
        yield "dataset", _dataset_lines(config, setup)
        yield "cameras", _camera_lines(config, saved, setup.dataset)
        yield "schedule", _schedule_lines(config, saved, len(data.train))
        yield "first batch", _batch_lines(batch)
        update = UpdateShapes(config, saved, weights, batch, mesh)
        yield "arithmetic", arithmetic_lines(config, update)
        yield "call", call_lines(config, saved)
        yield "memory", memory_lines(config, update, weights, mesh.local_devices[0])
        yield "batch size", batch_size_lines(config, update, mesh, len(data.train))


@contextlib.contextmanager
def _folder(config: RunConfig, run_dir: AnyPath | None) -> Iterator[AnyPath]:
    """Where a new policy lies: in the run that is continued, or for as long as it is looked at."""
    if run_dir is not None and config.resume:
        yield run_dir
        return
    if config.starts_new and jax.process_count() > 1:
        raise ConfigError(
            f"--dry-run: a new policy is made by one process, found {jax.process_count()}; leave --distributed out"
        )
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def statistics_source(config: RunConfig, saved: SavedPolicy) -> str:
    """Where the statistics come from that states and actions are normalised by, in the order of `load_processors`."""
    if config.starts_new and config.stats_from in (None, "policy", "dataset"):
        return "the dataset's, which the new policy keeps"
    if config.stats_from == "dataset":
        return "the dataset's, in the place of the policy's own, which --stats-from policy keeps"
    if config.stats_from not in (None, "policy"):
        return f"--stats-from {config.stats_from}, in the place of the policy's own"
    if read_processor_files(saved.directory):
        return "the policy's own, from its processors"
    if any(key.startswith(BUFFER_PREFIXES) for key in saved.tensors.keys):
        return "the policy's own, from the normalize_* buffers among its weights"
    return "the dataset's, as the policy brings none"


def _run_lines(config: RunConfig, run_dir: AnyPath | None) -> list[str]:
    where = f"into {run_dir}" if run_dir is not None else "no --output-dir yet"
    if run_dir is not None and config.resume:
        where = f"continues {run_dir} after update {last_step(run_dir / 'checkpoints') or 0}"
    listed = ", ".join(f"{label} {value}" for label, value in labelled(config))
    distillation = config.distillation
    if distillation is None:
        return [f"finetune: flow matching on recorded actions, t {config.time_law}; {where}", listed]
    return [
        f"reflow: {distillation.objective} over {distillation.loss_dims} action dims, t {config.time_law}; {where}",
        f"pairs from {distillation.teacher_steps} {distillation.teacher_solver} steps of the teacher; exported for "
        f"{config.num_steps or 'its'} step(s)",
        listed,
    ]


def _device_lines(mesh: Mesh) -> list[str]:
    kind = mesh.devices.flat[0].device_kind
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return [f"{mesh.size} x {kind}, mesh {axes}; {jax.process_count()} process(es)"]


def _policy_lines(config: RunConfig, saved: SavedPolicy, weights: Weights) -> list[str]:
    total = count_parameters(expected_tensors(saved.config))
    parts: Counter[str] = Counter()
    for path, leaf in flatten_dict(weights.start).items():
        parts[path[0]] += math.prod(leaf.shape)
    trained = sum(parts.values())
    path = "new, for the dataset's features" if config.starts_new else str(config.source.path)
    adapters = f"adapters of rank {config.lora.rank}, " if config.lora.rank else ""
    return [
        path,
        f"{total:,} parameters, {trained:,} trained ({100 * trained / total:.2f} %), {config.dtype} compute",
        f"trained: {adapters}" + ", ".join(f"{name} {count:,}" for name, count in parts.most_common()),
    ]


def _dataset_lines(config: RunConfig, setup: Setup) -> list[str]:
    dataset, data = setup.dataset, setup.data
    held_out = len(data.held_out) if data.held_out else 0
    episodes = ", ".join(map(str, data.held_out_episodes))
    return [
        f"{dataset.root}: {dataset.num_frames:,} frames in {len(dataset.episodes)} episodes",
        f"trained on {len(data.train):,} frames",
        f"held out: {held_out:,} frames of the episodes {episodes}" if held_out else "held out: none",
        *_frame_lines(config, dataset, data.train.tokens_of_images),
    ]


def _frame_lines(config: RunConfig, dataset: LeRobotDataset, tokens: ImageTokens) -> list[str]:
    """Where frames come from, or the image tokens in their place."""
    caches = [str(cache.root) for cache in (tokens.teacher, tokens.student) if cache is not None]
    if not tokens.leave_images:
        return [f"frames from image tokens in {' and '.join(caches)}: no image is decoded, no vision tower runs"]
    own = ["image tokens of the " + ("teacher" if tokens.teacher else "student") + f" from {cache}" for cache in caches]
    return [f"frames from {_frame_source(config, dataset)}", *own]


def _frame_source(config: RunConfig, dataset: LeRobotDataset) -> str:
    if (dataset.root / FOLDER).is_dir():
        source = f"packed frames in {dataset.root / FOLDER}"
    else:
        videos = any(episode.videos for episode in dataset.episodes)
        source = "video files" if videos else "images in the parquet files"
    if config.dataset.cache_frames:
        return f"memory, decoded from {source} before the first update (at most {config.dataset.cache_frames} GiB)"
    return (
        f"{source}, decoded when needed by {f'{config.num_workers} process(es)' if config.num_workers else 'a thread'}"
    )


def _camera_lines(config: RunConfig, saved: SavedPolicy, dataset: LeRobotDataset) -> list[str]:
    policy, matched = saved.policy, camera_map(saved, dataset)
    seen = _seen(policy)
    if not sees_as(saved, saved.original):
        seen += f"; by the teacher, {_seen(saved.original.policy)}"
    absent = [name for name in policy.camera_keys if name not in matched]
    unused = [name for name in dataset.camera_keys if name not in matched.values()]
    transforms = config.dataset.image_transforms
    return [
        *(f"{name} <- {source} {list(dataset.features[source].shape)}, {seen}" for name, source in matched.items()),
        *(f"{name}: absent from the dataset" for name in absent),
        *(f"{name}: left out, as the policy has no such camera" for name in unused),
        *([f"empty cameras stand in for at most {policy.empty_cameras}"] if absent else []),
        *([f"each training image changed by {transforms.num_transforms} transform(s)"] if transforms.enable else []),
    ]


def _seen(policy: PolicyConfig) -> str:
    size = policy.resize_imgs_with_padding
    return f"resized and padded to {size[1]} x {size[0]}" if size else "in its own size"


def _schedule_lines(config: RunConfig, saved: SavedPolicy, frames: int) -> list[str]:
    optimizer = config.optimizer.resolve(saved.policy)
    warmup, decay = fitted_lengths(optimizer, config.steps)
    per_epoch = frames / config.batch_size
    average = f", moving average {config.ema_decay}" if config.ema_decay else ""
    times = config.times_per_noise
    return [
        f"{config.steps:,} updates of {config.batch_size} observations x {config.noises} noise(s) x {times} time(s), in "
        f"{config.accumulate} microbatch(es)",
        f"{per_epoch:,.1f} updates an epoch, {config.steps / per_epoch:.2f} epochs",
        f"{optimizer.name}: learning rate {optimizer.lr:g} after {warmup} updates of warm-up, by a cosine to "
        f"{optimizer.decay_lr:g} at update {decay}; clipped at norm {optimizer.clip_norm:g}{average}",
        f"logged every {config.log_every}, evaluated every {config.eval_every}, saved every {config.save_every} updates",
    ]


def _batch_lines(batch: Batch) -> list[str]:
    """Every array of a batch by its name, with dtype and shape in this process."""
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(x))
        for path, x in jax.tree_util.tree_leaves_with_path(batch)
    ]
    width = max(len(name) for name, _ in leaves)
    return [f"{name:{width}} {x.dtype} {list(x.shape)}" for name, x in leaves]
