"""A policy's folder for `lerobot_policy_jaxreflow`: the same files, but a config.json of the type that the plugin registers."""

from __future__ import annotations

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

from jaxreflow.policy.config import PLUGIN_TYPE, PolicyConfig
from jaxreflow.policy.folder import CONFIG, HUB_FILES, find_saved_policy
from jaxreflow.policy.saved import policy_tensors, read_config_fields
from jaxreflow.policy.vlm import VLM_FOLDER
from jaxreflow.support.new_folder import new_directory, write_json


def to_plugin(source: str | Path, out: Path, *, revision: str | None = None) -> None:
    """Writes a new folder; weights are linked where the file system can, and copied elsewhere.

    Raises:
        CheckpointError: the source is no policy, its weights are missing, or `out` cannot be written.
        ConfigError: its config cannot be honoured.
    """
    directory = find_saved_policy(source, revision)
    fields = read_config_fields(directory / CONFIG)
    PolicyConfig.from_json(fields)
    policy_tensors(directory)
    with new_directory(out) as folder:
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.name != CONFIG and any(fnmatch(path.name, pattern) for pattern in HUB_FILES):
                _link_or_copy(path, folder / path.name)
        if (directory / VLM_FOLDER).is_dir():
            shutil.copytree(directory / VLM_FOLDER, folder / VLM_FOLDER, copy_function=_link_or_copy)
        write_json(folder / CONFIG, {**fields, "type": PLUGIN_TYPE})


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """Links tensors only: a text file that is edited in one folder must not change in the other."""
    if Path(source).suffix == ".safetensors":
        try:
            os.link(Path(source).resolve(), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
