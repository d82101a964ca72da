"""Memory that is not enough and platforms that are not there, as one sentence with a remedy that the command has."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from jaxreflow.errors import DeviceError
from jaxreflow.run import setup
from jaxreflow.support.jax_errors import explained

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "tests" / "assets"
REFLOW = ["reflow", "--teacher.path", str(ASSETS / "teacher"), "--dataset.root", str(ASSETS / "metaworld_mini")]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 17591499344 bytes.", ": 16.38 GiB were asked for"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.50GiB.", ": 2.50 GiB were asked for"),
        ("RESOURCE_EXHAUSTED: Attempting to allocate 512.00M. That was not possible.", ": 0.50 GiB were asked for"),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.", ""),
    ],
)
def test_memory_of_a_device(text: str, asked: str) -> None:
    with pytest.raises(DeviceError) as found, explained("lower this"):
        raise jax.errors.JaxRuntimeError(text)
    assert str(found.value) == f"out of memory{asked}; lower this"


def test_memory_of_the_host() -> None:
    with (
        pytest.raises(DeviceError, match=r"out of memory: 4096\.00 GiB were asked for; lower this"),
        explained("lower this"),
    ):
        raise np._core._exceptions._ArrayMemoryError((1 << 39,), np.dtype(np.float64))


def test_other_errors_stay_what_they_are() -> None:
    for error in (jax.errors.JaxRuntimeError("INTERNAL: something"), RuntimeError("mine"), AssertionError("mine")):
        with pytest.raises(type(error)) as found, explained("lower this"):
            raise error
        assert found.value is error


@pytest.mark.slow
def test_an_update_without_memory_names_options_of_train_and_leaves_the_folder_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--dataset.episodes",
        "0",
        "1",
        "2",
        "3",
        "--no-report",
        "--eval-batches",
        "1",
    ]
    argv = [*REFLOW, *flags, "--output-dir", str(tmp_path / "run")]
    monkeypatch.setattr(setup, "use_compilation_cache", lambda: None)

    def fail(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17591499344 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", fail)
        assert train.main(argv) == 1
    found = capsys.readouterr().err
    assert "error: out of memory: 16.38 GiB were asked for; lower --batch-size" in found
    assert {"--accumulate", "--dry-run"} <= set(found.replace(";", " ").split())
    assert "Traceback" not in found
    assert (tmp_path / "run" / "train_config.json").is_file()
    assert train.main([*argv, "--accumulate", "2"]) == 0
    assert "ended before its first checkpoint; a new one takes its place" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


@pytest.mark.parametrize(
    "command",
    ["train.py", *(pytest.param(name, marks=pytest.mark.slow) for name in ("jaxreflow.serve", "jaxreflow.evaluate"))],
)
def test_a_platform_that_is_not_there(command: str, tmp_path: Path) -> None:
    arguments = {
        "train.py": ["train.py", *REFLOW, "--dry-run"],
        "jaxreflow.serve": ["-m", "jaxreflow.serve", "--policy", str(ASSETS / "teacher"), "--port", "0"],
        "jaxreflow.evaluate": [
            "-m", "jaxreflow.evaluate", "--teacher", str(ASSETS / "teacher"), "--dataset.root",
            str(ASSETS / "metaworld_mini"), "--out", str(tmp_path / "report"),
        ],
    }  # fmt: skip
    env = {**os.environ, "JAX_PLATFORMS": "cuda"}
    run = subprocess.run(
        [sys.executable, *arguments[command]], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "JAX_PLATFORMS=cuda: expected a platform that JAX has here, found cpu; leave it out" in run.stderr
    assert "Traceback" not in run.stderr


def test_commands_without_jax_do_not_load_it() -> None:
    code = "import sys, jaxreflow.support.command_line, jaxreflow.client; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
