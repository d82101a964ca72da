"""Where a policy's folder is: on disk, in an object store, or in a repository of the hub."""

from __future__ import annotations

import logging
from fnmatch import fnmatch
from pathlib import Path

from jaxreflow.errors import CheckpointError
from jaxreflow.policy.vlm import VLM_FOLDER
from jaxreflow.support.hub import HUB_NAME, HubError, download, list_repository
from jaxreflow.support.last_checkpoint import POINTER, checkpoint_names, last_checkpoint
from jaxreflow.support.storage import AnyPath, as_path, is_remote, list_files, local_copy

CONFIG = "config.json"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_POLICY = "pretrained_model"
_log = logging.getLogger(__name__)


def find_saved_policy(path: str | Path, revision: str | None = None) -> Path:
    """The local folder of a policy, downloaded if it is remote or on the hub (at `revision`).

    A hub name is OWNER/NAME, or OWNER/NAME/SUBFOLDER where the policy does not lie at the repository's root. Where a run's
    `checkpoints/last` is no link, as in many copies, the run's newest policy is taken.

    Raises:
        CheckpointError: there is no policy, or it cannot be fetched; the message proposes the nearest.
    """
    place = _found_last(as_path(path))
    if is_remote(place) and CONFIG not in list_files(place):
        raise CheckpointError(f"{place}/{CONFIG}: no such file; expected a policy in LeRobot's layout")
    directory = local_copy(place, lambda name: any(fnmatch(name, pattern) for pattern in HUB_FILES))
    if directory.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{path} is a folder, which has no revision, found {revision!r}: leave it out, or give a hub name"
            )
        if not (directory / CONFIG).is_file():
            raise CheckpointError(f"{directory / CONFIG}: no such file; {policy_hint(directory)}")
        return directory.resolve()
    if directory.is_file():
        raise CheckpointError(f"{path} is a file; {policy_hint(directory.parent)}")
    return _from_hub(str(path), revision)


def check_folder(path: Path) -> None:
    """CheckpointError unless there is such a folder, for commands that take no hub name."""
    if path.is_file():
        raise CheckpointError(f"{path} is a file; {policy_hint(path.parent)}")
    if not path.is_dir():
        fetch = (
            f"; fetch a policy of the hub by `hf download {path} --local-dir DIR`"
            if HUB_NAME.fullmatch(str(path))
            else ""
        )
        raise CheckpointError(f"{path}: no such folder; expected a policy in LeRobot's layout{fetch}")


def _found_last(path: AnyPath) -> AnyPath:
    """RUN/checkpoints/last/pretrained_model by way of the checkpoint's own name, unless `last` is a link that leads there."""
    last = path.parent
    if path.name != _POLICY or last.name != POINTER or (isinstance(last, Path) and last.is_symlink() and last.exists()):
        return path
    newest = _newest(last.parent)
    if newest is not None:
        _log.warning("%s: no link to a checkpoint, so the newest policy there is taken: %s", last, newest)
    return newest or path


def _newest(checkpoints: AnyPath) -> AnyPath | None:
    """The policy of the last checkpoint in a run's folder of checkpoints; without complete ones, the newest policy there."""
    names = [*checkpoint_names(checkpoints), last_checkpoint(checkpoints)]
    policies = [checkpoints / name / _POLICY for name in names if name is not None]
    return next((policy for policy in reversed(policies) if (policy / CONFIG).is_file()), None)


def policy_hint(directory: AnyPath) -> str:
    """The policy in or under a folder that was perhaps meant, or what a policy is."""
    inner = [
        directory,
        directory / _POLICY,
        directory / "checkpoints" / POINTER / _POLICY,
        directory / POINTER / _POLICY,
    ]
    found = next((policy for policy in inner if (policy / CONFIG).is_file()), None)
    found = found or _newest(directory / "checkpoints") or _newest(directory)
    return f"did you mean {found}?" if found else "expected a policy in LeRobot's layout"


def _from_hub(name: str, revision: str | None) -> Path:
    owner, _, rest = name.partition("/")
    repository, _, inner = rest.partition("/")
    repository = f"{owner}/{repository}"
    if inner and Path(repository).is_dir():
        raise CheckpointError(f"{name}: no such folder, though {repository} is one; check the path")
    if not HUB_NAME.fullmatch(repository) or ".." in inner.split("/") or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"{name}: no such folder, and no hub name (OWNER/NAME, or OWNER/NAME/SUBFOLDER) either; check the path"
        )
    _log.info("fetching %s from the hub, unless it is here already", name)
    start = f"{inner.strip('/')}/" if inner.strip("/") else ""
    try:
        fetched = download(
            repository,
            revision=revision,
            allow_patterns=[start + pattern for pattern in HUB_FILES],
            ignore_patterns=[start + pattern for pattern in _all_folders_but(VLM_FOLDER)],
        )
    except HubError as error:
        raise CheckpointError(
            f"{name}: no such folder, and the hub repository cannot be read ({error}); "
            "check the name and the revision, or give a local folder"
        ) from error
    directory = fetched / inner
    if not (directory / CONFIG).is_file():
        raise CheckpointError(f"{name}: the hub repository has no {start}{CONFIG}; {_hub_hint(repository, revision)}")
    return directory.resolve()


def _all_folders_but(folder: str) -> list[str]:
    """Patterns of the files in folders, but for this one: a run's checkpoints may lie beside its policy."""
    return [f"{folder[:i]}[!{letter}]*/*" for i, letter in enumerate(folder)] + [f"{folder}[!/]*/*"]


def _hub_hint(repository: str, revision: str | None) -> str:
    try:
        names = list_repository(repository, revision=revision)
    except HubError:
        names = []
    policies = sorted(name.rpartition("/")[0] for name in names if name.endswith(f"/{_POLICY}/{CONFIG}"))
    policies = policies or sorted(name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG}"))
    if not policies:
        return "expected a policy in LeRobot's layout"
    return f"did you mean {repository}/{policies[-1]}?"
