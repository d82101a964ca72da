"""A run's checkpoints: training state by Orbax, written in the background, beside the policy in LeRobot's layout.

    checkpoints/000100/training_state/    trained parameters, optimizer, moving average, step; `meta` in JSON
    checkpoints/000100/pretrained_model/  what LeRobot loads
    checkpoints/000100/checksums.json     size and digest of every file in both: SHA-256, or what the object store computes
    checkpoints/last -> 000100            moves when all is complete; a resumed run starts here, or before if this is damaged

Object stores have no links: there `last` is a file that holds the name.

Frozen parameters are not saved: they come from the checkpoint that the run started from, whose hash is in `meta`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxreflow.errors import CheckpointError
from jaxreflow.support.last_checkpoint import CHECKSUMS_FILE, POINTER, checkpoint_names, last_step
from jaxreflow.support.processes import is_first
from jaxreflow.support.storage import AnyPath, list_files, remove_folder
from jaxreflow.training.step import TrainState

STATE_DIR = "training_state"
POLICY_DIR = "pretrained_model"
_log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints in one directory; at most one is being written at a time.

    `keep` newest ones stay (None: all), and those whose step is a multiple of `keep_every` (None: no others).
    """

    def __init__(self, directory: AnyPath, *, keep: int | None = None, keep_every: int | None = None) -> None:
        self.directory = directory.absolute() if isinstance(directory, Path) else directory
        self._keep, self._keep_every = keep, keep_every
        self._pending: int | None = None
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        # Orbax's own callback comes before the files have their final names.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None

    def _steps(self) -> list[int]:
        """Steps of all checkpoints there, complete or not, in order."""
        return [int(name) for name in checkpoint_names(self.directory)]

    def path(self, step: int) -> AnyPath:
        """The directory of one checkpoint."""
        return self.directory / f"{step:06d}"

    def save(self, step: int, state: TrainState, meta: dict[str, Any], export: Callable[[AnyPath], None]) -> None:
        """Starts writing a checkpoint; `export` writes the policy into the directory it is given, which it makes.

        Raises:
            CheckpointError: this one or the one before cannot be written; `last` still names a complete one.
        """
        self.wait()
        target = self.path(step)
        self._pending = step
        try:
            if is_first():
                remove_folder(target)
                export(target / POLICY_DIR)
            args = ocp.args.Composite(state=ocp.args.StandardSave(_tree(state)), meta=ocp.args.JsonSave(meta))
            self._writer.save(target / STATE_DIR, args)
            self._written = self._thread.submit(self._finish, step)
        except Exception as error:  # Orbax and TensorStore report a full disk as ValueError, OSError or RuntimeError.
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until nothing is being written; CheckpointError if that failed."""
        written, self._written = self._written, None
        try:
            if written is not None:
                written.result()
        except Exception as error:
            raise self._failed(error) from error
        self._pending = None

    def close(self) -> None:
        """Waits and lets the writer's threads go."""
        self.wait()
        self._thread.shutdown()
        self._writer.close()

    def newest_intact(self) -> int | None:
        """The step of the checkpoint to continue from: what `last` names, or the newest before it that is not damaged.

        Every process has to call this. Damaged ones are warned of; CheckpointError if all are.
        """
        if jax.process_count() == 1:
            return self._find_intact()
        step = self._find_intact() if is_first() else None
        found = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
        return None if found < 0 else found

    def _find_intact(self) -> int | None:
        newest = last_step(self.directory)
        if newest is None:
            return None
        steps = [step for step in reversed(self._steps()) if step <= newest] or [newest]
        for step in steps:
            damage = find_damage(self.path(step))
            if damage is None:
                return step
            _log.warning("%s: damaged, so the checkpoint before it is looked for: %s", self.path(step), damage)
        raise CheckpointError(
            f"{self.directory}: all of the {len(steps)} checkpoint(s) up to {self.path(newest).name} are damaged, the oldest "
            f"because {damage}; copy one back, or start a new run"
        )

    def read_meta(self, step: int) -> dict[str, Any]:
        """What was saved as `meta`; CheckpointError if it cannot be read."""
        restored = self._restore(step, ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    def read_state(self, step: int, like: TrainState) -> TrainState:
        """The state in the shapes, dtypes and shardings of `like`; CheckpointError if it cannot be read."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(like))
        restored = self._restore(step, ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        return TrainState(restored["step"], restored["trainable"], restored["opt_state"], restored.get("ema"))

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        path = self.path(step) / STATE_DIR
        try:
            return self._writer.restore(path, args)
        except Exception as error:
            raise CheckpointError(
                f"{path}: the training state cannot be read ({_first_line(error)}); point {self.directory / POINTER} "
                "at another checkpoint and continue from there, or start a new run"
            ) from error

    def _finish(self, step: int) -> None:
        """In the background: waits until the training state stands under its final name; the policy stood there before."""
        self._writer.wait_until_finished()
        if is_first():
            _write_checksums(self.path(step))
            _point(self.directory, self.path(step).name)
            self._prune()

    def _prune(self) -> None:
        if self._keep is None:
            return
        for step in self._steps()[: -self._keep]:
            if not (self._keep_every and step % self._keep_every == 0):
                remove_folder(self.path(step))

    def _failed(self, error: Exception) -> CheckpointError:
        last = last_step(self.directory)
        kept = f"{self.path(last)} is complete" if last is not None else "there is no complete checkpoint yet"
        name = self.directory
        if self._pending is not None:
            name = self.path(self._pending)
            if is_first():
                # After the first error Orbax's other writers go on for a moment, and may put a file into a folder that is going.
                for _ in range(20):
                    remove_folder(name)
                    if not name.exists():
                        break
                    time.sleep(0.1)
            self._pending = None
        return CheckpointError(
            f"{name}: cannot be written ({_first_line(error)}); {kept}: free space, then continue with --resume"
        )


def newest_policy(directory: AnyPath) -> AnyPath:
    """The folder of the newest complete checkpoint's policy, by way of `last` where that is a link to it."""
    pointer, step = directory / POINTER, last_step(directory)
    is_link = step is None or (isinstance(pointer, Path) and pointer.is_symlink() and pointer.is_dir())
    return directory / (POINTER if is_link else f"{step:06d}") / POLICY_DIR


def find_damage(checkpoint: AnyPath) -> str | None:
    """What differs in a checkpoint's folder from what was written there, in words; None if nothing does."""
    try:
        expected = json.loads((checkpoint / CHECKSUMS_FILE).read_text())
        found = list_files(checkpoint)
        for name, (size, digest) in expected.items():
            if name not in found:
                return f"{checkpoint / name} is missing"
            if found[name].size != size:
                return f"{checkpoint / name}: expected {size} bytes, found {found[name].size}"
            if found[name].digest() != digest:
                return f"{checkpoint / name}: its bytes are not the ones that were written"
    except FileNotFoundError:
        return f"{checkpoint / CHECKSUMS_FILE} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{checkpoint / CHECKSUMS_FILE} cannot be read ({_first_line(error)})"
    return None


def _write_checksums(checkpoint: AnyPath) -> None:
    sums = {name: (file.size, file.digest()) for name, file in list_files(checkpoint).items()}
    (checkpoint / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1) + "\n")


def _point(directory: AnyPath, name: str) -> None:
    """Moves `last` in one step: a reader sees the old checkpoint or the new one."""
    if not isinstance(directory, Path):
        (directory / POINTER).write_text(name + "\n")
        return
    temporary = directory / f"{POINTER}.unfinished"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name, target_is_directory=True)
    except (OSError, NotImplementedError):  # file systems without links, such as mounted object stores
        temporary.write_text(name + "\n")
    pointer = directory / POINTER
    if pointer.is_dir() and not pointer.is_symlink():
        # A copy that followed the link. It stays, under another name: nothing says which step it was.
        pointer.rename(directory / f"{POINTER}.copied")
    temporary.replace(pointer)


def _tree(state: TrainState) -> dict[str, Any]:
    tree = {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}
    return tree if state.ema is None else {**tree, "ema": state.ema}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
