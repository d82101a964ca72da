"""What devices tell each other in an update: the trained gradients, once, and scalars."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.collectives import Collective, collectives

# A program with a loop of 10 and one of 3 inside it, as a TPU's compiler prints them (abridged).
NESTED = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%inner_condition (p: (s32[], bf16[4,8])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(3)
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit.1), direction=LT, metadata={op_name="jit(f)/while/cond/lt"}
}

%inner (p.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-gather-start.1 = (bf16[2,8]{1,0:T(8,128)(2,1)}, bf16[4,8]{1,0:T(8,128)(2,1)}) all-gather-start(%a), dimensions={0}
  %all-gather-done.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather-done(%all-gather-start.1)
}

%outer (p.2: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%tuple.3), condition=%inner_condition, body=%inner, backend_config={}
}

ENTRY %main (w: f32[4]) -> f32[4] {
  %all-reduce.1 = (f32[2,3]{1,0:T(8,128)}, f32[]{:T(128)}) all-reduce(%g, %s), channel_id=1, to_apply=%add
  ROOT %loop.2 = (s32[], f32[4]{0}) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"10"}}
}

%c (p.3: (s32[], f32[4])) -> pred[] {
  ROOT %done = pred[] fusion(%p.3), kind=kLoop, calls=%add
}
"""


def test_collectives_in_loops_count_every_time() -> None:
    gradients = Collective("all-reduce", (("f32", (2, 3)), ("f32", ())), 1)
    gathered = Collective("all-gather", (("bf16", (4, 8)),), 30)
    assert collectives(NESTED) == [gradients, gathered]
    assert (gradients.bytes, gradients.dtype, gathered.bytes) == (28, "f32", 64)


def test_a_loop_of_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match="loop inner: expected a condition"):
        collectives(NESTED.replace("direction=LT", "direction=NE"))


# The smallest network with both kinds of expert layer: compiling is all that takes time.
EIGHT = """
import dataclasses, json, re, jax
from benchmarks.collectives import collectives
from jaxreflow.policy.architecture import network_of
from jaxreflow import flow
from jaxreflow.model.config import ModelConfig
from jaxreflow.model import init_params
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxreflow.support.mesh import make_mesh, replicated, shard_batch
from jaxreflow.training.step import init_state, make_draw, make_train_step
from jaxreflow.training import experimental
from jaxreflow.training.losses import Networks, reflow_loss
from jaxreflow.model.params import split_params, trainable_in_reflow
from tests.tiny import VISION, VLM, tiny_policy
from tests.tiny_policy import make_batch

vlm = dataclasses.replace(VLM, vision=dataclasses.replace(VISION, num_hidden_layers=1))
config = network_of(tiny_policy(num_vlm_layers=2), vlm)
mesh = make_mesh()
assert mesh.size == 8
optimizer, schedule = make_optimizer(OptimizerConfig(), 100), make_schedule(OptimizerConfig(), 100)

def arguments():
    trainable, frozen = split_params(init_params(jax.random.key(0), config), trainable_in_reflow)
    return init_state(trainable, optimizer, ema=False), frozen, trainable, jax.random.key(0)

state, frozen, teacher, key = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), jax.eval_shape(arguments)
)
found = {"trained": [leaf.shape for leaf in jax.tree.leaves(teacher)]}
for dtype, accumulation in (("float32", 1), ("bfloat16", 2)):
    step = make_train_step(
        reflow_loss(Networks(config, config), teacher_steps=2),
        optimizer,
        schedule,
        make_draw(experimental.TIME_LAWS["uniform"], 2, config),
        mesh,
        accumulation=accumulation,
        reduce_dtype=dtype,
    )
    lowered = step.lower(state, frozen, teacher, shard_batch(make_batch(16, config), mesh), key)
    found[dtype] = [dataclasses.astuple(c) for c in collectives(lowered.compile().as_text())]
    # A CPU's compiler widens bfloat16, so what is asked of it counts.
    asked = re.findall(r'stablehlo.all_reduce".*?\\}\\) : \\((.*?)\\) ->', lowered.as_text(), re.DOTALL)
    found[dtype + " asked"] = re.findall(r"tensor<(.*?)>", " ".join(asked))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def eight_devices() -> dict[str, list]:
    """Collectives of the update on 8 devices: in float32, and in bfloat16 with two microbatches; and the trained shapes."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": ""}
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", EIGHT], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "short"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_an_update_communicates_trained_gradients_once_and_scalars(
    eight_devices: dict[str, list], dtype: str, short: str
) -> None:
    assert {(kind, executions) for kind, _, executions in eight_devices[dtype]} == {("all-reduce", 1)}
    shapes = [tuple(shape) for _, arrays, _ in eight_devices[dtype] for _, shape in arrays]
    trained = [tuple(shape) for shape in eight_devices["trained"]]
    assert sorted(shapes) == sorted([*trained, (), ()])  # sum and count of the loss
    asked = ["x".join([*map(str, shape), short]) for shape in trained]
    assert sorted(eight_devices[dtype + " asked"]) == sorted([*asked, "f32", "f32"])
