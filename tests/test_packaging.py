"""The wheel: one package and its commands, which run from it and from an editable install alike."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = """
from jaxreflow.cli import train
from jaxreflow.cli.convert.__main__ import main
print(train.__file__)
print(sorted(path.name for path in train.CONFIGS.glob("*.py")))
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def run(place: Path, cwd: Path) -> str:
    """The output of `COMMANDS` with the package at `place`, away from the repository."""
    environment = {**os.environ, "PYTHONPATH": str(place), "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        scripts = file.read(entry_points).decode()
    assert {name.split("/")[0] for name in names} == {"jaxreflow", entry_points.split("/")[0]}
    for name in ("train.py", "configs/finetune.py", "configs/reflow.py", "convert/__main__.py"):
        assert f"jaxreflow/cli/{name}" in names
    for name in (
        "evaluate/report/page.html",
        "evaluate/report/page.css",
        "publish/card_usage.md",
        "publish/card_load.txt",
    ):
        assert f"jaxreflow/{name}" in names
    assert not [name for name in names if "tests" in name or name.endswith((".safetensors", ".mp4", ".pyc"))]
    assert "jaxreflow-train = jaxreflow.cli.train:main" in scripts
    assert "jaxreflow-convert = jaxreflow.cli.convert.__main__:main" in scripts


@pytest.mark.slow
def test_commands_run_from_the_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    output = run(tmp_path / "site", tmp_path)
    assert str(tmp_path / "site" / "jaxreflow" / "cli" / "train.py") in output
    assert "reflow.py" in output
    assert "from-lerobot" in output


def test_commands_run_from_a_working_tree(tmp_path):
    """As in an editable install, which puts the repository on the path."""
    output = run(ROOT, tmp_path)
    assert str(ROOT / "train.py") in output
    assert "reflow.py" in output
    assert "from-lerobot" in output
