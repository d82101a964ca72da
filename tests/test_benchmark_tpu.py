"""The TPU benchmark, as far as it goes without the TPU's compiler."""

import dataclasses
import importlib.util
import math

import jax
import pytest

from benchmarks.collectives import Collective
from benchmarks.tpu import estimate_record, ratios
from benchmarks.tpu_compile import FACTORISED, NAIVE, Estimate, abstract_weights, full_model, pod_mesh
from jaxreflow.errors import ConfigError


def size(tree: object) -> int:
    """Bytes of a tree of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'libtpu.*pip install "jaxreflow\[tpu\]"'):
        pod_mesh("v5e:4x4")


def test_the_step_is_that_of_the_full_model() -> None:
    model = full_model(cameras=2, dtype="bfloat16")
    start, frozen, teacher = abstract_weights(model, FACTORISED)
    assert size(start) == 4 * 99_880_992
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(teacher)) == 99_880_992
    # Frozen and teacher in bfloat16, but for norms and projections.
    assert size(teacher) < 0.52 * size(start)
    own = abstract_weights(model, NAIVE)[2]
    assert size(own) == size(teacher) + size(frozen)


def test_record_and_ratio() -> None:
    gradients = Collective("all-reduce", (("f32", (2, 3)), ("f32", ())), 1)
    ours = Estimate(10, 5, 4, 3, 1, 2e12, 1e9, 0.5, 100, (gradients,), 60.0)
    record = estimate_record(ours)
    assert record["hbm"] == 17
    assert record["collectives"] == [
        {"kind": "all-reduce", "dtype": "f32", "shapes": ["2x3", ""], "bytes": 28, "executions": 1}
    ]
    naive = dataclasses.replace(ours, optimal_seconds=1.0, cycles=300)
    assert ratios(ours, naive, noises=4) == {"optimal_seconds": 8.0, "cycles": 12.0, "flops": 4.0}
