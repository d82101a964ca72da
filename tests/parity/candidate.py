"""jaxreflow's side of the comparison: the same quantities as `oracle.py`, under the same names; imports no torch."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxreflow import SmolVLAPolicy
from jaxreflow.data.matching import pad_last
from jaxreflow.flow import euler, flow_matching_loss
from jaxreflow.model import embed_images, encode, extend, memorise, observe, remember, velocity
from jaxreflow.model.params import ParamPath, merge_params, split_params
from jaxreflow.model.types import Observation, Params
from jaxreflow.model.vision import to_pixels
from jaxreflow.policy.weights import parameter_table
from jaxreflow.run.programs import trainable_by_policy
from tests.parity.inputs import Inputs

Arrays = dict[str, np.ndarray]


class Candidate:
    """One checkpoint in jaxreflow; network quantities start from the oracle's tokens, state and actions, so that a
    fault in preprocessing does not show up again in the network."""

    def __init__(self, checkpoint: Path, dtype: str = "float32", vision_positions: str = "exact") -> None:
        self.policy = SmolVLAPolicy.from_pretrained(checkpoint, dtype=dtype, vision_positions=vision_positions)
        self.config, self.params = self.policy.checkpoint.config, self.policy.params

    def observation(self, inputs: Inputs, prepared: Arrays) -> Observation:
        """The network's input: raw images with the oracle's tokens and state."""
        return Observation(
            images={key: jnp.asarray(image) for key, image in inputs.images.items()},
            image_mask={key: jnp.asarray(mask) for key, mask in inputs.image_mask.items()},
            tokens=jnp.asarray(prepared["tokens"], jnp.int32),
            token_mask=jnp.asarray(prepared["token_mask"], bool),
            state=jnp.asarray(prepared["state"]),
        )

    def network(self, inputs: Inputs, prepared: Arrays, steps: Sequence[int] = (1, 2, 10)) -> Arrays:
        """Image tokens, K and V by layer, velocity at the first noise and time, and samples of 1, 2 and 10 steps."""
        observation = self.observation(inputs, prepared)
        noise, time = jnp.asarray(inputs.noise[0])[:, None], jnp.asarray(inputs.time[0])[:, None]
        context, memory, images = _observe(self.params, observation, config=self.config)
        record: dict[str, Any] = {f"vision/{i}": images[key] for i, key in enumerate(inputs.images)}
        for layer, (k, v) in enumerate(context.kv):
            record[f"key/{layer}"], record[f"value/{layer}"] = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        record["prefix_mask"] = context.mask
        record["velocity"] = _velocity(self.params, memory, noise, time, config=self.config)[:, 0]
        for count in steps:
            record[f"sample/{count}"] = _sample(self.params, memory, noise, num_steps=count, config=self.config)[:, 0]
        return {name: np.asarray(value) for name, value in record.items()}

    def raw_observation(self, inputs: Inputs) -> dict[str, Any]:
        """What a robot would hand to the policy, in LeRobot's names."""
        observation = {"observation.state": inputs.state, "task": inputs.tasks, **inputs.images}
        return observation | {f"{key}_padding_mask": mask for key, mask in inputs.image_mask.items()}

    def preparation(self, inputs: Inputs) -> Arrays:
        """What preprocessing makes of the inputs; cameras that are stood in for have no entry here."""
        transforms = self.policy.transforms
        prepared = transforms.prepare(self.raw_observation(inputs))
        pixels = [to_pixels(jnp.asarray(prepared.images[key]), self.config) for key in inputs.images]
        record = {f"images/{i}": jnp.transpose(image, (0, 3, 1, 2)) for i, image in enumerate(pixels)}
        record |= {f"image_mask/{i}": prepared.image_mask[key] for i, key in enumerate(inputs.images)}
        record |= {"tokens": prepared.tokens, "token_mask": prepared.token_mask, "state": prepared.state}
        actions = pad_last(transforms.normalize_action(inputs.actions), self.config.max_action_dim)
        return {name: np.asarray(value) for name, value in {**record, "actions": actions}.items()}

    def chunk(self, inputs: Inputs, num_steps: int = 10) -> np.ndarray:
        """The policy's own action chunk from the first noise, in dataset units."""
        observation = self.raw_observation(inputs)
        return np.asarray(self.policy.predict_action_chunk(observation, noise=inputs.noise[0], num_steps=num_steps))

    def split(self) -> tuple[Params, Params]:
        """Trainable and frozen parameters by the policy's own flags."""
        return split_params(self.params, trainable_by_policy(self.policy.config, self.config))

    def losses_and_gradients(self, inputs: Inputs, prepared: Arrays) -> Arrays:
        """Both losses at the first noise and time, and the gradient of the later one, by LeRobot's keys."""
        observation, actions = self.observation(inputs, prepared), jnp.asarray(prepared["actions"])[:, None]
        noise, time = jnp.asarray(inputs.noise[0])[:, None], jnp.asarray(inputs.time[0])[:, None]
        is_pad, action_dim, config = jnp.asarray(inputs.action_is_pad), self.policy.config.action_dim, self.config

        def losses(trainable: Params, frozen: Params) -> Any:
            params = merge_params(trainable, frozen)
            memory = memorise(params, observe(params, observation, config=config), observation.state, config=config)

            def loss(reduction: str) -> Any:
                field = functools.partial(velocity, params, memory, config=config)
                total, count = flow_matching_loss(
                    field, actions, noise, time, is_pad, action_dim=action_dim, reduction=reduction
                )
                return total / count

            return loss("lerobot-main"), loss("lerobot-0.4.4")

        (real, padded), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(*self.split())
        return {"loss/padded": np.asarray(padded), "loss/real": np.asarray(real), **self.by_key(gradient, "grad/")}

    def by_key(self, tree: Params, prefix: str) -> Arrays:
        """The leaves of a (part of the) parameter tree under LeRobot's keys, in PyTorch's layout."""
        flat = flatten_dict(tree)
        record: Arrays = {}
        for entry in parameter_table(self.config):
            if entry.path in flat:
                record[prefix + entry.key] = entry.to_torch(np.asarray(flat[entry.path]))
        return record

    def from_keys(self, arrays: Mapping[str, np.ndarray], prefix: str) -> dict[ParamPath, np.ndarray]:
        """The inverse of `by_key`, flat by parameter path; entries whose keys `arrays` lacks are left out."""
        return {
            entry.path: entry.from_torch(arrays[prefix + entry.key])
            for entry in parameter_table(self.config)
            if prefix + entry.key in arrays
        }


@functools.partial(jax.jit, static_argnames="config")
def _observe(params: Params, observation: Observation, *, config: Any) -> Any:
    images = embed_images(params, observation.images, config=config)
    seen = encode(params, images, observation.image_mask, observation.tokens, observation.token_mask, config=config)
    context = extend(params, seen, observation.state, config=config)
    return context, remember(params, context, config=config), images


@functools.partial(jax.jit, static_argnames="config")
def _velocity(params: Params, memory: Any, x_t: Any, t: Any, *, config: Any) -> Any:
    return velocity(params, memory, x_t, t, config=config)


@functools.partial(jax.jit, static_argnames=("num_steps", "config"))
def _sample(params: Params, memory: Any, noise: Any, *, num_steps: int, config: Any) -> Any:
    return euler(functools.partial(velocity, params, memory, config=config), noise, num_steps)
