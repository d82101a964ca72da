"""A run's checkpoints: training state by Orbax, written in the background, beside the policy in LeRobot's layout.

    checkpoints/000100/training_state/    trained parameters, optimizer, moving average, step; `meta` in JSON
    checkpoints/000100/pretrained_model/  what LeRobot loads
    checkpoints/last -> 000100            moves when both are complete; all that a resumed run looks at

Frozen parameters are not saved: they come from the checkpoint that the run started from, whose hash is in `meta`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxreflow.errors import CheckpointError
from jaxreflow.training import TrainState

STATE_DIR = "training_state"
POLICY_DIR = "pretrained_model"
_POINTER = "last"


class CheckpointStore:
    """The checkpoints in one directory; at most one is being written at a time.

    `keep` newest ones stay (None: all), and those whose step is a multiple of `keep_every` (None: no others).
    """

    def __init__(self, directory: Path, *, keep: int | None = None, keep_every: int | None = None) -> None:
        self.directory = Path(directory).absolute()
        self._keep, self._keep_every = keep, keep_every
        self._pending: int | None = None
        options = ocp.AsyncOptions(post_finalization_callback=self._finish)
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    def path(self, step: int) -> Path:
        """The directory of one checkpoint."""
        return self.directory / f"{step:06d}"

    def save(self, step: int, state: TrainState, meta: dict[str, Any], export: Callable[[Path], None]) -> None:
        """Starts writing a checkpoint; `export` writes the policy into the directory it is given, which it makes.

        Raises:
            CheckpointError: this one or the one before cannot be written; `last` still names a complete one.
        """
        self.wait()
        target = self.path(step)
        self._pending = step
        try:
            if jax.process_index() == 0:
                shutil.rmtree(target, ignore_errors=True)
                export(target / POLICY_DIR)
            args = ocp.args.Composite(state=ocp.args.StandardSave(_tree(state)), meta=ocp.args.JsonSave(meta))
            self._writer.save(target / STATE_DIR, args)
        except Exception as error:  # Orbax and TensorStore report a full disk as ValueError, OSError or RuntimeError.
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until nothing is being written; CheckpointError if that failed."""
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits and lets the writer's threads go."""
        self.wait()
        self._writer.close()

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
                f"{path}: the training state cannot be read ({_first_line(error)}); point {self.directory / _POINTER} "
                "at another checkpoint and continue from there, or start a new run"
            ) from error

    def _finish(self) -> None:
        """Called by Orbax once the training state stands under its final name; the policy stood there before."""
        if self._pending is None or jax.process_index() != 0:
            return
        step, self._pending = self._pending, None
        _point(self.directory, self.path(step).name)
        self._prune()

    def _prune(self) -> None:
        if self._keep is None:
            return
        steps = sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit() and path.is_dir())
        for step in steps[: -self._keep]:
            if not (self._keep_every and step % self._keep_every == 0):
                shutil.rmtree(self.path(step), ignore_errors=True)

    def _failed(self, error: Exception) -> CheckpointError:
        last = last_step(self.directory)
        kept = f"{self.path(last)} is complete" if last is not None else "there is no complete checkpoint yet"
        name = self.directory
        if self._pending is not None:
            name = self.path(self._pending)
            shutil.rmtree(name, ignore_errors=True)
            self._pending = None
        return CheckpointError(
            f"{name}: cannot be written ({_first_line(error)}); {kept}: free space, then continue with --resume"
        )


def last_step(directory: Path) -> int | None:
    """The step that `last` names, as a symlink or as a file with the name in it; None where there is no checkpoint."""
    pointer = Path(directory) / _POINTER
    try:
        name = pointer.readlink() if pointer.is_symlink() else pointer.read_text().strip()
        return int(Path(name).name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{pointer}: expected a link to a checkpoint or a file that holds its name ({error})"
        ) from error


def _point(directory: Path, name: str) -> None:
    """Moves `last` in one step: a reader sees the old checkpoint or the new one."""
    temporary = directory / f"{_POINTER}.unfinished"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name, target_is_directory=True)
    except (OSError, NotImplementedError):  # file systems without links, such as mounted object stores
        temporary.write_text(name + "\n")
    temporary.replace(directory / _POINTER)


def _tree(state: TrainState) -> dict[str, Any]:
    tree = {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}
    return tree if state.ema is None else {**tree, "ema": state.ema}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
