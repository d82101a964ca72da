"""A policy's folder as it is published on the hub: the files that belong, with a model card, and without paths of this machine."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxreflow.errors import JaxReflowError, PublishError
from jaxreflow.evaluate.comparison import REPORT_HTML, REPORT_JSON
from jaxreflow.evaluate.report.report import Report, read_report
from jaxreflow.policy.public_names import PolicyName, folder_name, is_folder, name_policy
from jaxreflow.policy.saved import CONFIG, TRAIN_CONFIG, WEIGHTS, find_saved_policy, read_policy_config
from jaxreflow.policy.vlm import VLM_FOLDER
from jaxreflow.publish.model_card import CardSource, model_card, pictures
from jaxreflow.publish.public_names import public_settings, source_of, without_absolute_paths
from jaxreflow.run.checkpoints import newest_policy
from jaxreflow.run.config import RunConfig
from jaxreflow.run.directory import recorded_settings
from jaxreflow.support import hub
from jaxreflow.support.hub import HubError
from jaxreflow.support.new_folder import new_directory
from jaxreflow.support.processes import is_first
from jaxreflow.support.storage import AnyPath, as_path, list_files, local_copy
from jaxreflow.support.strict_json import parse_json

CARD = "README.md"
_LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
_NAMED = (CONFIG, WEIGHTS, TRAIN_CONFIG, REPORT_JSON, REPORT_HTML, CARD, *_LICENSES)
_PROCESSORS = ("policy_preprocessor", "policy_postprocessor")
_VLM_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")
# What a vocabulary holds are tokens, whatever they look like.
_VOCABULARY = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})

Files = Mapping[str, Path | bytes]
"""By its name in the repository, a file: a path is uploaded as it lies there, bytes were made or changed here."""


def belongs(name: str) -> bool:
    """Whether a file of a policy's folder, by its relative name, is published: no training state, no backups, nothing unknown."""
    path = Path(name)
    if path.name.startswith("."):
        return False
    folder = path.parent.as_posix()
    if folder == ".":
        return name in _NAMED or (name.startswith(_PROCESSORS) and path.suffix in (".json", ".safetensors"))
    return (folder == VLM_FOLDER and path.suffix in _VLM_SUFFIXES) or (folder == "images" and path.suffix == ".png")


def open_folder(path: str | AnyPath) -> Path:
    """The folder of a policy, copied to this machine if it is in an object store.

    Raises:
        PublishError, CheckpointError: there is no such folder, or no policy in it.
    """
    directory = local_copy(path, belongs)
    if not directory.is_dir():
        raise PublishError(f"{path}: no such folder; expected a policy in LeRobot's layout")
    return find_saved_policy(directory)


def prepare(directory: Path, repo: str, *, license: str | None = None) -> Files:
    """The files to publish. A README.md in the folder is taken as it is. Without one, the card is made from the folder's files.

    Raises:
        CheckpointError, ConfigError: a file is damaged.
        PublishError: the policy would act on no other machine, or the repository's name is none.
    """
    try:
        hub.check_name(repo)
    except HubError as error:
        raise PublishError(str(error)) from error
    names = [name for name in list_files(directory) if belongs(name)]
    files: dict[str, Path | bytes] = {name: directory / name for name in names}
    _check_vlm(directory, has_vlm=f"{VLM_FOLDER}/config.json" in files)
    settings = recorded_settings(directory)
    raw = _read_object(directory / TRAIN_CONFIG) if TRAIN_CONFIG in files else {}
    source = source_of(raw) if settings is not None else {}
    start = _start(settings, source)
    report = _report(directory / REPORT_JSON) if REPORT_JSON in files else None
    for name in names:
        if (changed := _public_content(name, directory / name)) is not None:
            files[name] = changed
    if CARD in files:
        return files
    update = raw.get("update")
    card = CardSource(
        repo=repo,
        policy=read_policy_config(directory),
        own_vlm=f"{VLM_FOLDER}/config.json" in files,
        settings=_with_public_dataset(settings),
        update=update if isinstance(update, int) else None,
        start=start,
        start_sha256=source.get("sha256"),
        report=report,
        license=license,
    )
    return {**files, **(pictures(report) if report else {}), CARD: model_card(card).encode()}


