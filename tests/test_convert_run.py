"""A training run's raw or averaged weights become a policy folder; what the run did not train comes from its start."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from jaxreflow.model.params import split_params, trainable_in_reflow
from jaxreflow.model.types import Params
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy, save_pretrained
from jaxreflow.run.checkpoints import CheckpointStore
from jaxreflow.training.step import TrainState

GOLDEN = Path(__file__).parent / "goldens" / "cross"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "policy"
    shutil.copytree(GOLDEN, out, ignore=shutil.ignore_patterns("golden.npz"))
    return out


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of updates 1 (without an average) and 2; the average is exported, with `num_steps` 1."""
    directory = tmp_path_factory.mktemp("run")
    checkpoint = load_saved_policy(teacher)
    start, _ = split_params(checkpoint.load_params(), trainable_in_reflow)
    source = {"path": str(checkpoint.directory), "sha256": checkpoint.tensors.sha256}
    with contextlib.closing(CheckpointStore(directory / "checkpoints")) as store:
        for step in (1, 2):
            state = TrainState(
                jax.numpy.int32(step), shift(start, step), (), shift(start, -step) if step == 2 else None
            )
            meta = {"source": source, "step": step, "config": {"vlm": None, "export": "ema"}}
            store.save(step, state, meta, lambda out, state=state: export(out, checkpoint, state))
            store.wait()
    return directory


def shift(params: Params, by: float) -> Params:
    return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf) + by, params)


def export(out: Path, checkpoint: SavedPolicy, state: TrainState) -> None:
    save_pretrained(out, checkpoint, state.averaged, num_steps=1, train_config={"export": "ema", "steps": 2})


def differences(teacher: Path, out: Path) -> dict[Any, np.ndarray]:
    before, after = (flatten_dict(load_saved_policy(path).load_params()) for path in (teacher, out))
    return {path: after[path] - before[path] for path in before}


@pytest.mark.parametrize(("flags", "shifted"), [([], 2.0), (["--ema"], -2.0), (["--step", "1"], 1.0)])
def test_weights_of_a_step(run, teacher, tmp_path, flags, shifted):
    assert main(["to-lerobot", str(run), str(tmp_path / "out"), *flags]) == 0
    for path, difference in differences(teacher, tmp_path / "out").items():
        expected = shifted if trainable_in_reflow(path) else 0.0
        np.testing.assert_allclose(difference, expected, atol=1e-5, err_msg="/".join(path))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_steps"] == 1
    settings = json.loads((tmp_path / "out" / "train_config.json").read_text())
    assert settings == {"export": "ema" if "--ema" in flags else "raw", "steps": 2}
    assert (tmp_path / "out" / "vlm" / "tokenizer.json").is_file()


def test_the_average_is_what_the_run_exported(run, tmp_path):
    assert main(["to-lerobot", str(run), str(tmp_path / "out"), "--ema"]) == 0
    exported = run / "checkpoints" / "last" / "pretrained_model"
    for path in exported.rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(exported)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step", "3"], "no checkpoint of step 3; found the steps 1, 2"),
        (["--step", "1", "--ema"], "keeps no moving average: leave --ema out"),
    ],
)
def test_what_the_run_does_not_hold_is_named(run, tmp_path, capsys, flags, message):
    assert main(["to-lerobot", str(run), str(tmp_path / "out"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_start_is_checked_and_may_have_moved(run, teacher, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    teacher.rename(tmp_path / "away")
    try:
        assert main(["to-lerobot", str(run), str(tmp_path / "out")]) == 1
        assert "give their folder by --teacher DIR" in capsys.readouterr().err
        assert main(["to-lerobot", str(run), str(tmp_path / "out"), "--teacher", str(moved)]) == 0
    finally:
        (tmp_path / "away").rename(teacher)
    data = bytearray((moved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "model.safetensors").write_bytes(data)
    assert main(["to-lerobot", str(run), str(tmp_path / "other"), "--teacher", str(moved)]) == 1
    assert "whose frozen weights it shares" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_frozen_weights_come_from_the_start(run, teacher, tmp_path):
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged, symlinks=True)
    weights = damaged / "checkpoints" / "last" / "pretrained_model" / "model.safetensors"
    tensors = load_file(weights)
    save_file({key: np.zeros_like(tensor) for key, tensor in tensors.items()}, weights)
    assert main(["to-lerobot", str(damaged), str(tmp_path / "out")]) == 0
    for path, difference in differences(teacher, tmp_path / "out").items():
        assert trainable_in_reflow(path) or not difference.any(), "/".join(path)


def test_a_run_without_checkpoints(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert main(["to-lerobot", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no complete checkpoint; found the steps none" in capsys.readouterr().err
