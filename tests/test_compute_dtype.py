"""Weights that are not trained are stored in the compute dtype: the network must not notice."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import stored_in_compute_dtype
from jaxreflow.model.types import Observation, Params
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.run.config import FinetuneConfig, ReflowConfig
from jaxreflow.run.programs import split_weights
from jaxreflow.support.mesh import make_mesh
from tests.tiny import tiny_model, tiny_observation, tiny_policy


def outputs(params: Params, observation: Observation, config: ModelConfig) -> list[np.ndarray]:
    """The memory of an observation and the velocity of a fixed chunk, as they are computed without excess precision."""

    def run(params: Params, observation: Observation) -> object:
        memory = memorise(params, observe(params, observation, config=config), observation.state, config=config)
        x_t = jnp.full((2, 1, config.chunk_size, config.max_action_dim), 0.3)
        return memory, velocity(params, memory, x_t, jnp.full((2, 1), 0.7), config=config)

    # On a CPU, XLA may otherwise skip rounding a float32 weight to bfloat16, as its bfloat16 products run in float32.
    compiled = jax.jit(run, compiler_options={"xla_allow_excess_precision": False})
    return [np.asarray(leaf) for leaf in jax.tree.leaves(compiled(params, observation))]


@pytest.mark.slow
def test_outputs_are_equal_to_the_bit() -> None:
    config, params = tiny_model(tiny_policy(add_image_special_tokens=True), dtype="bfloat16")
    stored = stored_in_compute_dtype(params, config)
    for a, b in zip(*(outputs(p, tiny_observation(), config) for p in (params, stored)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_what_computes_in_float32_stays_so() -> None:
    config, params = tiny_model(dtype="bfloat16")
    stored = flatten_dict(stored_in_compute_dtype(params, config), sep="/")
    kept = {path for path, leaf in stored.items() if leaf.dtype == jnp.float32}
    assert kept >= {"state_proj/kernel", "vision_model/post_layernorm/bias", "expert/norm/scale"}
    assert all("norm" in path or "_proj/" in path or "_mlp_" in path for path in kept)
    assert stored["text_model/embed_tokens/embedding"].dtype == jnp.bfloat16
    assert sum(stored[path].size for path in kept) < 0.3 * sum(leaf.size for leaf in stored.values())


def test_float32_is_shared() -> None:
    config, params = tiny_model()
    host = jax.tree.map(np.asarray, params)
    for tree in (params, host):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(stored_in_compute_dtype(tree, config)), strict=True):
            assert a is b


def test_a_run_holds_the_teacher_in_the_compute_dtype_and_trains_in_float32() -> None:
    checkpoint = load_saved_policy(Path(__file__).parent / "assets" / "teacher", dtype="bfloat16")
    finetune = split_weights(FinetuneConfig(dtype="bfloat16"), checkpoint, make_mesh())
    reflow = split_weights(ReflowConfig(dtype="bfloat16"), checkpoint, make_mesh())
    assert {leaf.dtype for leaf in jax.tree.leaves((finetune.start, reflow.start))} == {np.dtype("float32")}
    assert finetune.teacher == {}
    assert reflow.frozen["text_model"]["embed_tokens"]["embedding"].dtype == jnp.bfloat16
    assert reflow.teacher["expert"]["layers"]["0"]["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert reflow.teacher["state_proj"]["kernel"] is reflow.start["state_proj"]["kernel"]
    same = split_weights(ReflowConfig(), load_saved_policy(checkpoint.directory), make_mesh())
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (same.start, same.teacher)), strict=True))
