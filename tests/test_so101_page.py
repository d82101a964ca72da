"""Every command of jaxreflow's on docs/so101.md is one that its program takes; nothing is run."""

from typing import Any

import pytest

import train
from convert import __main__ as convert
from jaxreflow.data import features
from jaxreflow.evaluate.options import EvaluateConfig
from jaxreflow.run import flags
from jaxreflow.run.config import ReflowConfig
from jaxreflow.support.command_line import parse
from tests.so101_page import commands


def read_train(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    name, *options = words
    # A resumed run's settings lie in its folder, which is not there.
    monkeypatch.setattr(flags, "read_config", lambda cls, _: cls())
    monkeypatch.setattr(ReflowConfig, "missing", lambda _: None)
    return flags.read_settings(train.CONFIGS / f"{name}.py", options)


def test_training_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = commands("python train.py")
    assert len(typed) == 4
    for words in typed:
        assert isinstance(read_train(words[2:], monkeypatch), ReflowConfig)


def test_commands_on_data_and_reports() -> None:
    for prefix, settings in (
        ("python -m jaxreflow.data.features", features.FeaturesConfig),
        ("python -m jaxreflow.evaluate", EvaluateConfig),
    ):
        (words,) = commands(prefix)
        assert isinstance(parse(settings, words[3:], prog=prefix, about="-"), settings)


def test_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(convert, "examine", lambda *given, **_: asked.append(given) or [])
    monkeypatch.setattr(convert.plugin, "to_plugin", lambda *given, **_: asked.append(given))
    for words in commands("python -m convert"):
        assert convert.main(words[3:]) == 0
    assert [list(map(str, given)) for given in asked] == [
        ["TEACHER"],
        ["RUN/checkpoints/last/pretrained_model", "OUT"],
    ]


def test_no_other_command_of_ours_is_left_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(commands("python")) == 8
    with pytest.raises(SystemExit, match="2"):
        read_train(["reflow", "--for-memroy", "24"], monkeypatch)
