"""The input pipeline: examples as numpy records, in one global order that no worker, process or restart changes.

Position p of the endless global order holds the same frame whatever the number of workers and processes; batch b is
positions `b * batch_size ...`, and process i of n takes the i-th of its n equal slices. A run therefore resumes by its
number of examples alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.util import Finalize
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float32, Int, Int32

from jaxreflow.data.feature_cache import NO_TOKENS, ImageTokens
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.matching import pad_last
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.model.types import Batch, Observation
from jaxreflow.policy.names import ACTION, STATE

# More examples than any run draws.
_ENDLESS = 1 << 48
# Frames that are tried in the place of one that cannot be decoded.
_SUBSTITUTES = 16
# How long a worker goes on after SIGTERM, which schedulers send to every process of a job: the run finishes its update first.
_WORKER_GRACE_S = 20

Example = dict[str, Any]
Tokenize = Callable[[list[str]], tuple[Int32[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]]
Normalize = Callable[[Float32[np.ndarray, "n d"]], Float32[np.ndarray, "n d"]]


class TrainingSource:
    """Random access to training examples of the given frames; picklable, since all that is computed here is tables.

    An example holds `images` (uint8 `[H, W, 3]`) and `image_mask` per policy camera, `tokens` and `token_mask` `[T]`,
    `state` `[max_state_dim]`, `actions` `[C, max_action_dim]` (both normalised, then zero-padded), `action_is_pad`
    `[C]`, the global frame `index`, and which frame `skipped` could not be decoded, so that this one takes its place (-1:
    none; others than -1 only with `skip_bad`). With `tokens_of_images`, `image_tokens` holds `[P, D]` per camera, and
    `student_tokens` those of a student that sees by its own. Where nobody needs images, none is decoded and `images` is empty.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        frames: Int[np.ndarray, " n"],
        *,
        cameras: Mapping[str, str],
        chunk_size: int,
        max_state_dim: int,
        max_action_dim: int,
        tokenize: Tokenize,
        normalize_state: Normalize,
        normalize_action: Normalize,
        state_key: str = STATE,
        action_key: str = ACTION,
        tokens_of_images: ImageTokens = NO_TOKENS,
        skip_bad: bool = False,
    ) -> None:
        self.dataset = dataset
        self._skip_bad = skip_bad
        self.tokens_of_images = tokens_of_images
        self.cameras = dict(cameras)
        self.frames = np.asarray(frames, np.int64)
        self._rows = dataset.rows(self.frames)
        self._last = dataset.last_rows()
        self._chunk = np.arange(chunk_size)
        self._max_action_dim = max_action_dim
        if tokens_of_images.leave_images:
            dataset.check_cameras(list(self.cameras.values()))
        self._tokens, self._token_mask = tokenize(list(dataset.tasks))
        self._task = np.unique(dataset.column("task_index")[:, 0], return_inverse=True)[1]
        self._state = pad_last(np.asarray(normalize_state(dataset.column(state_key)), np.float32), max_state_dim)
        # Padded on access: the widest table there is, and mostly zeros.
        self._action = np.asarray(normalize_action(dataset.column(action_key)), np.float32)
        pad_last(self._action[:1], max_action_dim)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, position: int) -> Example:
        for tried, candidate in enumerate((position, *self._substitutes(position))):
            try:
                return self._example(candidate) | {"skipped": np.int32(self.frames[position] if tried else -1)}
            except DatasetError as error:
                failure = error
        raise failure

    def _substitutes(self, position: int) -> list[int]:
        """Positions that may take this one's place, the same whenever and wherever it is read."""
        if not self._skip_bad:
            return []
        return np.random.default_rng(position).integers(len(self), size=_SUBSTITUTES).tolist()

    def _example(self, position: int) -> Example:
        frame, row = int(self.frames[position]), self._rows[position]
        wanted, last = row + self._chunk, self._last[row]
        task = self._task[row]
        seen = self.cameras if self.tokens_of_images.leave_images else {}
        return {
            "images": {key: self.dataset.image(frame, name) for key, name in seen.items()},
            **self.tokens_of_images.at(frame),
            "image_mask": dict.fromkeys(self.cameras, np.True_),
            "tokens": self._tokens[task],
            "token_mask": self._token_mask[task],
            "state": self._state[row],
            "actions": pad_last(self._action[np.minimum(wanted, last)], self._max_action_dim),
            "action_is_pad": wanted > last,
            "index": np.int32(frame),
        }