def _check_vlm(directory: Path, has_vlm: bool) -> None:
    name = read_policy_config(directory).vlm_model_name
    if is_folder(name) and not has_vlm:
        raise PublishError(
            f"{directory / CONFIG}: `vlm_model_name` is {name}, a folder of this machine; "
            f"put the VLM's hub name there, or copy its config and tokenizer to {directory / VLM_FOLDER}"
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"found a {type(fields).__name__}")
    except (OSError, ValueError) as error:
        raise PublishError(f"{path}: expected a JSON object ({error}); repair or remove the file") from error
    return fields


def _start(settings: RunConfig | None, source: Mapping[str, Any]) -> PolicyName | None:
    """What the policy that the run started from is called."""
    path = settings.source.path if settings else None
    return name_policy(path, source.get("path")) if path else None


def _with_public_dataset(settings: RunConfig | None) -> RunConfig | None:
    if settings is None or not settings.dataset.root:
        return settings
    dataset = dataclasses.replace(settings.dataset, root=folder_name(settings.dataset.root))
    return dataclasses.replace(settings, dataset=dataset)


def _report(path: Path) -> Report:
    """The report, which names policies; those of older versions hold the paths that were given."""
    report = read_report(path)
    for name in filter(None, (report.about.teacher, report.about.student)):
        if name != folder_name(name) and not hub.HUB_NAME.fullmatch(name):
            raise PublishError(
                f"{path}: expected names of policies, found the path {name}; write the report anew with "
                f"`python -m jaxreflow.evaluate`, or remove {REPORT_JSON} and {REPORT_HTML}"
            )
    return report


def _public_content(name: str, path: Path) -> bytes | None:
    """What is published in a file's place; None: the file itself, which says nothing of this machine."""
    if path.suffix != ".json" or name == REPORT_JSON or path.name in _VOCABULARY:
        return None
    fields = _read_object(path)
    public = public_settings(fields) if name == TRAIN_CONFIG else without_absolute_paths(fields)
    return None if public == fields else json.dumps(public, indent=4).encode()


def write(files: Files, out: Path) -> None:
    """Writes what would be published into a new folder; CheckpointError if it is there already."""
    with new_directory(out) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)


def publish(
    directory: Path,
    repo: str,
    *,
    private: bool = False,
    branch: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Publishes a policy's folder in one commit and returns its address. Files of an older policy there are removed.

    Raises:
        CheckpointError, ConfigError: a file is damaged.
        PublishError: the policy would act on no other machine, or the hub refuses.
    """
    files = prepare(directory, repo, license=license)
    try:
        hub.check_may_write(repo, private=private)
        return hub.commit(
            repo,
            files,
            message=message or f"Upload {repo.split('/')[1]}",
            private=private,
            branch=branch,
            replaced=lambda name: belongs(name) and name not in _LICENSES,
        )
    except HubError as error:
        raise PublishError(str(error)) from error


def check_push(config: RunConfig) -> None:
    """PublishError if the run's policy could not be pushed at its end, so that a day's work does not end with a wrong token."""
    if not config.push_to_hub or not is_first():
        return
    try:
        hub.check_may_write(config.push_to_hub, private=config.private)
    except HubError as error:
        raise PublishError(
            f"--push-to-hub {error}; nothing was begun: mend it, or leave the flag out and push later with `python -m convert push`"
        ) from error


def push_run(config: RunConfig) -> str:
    """Publishes a finished run's policy; PublishError, with the command that does it again, if that fails."""
    assert config.push_to_hub
    policy = newest_policy(as_path(str(config.output_dir)) / "checkpoints")
    try:
        return publish(open_folder(policy), config.push_to_hub, private=config.private)
    except JaxReflowError as error:
        again = ["python", "-m", "convert", "push", str(policy), config.push_to_hub, *["--private"] * config.private]
        raise PublishError(
            f"the run is complete, but its policy was not pushed: {error}; when that is mended: {shlex.join(again)}"
        ) from error
