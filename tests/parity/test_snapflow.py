"""SnapFlow's loss against Intel's own (`physicalai-train` 0.3.0, one file of which needs nothing but PyTorch)."""

import importlib.metadata
import importlib.util
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.recipe.snapflow import matching_errors, step_errors

BATCH, CHUNK, DIM = 6, 5, 4


def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Intel's mixin as a model of its own; the package itself asks for Python 3.12."""
    try:
        distribution = importlib.metadata.distribution("physicalai-train")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("physicalai-train is in the environment of LeRobot 0.6.1 only")
    path = distribution.locate_file("physicalai/policies/mixins/snapflow.py")
    spec = importlib.util.spec_from_file_location("snapflow", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "snapflow", module)
    spec.loader.exec_module(module)
    return module.SnapFlowModelMixin()


def test_both_losses_are_intels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = peer(monkeypatch), np.random.default_rng(0)
    model.init_snapflow_state(enabled=True, alpha=0.5, lambda_=0.1, num_inference_steps=1)
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.arange(n))
    actions, noise, fresh = rng.normal(size=(3, BATCH, CHUNK, DIM)).astype(np.float32)
    t, gain = rng.uniform(size=(BATCH,)).astype(np.float32), rng.normal(size=(BATCH, CHUNK, DIM)).astype(np.float32)
    half = BATCH // 2

    def predict(library: Any, gain: Any) -> Any:
        return lambda x, t, s: library.sin(gain * x + t[:, None, None]) + s[:, None, None] * x

    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * actions
    # Which observations a call is about is told by their prefix: here their numbers.
    numbers = torch.arange(BATCH)

    def peer_predict(x: Any, t: Any, s: Any, rows: Any, *_: Any) -> Any:
        return predict(torch, torch.from_numpy(gain)[rows])(x, t, s)

    losses, stepped = model.snapflow_mixed_loss(
        u_t=torch.from_numpy(noise - actions), x_t=torch.from_numpy(x_t), time=torch.from_numpy(t),
        actions=torch.from_numpy(actions), prefix_embs=numbers, prefix_pad_masks=numbers, prefix_att_masks=numbers,
        sample_noise=lambda shape, device: torch.from_numpy(fresh[half:]), predict_velocity=peer_predict,
    )  # fmt: skip
    assert stepped.tolist() == list(range(half, BATCH))
    own = matching_errors(
        predict(jnp, gain[:half]), jnp.asarray(actions[:half]), jnp.asarray(noise[:half]), jnp.asarray(t[:half])
    )
    np.testing.assert_allclose(own, losses[:half].numpy(), rtol=1e-5, atol=1e-6)
    steps = 0.1 * step_errors(predict(jnp, gain[half:]), jnp.asarray(fresh[half:]))
    np.testing.assert_allclose(steps, losses[half:].numpy(), rtol=1e-5, atol=1e-6)
