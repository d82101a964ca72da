"""Runs that are killed 20 times at random moments, and continued: they end with the same bits. `make slow`

`make test` has a few kills, at random and within checkpoints (tests/test_processes.py).
"""

import time
from pathlib import Path

import pytest

from tests.short_run import assert_same_state, finish, flags, kill_at_random, make_teacher
from tests.watched_run import start

STEPS, KILLS = 30, 5


def arguments(teacher: Path, run: Path) -> list[str]:
    """A run that saves after every update, so that many kills fall into a checkpoint."""
    return flags(teacher, run, "--steps", str(STEPS), "--save-every", "1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory)


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run that nobody kills, and for how many seconds it trains once its programs are compiled."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("compiles", "run"):
        process = start(folder / f"{name}.jsonl", arguments(teacher, folder / name))
        process.wait_for_an_update()
        began = time.monotonic()
        assert process.wait() == 0, process.error
    return folder / "run", time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (2, 3))])
def test_five_random_kills(teacher: Path, whole: tuple[Path, float], tmp_path: Path, seed: int) -> None:
    run, seconds = whole
    argv = arguments(teacher, tmp_path / "run")
    left = kill_at_random(argv, tmp_path / "run", kills=KILLS, seconds=seconds / (2 * KILLS), seed=seed)
    print(f"kills left the checkpoints {left}")
    finish(argv, tmp_path / "run")
    assert_same_state(tmp_path / "run", run)
