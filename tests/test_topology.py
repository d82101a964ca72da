"""The same run on 1, 2, 4 and 8 devices, and split over some of them: what differs is where things are, not what comes out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxreflow.support.mesh import fsdp_axis, parameter_spec

# Devices and how many of them the state is split over; the first is the reference.
MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 4))
STEPS = 20
# Adapters on augmented images; the third number is of microbatches.
ADAPTED = ((1, 1, 1), (8, 4, 2))
# Where a state is saved and read one after the other.
EXCHANGES = ((8, 8), (8, 2), (4, 4), (1, 1), (2, 1), (8, 4))

PROGRAM = """
import json, sys
from pathlib import Path
import jax
import numpy as np
from jaxreflow.training import experimental
from jaxreflow.training.augmentation import ImageTransformsConfig
from jaxreflow.run.checkpoints import CheckpointStore
from jaxreflow.training.lora import LoraConfig, init_adapters
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxreflow.run.config import DatasetConfig, FinetuneConfig, OptimizerFlags
from jaxreflow.support.mesh import gather, make_mesh, replicate, shard_batch, sharded_copy
from jaxreflow.training.step import init_state, make_draw, make_train_step
from jaxreflow.run.programs import Weights, exported_params, make_update, trained_paths
from jaxreflow.model.params import split_params
from tests import test_training as tests
from tests import test_update as small

settings = OptimizerConfig(lr=1e-3, warmup_steps=0)
optimizer, schedule = make_optimizer(settings, 100), make_schedule(settings, 100)
draw = make_draw(experimental.TIME_LAWS["half-at-one"], 2, tests.CONFIG)

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

def adapted(devices, fsdp, accumulate):
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    transforms = DatasetConfig(image_transforms=ImageTransformsConfig(enable=True))
    flags = OptimizerFlags(lr=1e-2, warmup_steps=0)
    config = FinetuneConfig(accumulate=accumulate, ema_decay=0.9, dataset=transforms, lora=LoraConfig(rank=4), optimizer=flags)
    checkpoint = small.checkpoint()
    params = tests.perturb(jax.jit(tests.init_params, static_argnums=1)(jax.random.key(0), small.CONFIG))
    base, rest = replicate(split_params(params, trained_paths(config, checkpoint)), mesh)
    adapters = replicate(init_adapters(jax.random.key(1), config.lora, small.CONFIG), mesh)
    weights = Weights(adapters, rest, {}, base)
    state, update, _ = make_update(config, checkpoint, weights, mesh)
    batch, losses = shard_batch(tests.make_batch(16, small.CONFIG), mesh), []
    for _ in range(3):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.trainable))
    held /= sum(x.nbytes for x in jax.tree.leaves(state.trainable))
    exported = exported_params(config, state, weights, mesh)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(exported))
    changes = jax.tree.map(lambda new, old: float(abs(new - np.asarray(old)).sum()), jax.device_get(exported), base)
    return {"losses": losses, "held": held, "norms": jax.tree.leaves(changes)}

def exchange(plan):
    '''Numbers of leaves, and of those that differ, when a state was saved on each mesh and read on the next.'''
    folder, meshes = plan
    state = jax.tree.map(lambda x: x + np.arange(x.size, dtype=x.dtype).reshape(x.shape), fresh_state())
    store = CheckpointStore(Path(folder))
    for number, (devices, fsdp) in enumerate(meshes):
        mesh = make_mesh(fsdp, jax.devices()[:devices])
        nothing = sharded_copy(jax.tree.map(np.zeros_like, state), mesh)
        here = store.read_state(number - 1, nothing) if number else sharded_copy(state, mesh)
        store.save(number, here, {}, lambda out: out.mkdir(parents=True))
        store.wait()
    store.close()
    found, expected = jax.tree.leaves(here), jax.tree.leaves(state)
    return len(expected), sum(not np.array_equal(x, y) for x, y in zip(found, expected, strict=True))

def fresh_state():
    return jax.device_get(init_state(tests.weights()[0], optimizer, ema=True))

plan = json.loads(sys.argv[1])
parts = {"runs": lambda each: [run(*x) for x in each], "adapted": lambda each: [adapted(*x) for x in each], "exchange": exchange}
print(json.dumps({name: parts[name](what) for name, what in plan.items()}))
"""


def on_eight_devices(**plan: Any) -> dict:
    """What the program prints.

    `runs`: losses, share of the state that a device holds, norms of the moving average; `adapted`, for numbers of devices, of those
    that share a state, and of microbatches: losses, share of the adapters that a device holds, norms of what they change in the
    exported kernels; `exchange`: numbers of leaves, and of those that differ.
    """
    # Without LLVM's passes: eight devices share few cores here, and compiling is all that takes time.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", PROGRAM, json.dumps(plan)]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    exchange = [str(tmp_path_factory.mktemp("exchange") / "run"), EXCHANGES]
    return on_eight_devices(runs=[("reflow", STEPS, *mesh) for mesh in MESHES], exchange=exchange)


@pytest.fixture(scope="module")
def runs(results: dict) -> list[dict]:
    return results["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("i", range(1, len(MESHES)), ids=["x".join(map(str, mesh)) for mesh in MESHES[1:]])
def test_losses_and_parameters_are_those_of_one_device(runs: list[dict], i: int) -> None:
    assert runs[0]["losses"][-1] < 0.5 * runs[0]["losses"][0]
    np.testing.assert_allclose(runs[i]["losses"], runs[0]["losses"], rtol=1e-5)
    np.testing.assert_allclose(runs[i]["norms"], runs[0]["norms"], rtol=1e-5)


@pytest.mark.slow
def test_the_mixed_loss_is_that_of_one_device() -> None:
    """Noise pairs and real ones."""
    one, eight = on_eight_devices(runs=[("mixed", 1, 1, 1), ("mixed", 1, 8, 1)])["runs"]
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(eight["norms"], one["norms"], rtol=1e-5)


@pytest.mark.slow
def test_adapters_on_augmented_images_are_those_of_one_device() -> None:
    """And of one microbatch: what is drawn for the images is drawn for the whole batch."""
    one, eight = on_eight_devices(adapted=ADAPTED)["adapted"]
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    assert min(one["norms"]) > 0
    np.testing.assert_allclose(eight["norms"], one["norms"], rtol=1e-3)
    assert eight["held"] < 0.5 * one["held"]


@pytest.mark.slow
def test_a_state_is_exact_on_any_devices_that_read_it(results: dict) -> None:
    leaves, differ = results["exchange"]
    assert leaves > 50
    assert differ == 0


@pytest.mark.slow
def test_a_device_holds_its_part_of_the_state_only(runs: list[dict]) -> None:
    held = {mesh: run["held"] for mesh, run in zip(MESHES, runs, strict=True)}
    assert held[8, 1] == 1
    # Give or take the few that do not divide.
    assert held[8, 4] == pytest.approx(1 / 4, rel=0.05)


def test_parameters_are_split_along_the_largest_axis_that_divides() -> None:
    shapes = [(3, 8), (16, 8), (8, 16), (30, 6), (7,), ()]
    assert [fsdp_axis(shape, 4) for shape in shapes] == [1, 0, 1, None, None, None]
    assert [fsdp_axis(shape, 1) for shape in shapes] == [None] * len(shapes)
    assert parameter_spec((4, 3, 8), 4) == PartitionSpec(None, None, "fsdp")
    assert parameter_spec((3, 5), 4) == PartitionSpec()
