"""The same run on 1, 2, 4 and 8 devices, and split over some of them: what differs is where things are, not what comes out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxreflow.sharding import fsdp_axis, parameter_spec

# Devices and how many of them the state is split over; the first is the reference.
MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 4), (8, 8))
STEPS = 20
# The loss of two batches, noise pairs and real ones.
MIXED = ((1, 1), (8, 1))

PROGRAM = """
import json, sys
import jax
from jaxreflow import flow
from jaxreflow.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxreflow.sharding import gather, make_mesh, replicate, shard_batch, sharded_copy
from jaxreflow.training import init_state, make_draw, make_train_step
from tests import test_training as tests

settings = OptimizerConfig(lr=1e-3, warmup_steps=0)
optimizer, schedule = make_optimizer(settings, 100), make_schedule(settings, 100)
draw = make_draw(flow.TIME_LAWS["half-at-one"], 2, tests.CONFIG)

def run(name, steps, devices, fsdp):
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    student, frozen, teacher = tests.weights()
    step = make_train_step(tests.LOSSES[name], optimizer, schedule, draw, mesh, ema_decay=0.999)
    state = sharded_copy(init_state(student, optimizer, ema=True), mesh)
    frozen, teacher, key = replicate((frozen, teacher, jax.random.key(3)), mesh)
    losses = []
    batch = shard_batch(tests.make_batch(8, tests.CONFIG), mesh)
    for _ in range(steps):
        state, metrics = step(state, frozen, teacher, batch, key)
        losses.append(metrics["loss"])
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    whole = gather(state.averaged, mesh)
    norms = [float(abs(x).sum()) for x in jax.tree.leaves(jax.device_get(whole))]
    return {"losses": [float(x) for x in losses], "held": held / total, "norms": norms}

print(json.dumps([run(*arguments) for arguments in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    """Losses, share of the state that a device holds, and norms of the moving average, for `MESHES`, then `MIXED`."""
    # Without LLVM's passes: eight devices share few cores here, and compiling is all that takes time.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": ""}
    arguments = [("reflow", STEPS, *mesh) for mesh in MESHES] + [("mixed", 1, *mesh) for mesh in MIXED]
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("i", range(1, len(MESHES)), ids=["x".join(map(str, mesh)) for mesh in MESHES[1:]])
def test_losses_and_parameters_are_those_of_one_device(runs: list[dict], i: int) -> None:
    assert runs[0]["losses"][-1] < 0.5 * runs[0]["losses"][0]
    np.testing.assert_allclose(runs[i]["losses"], runs[0]["losses"], rtol=1e-5)
    np.testing.assert_allclose(runs[i]["norms"], runs[0]["norms"], rtol=1e-5)


def test_the_mixed_loss_is_that_of_one_device(runs: list[dict]) -> None:
    one, eight = runs[-2:]
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(eight["norms"], one["norms"], rtol=1e-5)


def test_a_device_holds_its_part_of_the_state_only(runs: list[dict]) -> None:
    held = {mesh: run["held"] for mesh, run in zip(MESHES, runs, strict=False)}
    assert held[8, 1] == 1
    # Give or take the few that do not divide.
    assert held[8, 4] == pytest.approx(1 / 4, rel=0.05)
    assert held[8, 8] == pytest.approx(1 / 8, rel=0.2)


def test_parameters_are_split_along_the_largest_axis_that_divides() -> None:
    shapes = [(3, 8), (16, 8), (8, 16), (30, 6), (7,), ()]
    assert [fsdp_axis(shape, 4) for shape in shapes] == [1, 0, 1, None, None, None]
    assert [fsdp_axis(shape, 1) for shape in shapes] == [None] * len(shapes)
    assert parameter_spec((4, 3, 8), 4) == PartitionSpec(None, None, "fsdp")
    assert parameter_spec((3, 5), 4) == PartitionSpec()
