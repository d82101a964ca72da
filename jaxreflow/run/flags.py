"""From `train.py NAME` and its options to a run's settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxreflow.errors import ConfigError
from jaxreflow.run.config import FinetuneConfig, ReflowConfig, RunConfig
from jaxreflow.run.directory import CONFIG_FILE, check_resumable, read_config
from jaxreflow.run.lerobot_flags import LEROBOT
from jaxreflow.support.command_line import Flag, Translation, option_names, parse, usage_error
from jaxreflow.support.option import boxes
from jaxreflow.support.storage import as_path

# Titles of the boxes of `--help`, in order; every field names its own (`option`), or is one. The rest stands at the top.
TITLES = (
    *("teacher", "student", "policy", "dataset", "data", "update", "optimizer", "lora"),
    *("device", "record", "hub", "comparison", "experimental"),
)
# The two kinds of runs, and what each does.
KINDS = {
    "reflow": (ReflowConfig, "distils a teacher"),
    "finetune": (FinetuneConfig, "trains on recorded actions"),
}


def load_config(path: Path) -> ModuleType:
    """The module configs/NAME.py, by its file: the folder is no package of an installed jaxreflow."""
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_settings(path: Path, args: Sequence[str]) -> RunConfig:
    """The settings of a config file under the options; a resumed run's own settings under the options.

    Ends the process after `--help` and, with exit code 2, where an option is wrong or missing.
    """
    module, prog = load_config(path), f"train.py {path.stem}"

    def under(default: RunConfig) -> RunConfig:
        about = _about(module, path.stem)
        cls = type(default)
        sections = boxes(cls, TITLES)
        others = _translation(cls, prog)
        return parse(cls, args, prog=prog, about=about, default=default, others=others, sections=sections)

    config = under(module.config)
    if not config.output_dir and (config.resume or not config.dry_run):
        usage_error(prog, "--output-dir is missing: the directory in which the run is to be kept")
    if config.resume:
        saved = read_config(type(config), as_path(str(config.output_dir)) / CONFIG_FILE)
        config = under(saved)
        check_resumable(saved, config)
    missing = config.missing()
    if missing:
        usage_error(prog, missing)
    return config


def _translation(cls: type[RunConfig], prog: str) -> Translation:
    """LeRobot's options as this run's; ConfigError for an option of the other kind of runs."""
    foreign = {name: option_names(kind) - option_names(cls) for name, (kind, _) in KINDS.items()}

    def translate(flags: Sequence[Flag], options: Mapping[str, Any]) -> list[Flag]:
        ours = LEROBOT.translate(flags, options)
        for other, names in foreign.items():
            if found := ", ".join(flag.name for flag in ours if flag.name in names):
                raise ConfigError(
                    f"{found}: `{prog}` has no such option; `train.py {other}` has, which {KINDS[other][1]}"
                )
        return ours

    return Translation(LEROBOT.names, translate)


def _about(module: ModuleType, name: str) -> str:
    """The config's first paragraph and its commands; the rest gives reasons for its settings."""
    sentence, commands = (module.__doc__ or "").strip().split("\n\n")[:2]
    return f"{sentence}\n\n{commands}\n\nWhy its settings are what they are, and what to expect: configs/{name}.py."
