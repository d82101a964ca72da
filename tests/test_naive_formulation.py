"""The formulation that the TPU benchmark compares with does equal work to an equal end."""

import jax
import numpy as np
import pytest

from benchmarks.naive import naive_loss
from jaxreflow.model.params import merge_params
from jaxreflow.training import experimental
from jaxreflow.training.losses import Networks, reflow_loss
from jaxreflow.training.step import make_draw
from tests.test_training import CONFIG, weights
from tests.tiny_policy import make_batch


@pytest.mark.slow
def test_naive_loss_and_gradient_equal_ours() -> None:
    student, frozen, teacher = weights()
    batch = make_batch(2, CONFIG)
    draw = make_draw(experimental.TIME_LAWS["uniform"], 2, CONFIG)(jax.random.key(1), 2)
    ours = jax.jit(jax.value_and_grad(reflow_loss(Networks(CONFIG, CONFIG), teacher_steps=2), has_aux=True))
    naive = jax.jit(jax.value_and_grad(naive_loss(CONFIG, teacher_steps=2), has_aux=True))
    (loss, count), gradient = ours(student, frozen, teacher, batch, draw)
    (naive_value, naive_count), naive_gradient = naive(student, frozen, merge_params(teacher, frozen), batch, draw)
    assert count == naive_count
    np.testing.assert_allclose(loss, naive_value, rtol=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(naive_gradient), strict=True):
        # float32 sums in another order
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * largest)