def make_loader(
    source: TrainingSource,
    *,
    batch_size: int,
    seed: int,
    start_example: int = 0,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    prefetch: int = 2,
) -> Iterator[Example]:
    """Endless numpy batches, stacked examples: this process's slice of each global batch, from `start_example` on.

    Every epoch visits each frame once, newly shuffled; batches run across its end. With 0 workers a thread decodes
    `prefetch` batches ahead, otherwise each worker process does; `close()` on the iterator stops them. Raises
    DatasetError for fewer frames than a batch, ConfigError for sizes that do not divide; the iterator raises DatasetError
    with the frames that a worker was reading when it died.
    """
    if len(source) < batch_size:
        raise DatasetError(
            f"{source.dataset.root}: {len(source)} frames are fewer than a batch of {batch_size}; "
            "lower --batch-size or use more episodes"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch size {batch_size}: expected a positive multiple of the {process_count} process(es)")
    _require("process_index", process_index, 0, process_count - 1)
    _require("start_example", start_example, 0, _ENDLESS // 2)
    _require("num_workers", num_workers, 0, 1024)
    _require("prefetch", prefetch, 1, 1024)
    _require("seed", seed, 0, 2**32 - 1)
    if num_workers and source.dataset.cached:
        raise ConfigError(f"{num_workers} workers would each copy the cached frames; use 0 workers with a frame cache")

    def order(records: Any) -> grain.MapDataset:
        ordered: grain.MapDataset = grain.MapDataset.source(records).seed(seed)
        if shuffle:
            ordered = ordered.shuffle()
        # Grain's endless `repeat()` has the largest length there is, which overflows once it is cut into batches.
        endless = ordered.repeat(_ENDLESS // len(source))
        return endless[start_example:].batch(batch_size // process_count)[process_index::process_count]

    if not num_workers:
        return iter(order(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)))
    # Workers read absl's flags, which nobody parses outside an absl program.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    reading = order(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
    return _WorkerBatches(iter(reading.mp_prefetch(workers, _start_worker)), order(source.frames), source.dataset)


def _start_worker(index: int, count: int) -> None:
    """In a worker process: lets the run decide when to end, and ends with it even if that is killed."""
    del index, count
    run = multiprocessing.parent_process()
    assert run is not None

    def end_with_the_run(timeout: float | None = None) -> None:
        run.join(timeout)
        os._exit(1)

    def watch(timeout: float | None) -> None:
        threading.Thread(target=end_with_the_run, args=(timeout,), daemon=True).start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: watch(_WORKER_GRACE_S))
    watch(None)


class _WorkerBatches(Iterator[Example]):
    """Batches read by worker processes, `frames` those in each of them; the death of a worker becomes a DatasetError."""

    def __init__(self, batches: Any, frames: grain.MapDataset, dataset: LeRobotDataset) -> None:
        self._batches, self._frames, self._dataset = batches, frames, dataset
        self._read = 0
        # A program that ends without `close` would wait out the workers' grace.
        Finalize(self, batches.close, exitpriority=0)

    def __next__(self) -> Example:
        try:
            example = next(self._batches)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            frames = ", ".join(self._dataset.describe(int(frame)) for frame in self._frames[self._read])
            raise DatasetError(
                f"{self._dataset.root}: a loader worker died ({error}) while it read {frames}; out of memory, or a damaged "
                "video? Go on with --resume and fewer --num-workers (0: a thread of the run itself)"
            ) from error
        self._read += 1
        return example

    def close(self) -> None:
        """Stops the workers."""
        self._batches.close()


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"loader: expected {name} from {least} to {most}, found {value}")


def iterate_once(
    source: TrainingSource, batch_size: int, indices: Sequence[int] | None = None
) -> Iterator[tuple[Example, int]]:
    """Batches of the source's examples at these positions (default all), in order, each with its number of valid ones.

    The last batch is filled up by repeating its last example, so that all have one shape.
    """
    positions = list(range(len(source)) if indices is None else indices)
    for start in range(0, len(positions), batch_size):
        chosen = positions[start : start + batch_size]
        examples = [source[position] for position in chosen]
        examples += examples[-1:] * (batch_size - len(chosen))
        yield _stack(examples), len(chosen)


def to_batch(example: Example) -> Batch:
    """A stacked example as the record that training steps take; arrays stay on the host."""
    seen = ("images", "image_mask", "tokens", "token_mask", "state", "image_tokens")
    observation = Observation(**{name: example[name] for name in seen if name in example})
    return Batch(
        observation=observation,
        actions=example["actions"],
        action_is_pad=example["action_is_pad"],
        index=example["index"],
        student_tokens=example.get("student_tokens"),
    )


def _stack(examples: Sequence[Example]) -> Example:
    return {
        name: (_stack if isinstance(value, dict) else np.stack)([example[name] for example in examples])
        for name, value in examples[0].items()
    }
