"""Records that travel between the parts of the program; axis letters are those of `docs/design.md`."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

HostOrDevice: TypeAlias = jax.Array | np.ndarray
"""Host arrays become device arrays where a jitted function takes them."""

Params: TypeAlias = dict[str, Any]
"""A nested dict of arrays, as Flax Linen's `params` collection."""


@flax.struct.dataclass
class Observation:
    """What the policy sees, tokenised, normalised and padded.

    `images` and `image_mask` have one entry per present camera, keyed by the policy's names: uint8 `[B, H, W, 3]` or
    float `[B, H, W, 3]` in [0, 1], and bool `[B]` (false: absent in this example). `image_tokens`, float `[B, P, D]`,
    are what `embed_images` once made of a camera's images: they stand for them, and `images` may then be empty.
    """

    images: dict[str, HostOrDevice]
    image_mask: dict[str, HostOrDevice]
    tokens: Int[HostOrDevice, "B T"]
    token_mask: Bool[HostOrDevice, "B T"]
    state: Float[HostOrDevice, "B max_state_dim"]
    image_tokens: dict[str, HostOrDevice] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Batch:
    """A training batch: observation, normalised and zero-padded actions, episode padding, and global frame indices."""

    observation: Observation
    actions: Float[HostOrDevice, "B C A"]
    action_is_pad: Bool[HostOrDevice, "B C"]
    index: Int[HostOrDevice, " B"]
    student_tokens: dict[str, HostOrDevice] | None = None
    """Image tokens of a student that does not see as its teacher, where they are not to be those of `observation`; what is
    missing here is computed from its images. None: there is no such student."""

    @property
    def student_observation(self) -> Observation:
        """What the student sees."""
        if self.student_tokens is None:
            return self.observation
        return dataclasses.replace(self.observation, image_tokens=self.student_tokens)


@flax.struct.dataclass
class Context:
    """Rotated keys and raw values over the prefix of every VLM layer that runs; `count` is the number of valid rows."""

    kv: tuple[tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]], ...]
    mask: Bool[Array, "B S"]
    count: Int[Array, " B"]


@flax.struct.dataclass
class Memory:
    """Keys and values that every layer of the expert attends to, with the context's mask and count."""

    kv: tuple[tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]], ...]
    mask: Bool[Array, "B S"]
    count: Int[Array, " B"]
