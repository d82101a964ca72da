"""Seeded inputs that both sides receive, in dataset units; importable without torch."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tests.parity.variants import POLICY, TASKS, Variant


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch of raw observations with action chunks, noise and times.

    Attributes:
        images: uint8 `[B, H, W, 3]` by policy key, cameras that are absent left out.
        image_mask: bool `[B]` by policy key; false where the camera is absent in one example.
        state: float32 `[B, D]`; actions: float32 `[B, C, D]`; action_is_pad: bool `[B, C]`.
        noise: float32 `[steps, B, C, A]` and time: float32 `[steps, B]`, one row per training step; row 0 samples.
    """

    images: dict[str, np.ndarray]
    image_mask: dict[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray
    action_is_pad: np.ndarray
    tasks: list[str]
    noise: np.ndarray
    time: np.ndarray

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays for an .npz file; `from_arrays` reads them back."""
        arrays = {
            f"inputs/{f.name}": getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _BY_CAMERA
        }
        for name in _BY_CAMERA:
            arrays |= {f"inputs/{name}/{key}": value for key, value in getattr(self, name).items()}
        return {name: np.asarray(value) for name, value in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Inputs":
        """The inputs that `to_arrays` wrote."""
        fields = {f.name: arrays[f"inputs/{f.name}"] for f in dataclasses.fields(cls) if f.name not in _BY_CAMERA}
        for name in _BY_CAMERA:
            prefix = f"inputs/{name}/"
            fields[name] = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        return cls(**{**fields, "tasks": [str(task) for task in fields["tasks"]]})


_BY_CAMERA = ("images", "image_mask")
TRAINING_STEPS = 5


def random_inputs(
    *,
    cameras: Mapping[str, tuple[int, ...]],
    state_dim: int,
    action_dim: int,
    padded_action_dim: int,
    chunk_size: int,
    batch_size: int,
    seed: int,
) -> Inputs:
    """Random inputs; of several cameras (by policy key, height and width) the last is absent in the last example, whose
    episode ends inside the chunk."""
    rng = np.random.default_rng(seed)
    image_mask = {key: np.ones(batch_size, bool) for key in cameras}
    image_mask[list(cameras)[-1]][-1] = len(cameras) == 1
    action_is_pad = np.zeros((batch_size, chunk_size), bool)
    action_is_pad[-1, chunk_size - chunk_size // 3 :] = True
    noise_shape = (TRAINING_STEPS, batch_size, chunk_size, padded_action_dim)
    return Inputs(
        images={key: rng.integers(0, 256, (batch_size, *size, 3), dtype=np.uint8) for key, size in cameras.items()},
        image_mask=image_mask,
        state=rng.normal(0.2, 0.7, (batch_size, state_dim)).astype(np.float32),
        actions=rng.normal(0.2, 0.7, (batch_size, chunk_size, action_dim)).astype(np.float32),
        action_is_pad=action_is_pad,
        tasks=[TASKS[i % len(TASKS)] for i in range(batch_size)],
        noise=rng.normal(size=noise_shape).astype(np.float32),
        time=rng.uniform(0.05, 0.98, (TRAINING_STEPS, batch_size)).astype(np.float32),
    )


def make_inputs(variant: Variant, seed: int = 7) -> Inputs:
    """Random inputs for `variant`, without its absent cameras."""
    config = {"max_action_dim": 32, **POLICY, **variant.policy}
    return random_inputs(
        cameras={f"observation.images.{n}": hw for n, hw in variant.cameras.items() if n not in variant.absent},
        state_dim=variant.state_dim,
        action_dim=variant.action_dim,
        padded_action_dim=config["max_action_dim"],
        chunk_size=config["chunk_size"],
        batch_size=variant.batch_size,
        seed=seed,
    )
