"""A short `train.py reflow` of a tiny policy, what is said to continue it, and whether two of them end with the same bits."""

import random
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxreflow.data.lerobot import load_dataset
from jaxreflow.run.checkpoints import STATE_DIR, last_step
from jaxreflow.run.config import PolicySource
from jaxreflow.run.directory import CONFIG_FILE
from jaxreflow.run.new_policy import create_policy
from tests.tiny_policy import DATASET, make_vlm
from tests.watched_run import start

STEPS, BATCH = 6, 8


def make_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy with random weights."""
    out, vlm = tmp_path_factory.mktemp("teacher") / "policy", make_vlm(tmp_path_factory.mktemp("vlm"))
    source = PolicySource(
        vlm=str(vlm), vlm_model_name="tiny/vlm", num_vlm_layers=2, chunk_size=3, n_action_steps=3,
        resize_imgs_with_padding=(32, 32),
    )  # fmt: skip
    create_policy(out, source, load_dataset(DATASET), rename_map={}, seed=0)
    return out


def flags(teacher: Path, run: Path, *more: str) -> list[str]:
    """The run from its start, saved after every second update."""
    return [
        *("reflow", "--teacher.path", str(teacher), "--dataset.root", str(DATASET), "--output-dir", str(run)),
        *("--steps", str(STEPS), "--batch-size", str(BATCH), "--noises", "2", "--teacher-steps", "2", "--no-report"),
        *("--optimizer.lr", "1e-3", "--log-every", "1", "--save-every", "2", "--dataset.holdout", "0", *more),
    ]


def resume_or_begin(argv: list[str], run: Path) -> list[str]:
    """What the user says again; before the run has claimed its folder there is nothing to resume."""
    return ["reflow", "--output-dir", str(run), "--resume"] if (run / CONFIG_FILE).exists() else argv


def finish(argv: list[str], run: Path) -> None:
    """Continues the run to its end."""
    process = start(run.parent / "last.jsonl", resume_or_begin(argv, run))
    assert process.wait() == 0, process.error


def kill_at_random(argv: list[str], run: Path, *, kills: int, seconds: float, seed: int) -> list[int | None]:
    """Kills the run so many times within `seconds` of its first update; the steps of the last checkpoints that the kills left."""
    moments, left = random.Random(seed), []
    for kill in range(kills):
        process = start(run.parent / f"random{kill}.jsonl", resume_or_begin(argv, run))
        process.wait_for_an_update()
        time.sleep(moments.uniform(0, seconds))
        process.process.kill()
        assert process.wait() == -9, "the run was over"
        left.append(last_step(run / "checkpoints"))
    return left


def assert_same_state(found: Path, expected: Path) -> None:
    """The last checkpoints of two runs are equal to the bit: the exported policy and the whole training state."""
    policy = Path("checkpoints") / "last" / "pretrained_model" / "model.safetensors"
    assert (found / policy).read_bytes() == (expected / policy).read_bytes()
    for one, other in zip(_leaves(found), _leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(run: Path) -> list[np.ndarray]:
    state = ocp.StandardCheckpointer().restore((run / "checkpoints" / "last" / STATE_DIR / "state").resolve())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
