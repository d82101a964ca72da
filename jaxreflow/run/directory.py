"""A run's directory: its settings, what makes it unmistakable, and the state that it continues from."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any, TypeVar

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import CheckpointError, ConfigError, TrainingError
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.checkpoints import CheckpointStore
from jaxreflow.run.config import FinetuneConfig, ReflowConfig, RunConfig
from jaxreflow.support.option import changed_settings
from jaxreflow.support.processes import is_first
from jaxreflow.support.storage import AnyPath, as_path, is_taken, make_folder
from jaxreflow.support.strict_json import parse_json
from jaxreflow.support.typed_json import from_json
from jaxreflow.training.step import TrainState

T = TypeVar("T")
_log = logging.getLogger(__name__)

CONFIG_FILE = "train_config.json"


def write_config(config: RunConfig, path: AnyPath) -> None:
    """Writes a run's settings as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_config(cls: type[T], path: AnyPath) -> T:
    """The settings that `write_config` wrote.

    Raises:
        ConfigError: the file is missing or damaged, or of another kind of run.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a run in {path.parent} to continue: see --output-dir")
    try:
        return from_json(cls, parse_json(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: expected the settings of a `{cls.__name__}` run ({error}); was it made by this command?"
        ) from error


def recorded_settings(policy_dir: AnyPath) -> RunConfig | None:
    """The settings of the run that wrote this policy, from the `train_config.json` in its folder; None if another program wrote it.

    Settings of a run's kind that `RunConfig` does not know, as the demo's, are left out.
    """
    try:
        fields = parse_json((policy_dir / CONFIG_FILE).read_text())
        if "holdout" not in fields["dataset"]:
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    cls: type[RunConfig] = ReflowConfig if "teacher" in fields else FinetuneConfig
    known = {field.name for field in dataclasses.fields(cls)}
    try:
        return from_json(cls, {name: value for name, value in fields.items() if name in known})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{policy_dir / CONFIG_FILE}: expected the settings of a run ({error}); remove the file to evaluate without them"
        ) from error


def check_resumable(saved: RunConfig, asked: RunConfig) -> None:
    """ConfigError, naming them, if settings differ that change what a resumed run computes."""
    changed = list(changed_settings(saved, asked))
    if changed:
        raise ConfigError(
            f"--resume continues a run exactly, but these settings differ: {'; '.join(changed)}; leave them out or start a new run"
        )


def check_directory(config: RunConfig) -> AnyPath:
    """The run's directory; TrainingError if it holds something else, where the process is the one that writes there.

    A run that ended before its first checkpoint may start again there: it has nothing to lose.
    """
    run_dir = as_path(str(config.output_dir))
    if is_first() and not config.resume and is_taken(run_dir):
        if (run_dir / CONFIG_FILE).is_file() and not is_taken(run_dir / "checkpoints"):
            _log.warning("%s holds a run that ended before its first checkpoint; a new one takes its place", run_dir)
            return run_dir
        holds = "holds a run" if (run_dir / CONFIG_FILE).is_file() else "is there already and not empty"
        raise TrainingError(
            f"{run_dir} {holds}; nothing is overwritten: choose another --output-dir, or continue it with --resume"
        )
    return run_dir


def claim_directory(config: RunConfig, run_dir: AnyPath) -> None:
    """Writes the run's settings into its directory; only now, so that a wrong flag leaves nothing behind."""
    if not is_first():
        return
    try:
        make_folder(run_dir)
        write_config(dataclasses.replace(config, resume=False), run_dir / CONFIG_FILE)
    except OSError as error:
        raise TrainingError(f"{run_dir}: cannot be written ({error}); choose another --output-dir") from error


def run_identity(saved: SavedPolicy, dataset: LeRobotDataset) -> dict[str, Any]:
    """What a resumed run must find again: the weights it started from, and the data."""
    return {
        "source": {"path": str(saved.directory), "sha256": saved.tensors.sha256},
        "data": {"frames": dataset.num_frames, "episodes": len(dataset.episodes)},
    }


def restore(store: CheckpointStore, init: TrainState, identity: dict[str, Any]) -> TrainState:
    """The state of the newest checkpoint that is not damaged, or `init`; CheckpointError if the run had other weights or data."""
    step = store.newest_intact()
    if step is None:
        return init
    meta = store.read_meta(step)
    found, expected = identity["source"], meta["source"]
    if found["sha256"] != expected["sha256"]:
        raise CheckpointError(
            f"{found['path']}: not the weights that the run started from, where its frozen weights are (sha256 "
            f"{found['sha256'][:12]}, expected {expected['sha256'][:12]} from {expected['path']}); put them back"
        )
    if identity["data"] != meta["data"]:
        raise CheckpointError(
            f"the dataset has {identity['data']}, but the run was made with {meta['data']}; put it back"
        )
    return store.read_state(step, init)
