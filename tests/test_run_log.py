"""What a run leaves in its folder to be looked at: its cameras, where it comes from, a trace; and its memory."""

import dataclasses
import json
import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow.errors import ConfigError, TrainingError
from jaxreflow.model.types import Batch
from jaxreflow.policy.architecture import network_of
from jaxreflow.run.config import DatasetConfig, FinetuneConfig, RunConfig
from jaxreflow.run.config_groups import parse_window
from jaxreflow.run.record import profiling
from jaxreflow.run.record.cameras import EXAMPLES, camera_views, to_png, write_views
from jaxreflow.run.record.metrics import memory
from jaxreflow.run.record.profiling import ProfileWindow
from jaxreflow.run.record.provenance import provenance, source_commit, write_provenance
from jaxreflow.training.augmentation import ImageTransformsConfig
from jaxreflow.training.step import TrainState
from tests.tiny import CAMERA, VLM, WRIST, tiny_observation, tiny_policy
from tests.tiny_policy import make_batch

CONFIG = network_of(tiny_policy(), VLM)
TOKEN = "hf_secretSECRETsecret0123456789"


def test_views_are_what_the_network_gets() -> None:
    """Four images to a row, resized and padded on top; those that have the size already to the bit."""
    images = tiny_observation(EXAMPLES + 3).images
    views = camera_views(images, ImageTransformsConfig(), config=CONFIG)
    assert {key: view.shape for key, view in views.items()} == {CAMERA: (64, 128, 3), WRIST: (64, 128, 3)}
    np.testing.assert_array_equal(views[WRIST][:32, 32:64], images[WRIST][1])
    np.testing.assert_array_equal(views[WRIST][32:, 96:], images[WRIST][7])
    np.testing.assert_array_equal(views[CAMERA][8:32, :32], images[CAMERA][0])
    assert not views[CAMERA][:8].any()
    floats = {CAMERA: images[CAMERA][:5].astype(np.float32) / 255}
    few = camera_views(floats, ImageTransformsConfig(), config=CONFIG)[CAMERA]
    np.testing.assert_array_equal(few[:, :32], views[CAMERA][:, :32])
    assert not few[32:, 32:].any()
    assert camera_views({}, ImageTransformsConfig(), config=CONFIG) == {}
    changed = camera_views(floats, ImageTransformsConfig(enable=True), config=CONFIG)[CAMERA]
    assert changed.shape == few.shape
    assert not np.array_equal(changed, few)


def test_views_stay_in_their_folder(tmp_path: Path) -> None:
    image = np.full((2, 3, 3), 7, np.uint8)
    write_views({"../../out/of it": image}, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")] == [
        "cameras/.._.._out_of_it.png"
    ]
    assert (tmp_path / "cameras" / ".._.._out_of_it.png").read_bytes() == to_png(image)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cameras").write_text("in the way")
    with pytest.raises(TrainingError, match="cameras: cannot be written"):
        write_views({"top": image}, tmp_path / "run")


def test_provenance_holds_no_tokens_and_gets_a_line_with_every_start(tmp_path: Path) -> None:
    config = FinetuneConfig(
        dataset=DatasetConfig(root=f"gs://user:{TOKEN}@bucket/data"), rename_map={"a": f"Bearer {TOKEN}"}, steps=5
    )
    for start in (0, 3):
        write_provenance(tmp_path, provenance(config, start))
    text = (tmp_path / "provenance.jsonl").read_text()
    assert TOKEN not in text
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["start"], second["start"]) == (0, 3)
    assert first["settings"] == second["settings"]
    assert first["settings"]["dataset"]["root"] == "gs://***@bucket/data"
    assert first["settings"]["rename_map"] == {"a": "Bearer ***"}
    assert set(first["settings"]) == {field.name for field in dataclasses.fields(config)}


def test_the_commit_is_that_of_a_source_tree(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "site" / "jaxreflow"
    package.mkdir(parents=True)
    (tmp_path / "file").write_text("1")
    assert source_commit(tmp_path) is None
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert source_commit(tmp_path) == commit
    assert source_commit(package.parent) is None, "an installed package within another's repository"
    (tmp_path / "file").write_text("2")
    assert source_commit(tmp_path) == f"{commit}-dirty"


def counting(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    del batch
    return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}


def traced(monkeypatch: pytest.MonkeyPatch, window: ProfileWindow, updates: int) -> list[str]:
    """What the profiler is asked for, and which updates are made, in order."""
    events: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        events.append(f"update {int(state.step) + 1}")
        return counting(state, batch)

    state = TrainState(jnp.int32(window._done), {}, (), None)
    with window:
        update = window.watch(step)
        for _ in range(updates):
            state, _ = update(state, make_batch(2, CONFIG))
    return events


def test_the_window_holds_its_updates_and_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events = traced(monkeypatch, ProfileWindow(tmp_path, (3, 2), start=1), 4)
    assert events == ["update 2", "start", "update 3", "update 4", "stop", "update 5"]


def test_a_window_that_a_run_does_not_reach_the_end_of_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert traced(monkeypatch, ProfileWindow(tmp_path, (2, 5), start=0), 3)[-1] == "stop"
    with caplog.at_level(logging.INFO):
        assert traced(monkeypatch, ProfileWindow(tmp_path, (2, 5), start=2), 2) == ["update 3", "update 4"]
    assert "this run begins after update 2; nothing is traced" in caplog.text
    assert traced(monkeypatch, ProfileWindow(tmp_path, None, start=0), 1) == ["update 1"]
    monkeypatch.setattr(profiling, "is_first", lambda: False)
    assert traced(monkeypatch, ProfileWindow(tmp_path, (1, 1), start=0), 1) == ["update 1"]


def test_a_trace_that_fails_is_not_worth_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("only one profile at a time")

    window = ProfileWindow(tmp_path, (1, 1), start=0)
    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    with window:
        window.watch(counting)(TrainState(jnp.int32(0), {}, (), None), make_batch(2, CONFIG))
    assert "--profile: no trace (RuntimeError: only one profile at a time); the run goes on" in caplog.text


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("5", "expected START,N, such as 100,5, found '5'"),
        ("5,-1", "expected START,N, such as"),
        ("0,1", "at least one update of 1 to 10"),
        ("5,0", "at least one update of 1 to 10"),
        ("10,2", "found updates 10 to 11"),
    ],
)
def test_a_window_outside_of_the_run_is_refused(profile: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        RunConfig(steps=10, profile=profile)
    assert parse_window("9,2", 10) == (9, 2)


def test_memory_is_that_of_the_device_and_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(memory()) == {"host_memory"}
    assert 0.05 < memory()["host_memory"] < 100
    device = type("Device", (), {"memory_stats": lambda self: {"peak_bytes_in_use": 3 * 2**29, "bytes_in_use": 1}})()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory()["device_memory"] == 1.5
