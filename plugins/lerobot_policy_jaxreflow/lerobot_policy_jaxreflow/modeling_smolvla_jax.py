"""A SmolVLA policy for LeRobot whose network runs in JAX. Tensors come in and go out, and LeRobot's processors stay around it."""

import logging
from collections import deque
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from jaxreflow import flow
from jaxreflow.errors import CheckpointError
from jaxreflow.model.params import stored_in_compute_dtype
from jaxreflow.model.types import Observation
from jaxreflow.policy import aloha
from jaxreflow.policy.real_time_chunking import guidance_towards
from jaxreflow.policy.sampling import sample_chunks
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy

from .configuration_smolvla_jax import SmolVLAJaxConfig

_log = logging.getLogger(__name__)
STATE, TOKENS, TOKEN_MASK = "observation.state", "observation.language.tokens", "observation.language.attention_mask"
_TRAIN = "smolvla_jax only acts: train with the type smolvla in LeRobot, or with jaxreflow's train.py"


class SmolVLAJaxPolicy(PreTrainedPolicy):
    """`select_action` and `predict_action_chunk` of LeRobot's SmolVLA, in JAX, on preprocessed batches."""

    config_class = SmolVLAJaxConfig
    name = "smolvla_jax"

    def __init__(self, config: SmolVLAJaxConfig, saved: SavedPolicy | None = None, **_: Any) -> None:
        super().__init__(config)
        if saved is None:
            raise NotImplementedError(f"{_TRAIN}; give --policy.path with a folder that `convert to-plugin` made")
        self._network = saved.config
        self._params = jax.device_put(stored_in_compute_dtype(saved.load_params(), saved.config))
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> "SmolVLAJaxPolicy":
        """Reads a folder of `convert to-plugin`, or a hub repository that holds one.

        Raises:
            CheckpointError: files are missing or damaged, such as weights that were not copied along.
        """
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, revision=revision)
        assert isinstance(config, SmolVLAJaxConfig)
        try:
            saved = load_saved_policy(pretrained_name_or_path, revision=revision, dtype=config.jax_dtype)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; or make the folder again: python -m convert to-plugin POLICY OUT"
            ) from error
        return cls(config, saved).eval()

    def reset(self) -> None:
        """Forgets the queued actions."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def supports_rtc(self) -> bool:
        """LeRobot may pass the left-over of the last chunk."""
        return True

    def init_rtc_processor(self) -> None:
        """LeRobot calls this after it has replaced `config.rtc_config`, which is read at every call."""

    def get_optim_params(self) -> dict[str, Any]:
        """There is nothing to train."""
        raise NotImplementedError(_TRAIN)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """There is nothing to train."""
        raise NotImplementedError(_TRAIN)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any) -> Tensor:
        """The next action `[B, d]` of the queue, which is refilled when it is empty."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise=noise)
            self._queue.extend(chunk[:, i] for i in range(self.config.n_action_steps))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """A chunk `[B, C, d]` in normalised units, as LeRobot's SmolVLA returns it; without `noise`, PyTorch draws it."""
        observation = self._observation(batch)
        size = len(observation.tokens)
        shape = (size, self.config.chunk_size, self.config.max_action_dim)
        if noise is None:
            noise = torch.normal(0.0, 1.0, shape, device=batch[STATE].device)
        guidance = None
        if prev_chunk_left_over is not None and self.config.rtc_config is not None and self.config.rtc_config.enabled:
            guidance = self._guidance(prev_chunk_left_over, shape, inference_delay or 0, execution_horizon)
        chunks = sample_chunks(
            self._params,
            observation,
            _to_jax(noise.float())[:, None],
            guidance,
            config=self._network,
            num_steps=self.config.num_steps,
        )
        actions = torch.from_dlpack(chunks[:, 0, :, : self.config.action_feature.shape[0]])
        if self.config.adapt_to_pi_aloha:
            actions = torch.from_numpy(aloha.encode_actions(actions.cpu().numpy()))
        return actions.to(batch[STATE].device)

    def _observation(self, batch: dict[str, Tensor]) -> Observation:
        """LeRobot's preprocessed batch as the network takes it; of a time axis the last entry counts."""
        state = batch[STATE][:, -1] if batch[STATE].ndim > 2 else batch[STATE]
        if self.config.adapt_to_pi_aloha:
            state = torch.from_numpy(aloha.decode_state(state.cpu().numpy())).to(state.device)
        state = torch.nn.functional.pad(state.float(), (0, self.config.max_state_dim - state.shape[-1]))
        cameras = [key for key in self.config.image_features if key in batch]
        if not cameras:
            raise ValueError(
                f"expected at least one of the cameras {list(self.config.image_features)}, found {list(batch)}"
            )
        images, masks = {}, {}
        for key in cameras:
            image = batch[key][:, -1] if batch[key].ndim == 5 else batch[key]
            images[key] = _to_jax(image.float().permute(0, 2, 3, 1))
            given = batch.get(f"{key}_padding_mask")
            masks[key] = np.ones(len(image), np.bool_) if given is None else given.cpu().numpy().astype(np.bool_)
        return Observation(
            images=images,
            image_mask=masks,
            tokens=_to_jax(batch[TOKENS].int()),
            token_mask=jnp.asarray(batch[TOKEN_MASK].cpu().numpy().astype(np.bool_)),
            state=_to_jax(state),
        )

    def _guidance(
        self, left_over: Tensor, shape: tuple[int, int, int], delay: int, execution_horizon: int | None
    ) -> flow.Guidance:
        """LeRobot's real-time chunking, but never with a weight above the number of steps, which would overshoot."""
        rtc = self.config.rtc_config
        rows = np.broadcast_to(left_over.float().cpu().numpy(), (shape[0], *left_over.shape[-2:]))
        horizon = rtc.execution_horizon if execution_horizon is None else execution_horizon
        weight = rtc.max_guidance_weight
        if weight > self.config.num_steps:
            _log.warning("max_guidance_weight %g is above num_steps: %d is taken", weight, self.config.num_steps)
            weight = rtc.max_guidance_weight = float(self.config.num_steps)
        schedule = rtc.prefix_attention_schedule.value
        return guidance_towards(list(rows), shape, delay, horizon, schedule, weight)


def _to_jax(tensor: Tensor) -> jax.Array:
    """The same memory where both libraries can see it."""
    return jnp.from_dlpack(tensor.detach().contiguous())
