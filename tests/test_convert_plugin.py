"""A folder for LeRobot's plugin: the same policy under another type, without a second copy of the weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main
from jaxreflow import SmolVLAPolicy
from jaxreflow.policy.saved import CONFIG, WEIGHTS
from tests.checkpoint_edits import contents, copy_checkpoint
from tests.test_policy import golden_observation


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return copy_checkpoint("cross", tmp_path / "policy")


def test_the_folder_holds_the_same_policy(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(source)
    assert main(["to-plugin", str(source), str(tmp_path / "plugin")]) == 0
    assert f"lerobot-eval --policy.path={tmp_path / 'plugin'}" in capsys.readouterr().out
    assert contents(source) == before
    made = contents(tmp_path / "plugin")
    assert {name: data for name, data in made.items() if name != CONFIG} == {
        name: data for name, data in before.items() if name != CONFIG
    }
    assert json.loads(made[CONFIG]) == {**json.loads(before[CONFIG]), "type": "smolvla_jax"}
    assert (tmp_path / "plugin" / WEIGHTS).samefile(source / WEIGHTS)
    assert not (tmp_path / "plugin" / "policy_preprocessor.json").samefile(source / "policy_preprocessor.json")


def test_it_is_read_and_becomes_lerobots_again(source: Path, tmp_path: Path) -> None:
    main(["to-plugin", str(source), str(tmp_path / "plugin")])
    fields = json.loads((tmp_path / "plugin" / CONFIG).read_text())
    (tmp_path / "plugin" / CONFIG).write_text(json.dumps({**fields, "jax_dtype": "bfloat16"}))
    observation, golden = golden_observation("cross")
    chunks = [
        SmolVLAPolicy.from_pretrained(folder).predict_action_chunk(observation, golden["inputs/noise"][0], 1)
        for folder in (source, tmp_path / "plugin")
    ]
    np.testing.assert_array_equal(*chunks)
    SmolVLAPolicy.from_pretrained(tmp_path / "plugin").save_pretrained(tmp_path / "back")
    back = json.loads((tmp_path / "back" / CONFIG).read_text())
    assert back["type"] == "smolvla"
    assert "jax_dtype" not in back


def test_a_policy_without_weights_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / WEIGHTS).unlink()
    assert main(["to-plugin", str(source), str(tmp_path / "plugin")]) == 1
    assert f"{source / WEIGHTS}: no such file" in capsys.readouterr().err
    assert not (tmp_path / "plugin").exists()


def test_weights_are_copied_where_links_cannot_be_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    assert main(["to-plugin", str(source), str(tmp_path / "plugin")]) == 0
    data = (source / WEIGHTS).read_bytes()
    shutil.rmtree(source)
    assert (tmp_path / "plugin" / WEIGHTS).read_bytes() == data
