"""Where a run's log goes besides `metrics.jsonl`: TensorBoard's event files, Weights & Biases, or nowhere else."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from jaxreflow.errors import ConfigError, TrainingError
from jaxreflow.run.record.cameras import to_png
from jaxreflow.support.hub import without_token
from jaxreflow.support.processes import is_first
from jaxreflow.support.storage import AnyPath, is_remote, make_folder, upload

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What each tracker needs; the extra of that name installs it."""

# A network that is gone at the end of a run must not keep the process for ever, as it would by default.
_WANDB_FINISH_S = 300
_log = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """What a tracker is told. It may raise whatever it likes: `Tracking` sees to that."""

    def scalars(self, step: int, record: Mapping[str, float]) -> None:
        """Numbers by name, of one update."""

    def facts(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Something about the run, as plain JSON values."""

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """A picture."""

    def close(self, *, failed: bool) -> None:
        """Writes what is left; `failed` says that the run ended with an error."""


class Tracking:
    """A run's tracker, or none. One that fails is named once and left out from then on: the run and `metrics.jsonl` go on."""

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._failed = False

    def scalars(self, step: int, record: Mapping[str, float]) -> None:
        """Numbers by name, of one update."""
        self._tell(lambda tracker: tracker.scalars(step, record))

    def facts(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Something about the run, as plain JSON values."""
        self._tell(lambda tracker: tracker.facts(step, name, values))

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """A picture."""
        self._tell(lambda tracker: tracker.image(step, name, image))

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        if self._tracker is None or self._failed:
            return
        try:
            tell(self._tracker)
        except Exception as error:  # Whatever it is, it is not worth a run of a day.
            self._failed = True
            _log.warning(
                "--tracker failed (%s: %s) and gets nothing more; the run and its metrics.jsonl go on, and --resume "
                "begins with the tracker again",
                type(error).__name__,
                without_token(str(error)),
            )

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is not None and self._failed:
            with contextlib.suppress(Exception):  # It is known to be broken; what it holds is let go of all the same.
                self._tracker.close(failed=kind is not None)
        self._tell(lambda tracker: tracker.close(failed=kind is not None))


def check_tracker(name: str) -> None:
    """ConfigError unless the tracker's package is installed, where the process is the one that logs."""
    package = PACKAGES.get(name)
    if package and is_first() and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f'--tracker {name}: expected the package {package}, found none; install it with pip install "jaxreflow[{name}]"'
        )


def open_tracker(name: str, run_dir: AnyPath, *, start: int, logged: int) -> Tracking:
    """The tracker `tensorboard`, `wandb` or `none` of a run that goes on after update `start`; only the first process has one.

    `logged` is the last update whose metrics the run has logged before.

    Raises:
        TrainingError: the tracker cannot be started; the message says how to go on.
    """
    if name == "none" or not is_first():
        return Tracking(None)
    try:
        return Tracking(_TensorBoard(run_dir, start) if name == "tensorboard" else _WandB(run_dir, logged))
    except Exception as error:
        # Not chained: the original may hold request headers.
        raise TrainingError(
            f"--tracker {name}: cannot be started ({type(error).__name__}: {without_token(str(error))}); mend that and "
            "continue with --resume, or with --resume --tracker none"
        ) from None


class _TensorBoard:
    """Event files in RUN/tensorboard, a new one with every start, written by this thread.

    tensorboardX's own `SummaryWriter` leaves that to another thread: when it ends, of a full disk say, its queue fills, and the
    run waits for ever.
    """

    def __init__(self, run_dir: AnyPath, start: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._open = contextlib.ExitStack()
        self._folder = run_dir / "tensorboard"
        if isinstance(self._folder, Path):
            self._local = self._folder
            make_folder(self._local)
        else:
            self._local = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="jaxreflow-tensorboard-")))
        # Two starts within a second would share a name.
        self._file = EventsWriter(str(self._local / "events"), f".{start}")
        self._open.callback(self._file.close)
        # What TensorBoard has of later updates it drops: a resumed run writes them again.
        self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, record: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items()]
        self._write(step, summary=Summary(value=values))

    def facts(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        from tensorboardX.summary import text

        lines = json.dumps(values, indent=2).splitlines()
        self._write(step, summary=text(name, "\n".join(f"    {line}" for line in lines)))  # Markdown's form of code.

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        height, width, channels = image.shape
        picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=to_png(image))
        self._write(step, summary=Summary(value=[Summary.Value(tag=name, image=picture)]))

    def close(self, *, failed: bool) -> None:
        del failed
        self._open.close()

    def _write(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), step=step, **what))
        self._file.flush()
        if is_remote(self._folder):
            upload(self._local, self._folder)


class _WandB:
    """A run of Weights & Biases whose id is kept in RUN/wandb/run_id; its settings are the environment's, such as WANDB_MODE."""

    def __init__(self, run_dir: AnyPath, logged: int) -> None:
        # Off are W&B's reports of its own errors and, below, what it would add of the program and the machine by itself.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        kept = run_dir / "wandb" / "run_id"
        known = kept.is_file()
        make_folder(kept.parent)
        if not known:
            kept.write_text(secrets.token_hex(4))
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxreflow"),
            name=run_dir.name,
            id=kept.read_text(),
            resume="allow",
            dir=str(run_dir) if isinstance(run_dir, Path) else None,
            settings=wandb.Settings(
                console="off",
                host="",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_save_requirements=False,
                finish_timeout=_WANDB_FINISH_S,
            ),
        )
        # Nothing that is logged can be taken back, and a resumed run logs the same again. Without its server W&B does not know
        # what it has.
        self._first = (logged + 1 if known else 0) if self._run.offline else self._run.starting_step

    def scalars(self, step: int, record: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(record), step=step)

    def facts(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        del step
        self._run.config.update({name: dict(values)}, allow_val_change=True)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        if step >= self._first:
            self._run.log({name: self._image(image)}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
