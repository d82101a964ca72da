"""From what a robot or a dataset gives to what the network takes, and from its actions back to dataset units."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from jaxreflow.errors import ConfigError, ProcessorError
from jaxreflow.model.types import Observation
from jaxreflow.policy import aloha
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.processors import Processors
from jaxreflow.policy.vlm import tokenizer_errors

TASK = "task"
CAMERA_PREFIX = "observation.image"
# Entries about a camera: of an observation, and of an item of LeRobot's dataset.
_BESIDE_IMAGES = ("_padding_mask", "_is_pad")
# Scaling with a sharp filter, noise or rounding takes float images a little out of [0, 1]; LeRobot's policy takes them so.
_OVERSHOOT = 0.25


@dataclasses.dataclass(frozen=True)
class Transforms:
    """A policy's pre- and postprocessing as plain numpy functions; `tokenizer` is a `transformers` tokenizer.

    `vocab_size` is the number of tokens that the VLM knows (None: not checked).
    """

    policy: PolicyConfig
    processors: Processors
    tokenizer: Any = dataclasses.field(repr=False)
    vocab_size: int | None = None

    def tokenize(self, tasks: Sequence[str]) -> tuple[Int32[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """Token ids and their mask, right padded to the same length always: padding is masked, so shapes need not vary.

        Raises:
            ProcessorError: a task is too long and truncation is off, the tokenizer has no padding token, or it gives tokens that
                the VLM does not know.
        """
        settings = self.processors.tokenizer
        texts = [task if task.endswith("\n") or not self.processors.newline else task + "\n" for task in tasks]
        with tokenizer_errors(f"{self.tokenizer.name_or_path}: the tokenizer cannot encode {texts!r}"):
            encoded = self.tokenizer(
                texts,
                max_length=settings.max_length,
                truncation=settings.truncation,
                padding="max_length",
                padding_side="right",
                return_attention_mask=True,
            )
            longest = max(len(ids) for ids in encoded["input_ids"])
        if longest > settings.max_length:
            raise ProcessorError(
                f"a task has {longest} tokens, more than the {settings.max_length} of `tokenizer_max_length`, and truncation is off"
            )
        ids = np.asarray(encoded["input_ids"], np.int32)
        self._check_known(ids)
        return ids, np.asarray(encoded["attention_mask"], np.bool_)

    def _check_known(self, ids: Int32[np.ndarray, "n T"]) -> None:
        largest = int(ids.max(initial=0))
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise ProcessorError(
                f"{self.tokenizer.name_or_path}: the tokenizer gives token {largest}, but the VLM knows {self.vocab_size} tokens; "
                f"expected the tokenizer of {self.policy.vlm_model_name!r}: give a folder that has it by `vlm=` or `--vlm DIR`"
            )

    @property
    def state_dim(self) -> int | None:
        """Real dimensions of `observation.state`; None if any number may come, as in LeRobot where no statistics fix it."""
        return self.policy.state_dim if self.processors.fixes_state_width else None

    def normalize_state(self, state: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
        """`observation.state` in dataset units -> the policy's, not yet padded."""
        state = self.processors.normalizer.normalize(STATE, state)
        return aloha.decode_state(state) if self.policy.adapt_to_pi_aloha else state

    def normalize_action(self, action: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
        """Recorded actions in dataset units -> the policy's, not yet padded."""
        action = self.processors.normalizer.normalize(ACTION, action)
        return aloha.encode_actions_inv(action) if self.policy.adapt_to_pi_aloha else action

    def unnormalize_action(self, chunk: Float32[np.ndarray, "... A"]) -> Float32[np.ndarray, "... d"]:
        """The network's padded actions -> dataset units, real dimensions only."""
        action = chunk[..., : self.policy.action_dim]
        if self.policy.adapt_to_pi_aloha:
            action = aloha.encode_actions(action)
        return self.processors.unnormalizer.unnormalize(ACTION, action)

    def normalizes_images(self, key: str) -> bool:
        """Whether a camera's images are normalised before they are resized; LeRobot's SmolVLA never does by default."""
        return self.processors.normalizer.mode(key) != "IDENTITY"

    def normalize_image(self, key: str, image: np.ndarray) -> np.ndarray:
        """Channels-last images, uint8 or float32 in [0, 1]: as they are, or normalised if the policy asks for it."""
        if not self.normalizes_images(key):
            return image
        image = image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
        return self.processors.normalizer.normalize(key, image)

    def prepare(self, observation: Mapping[str, Any]) -> Observation:
        """A robot's observation in LeRobot's names as the network takes it; see `prepare_observation`."""
        return prepare_observation(observation, self)

    def prepare_state(self, observation: Mapping[str, Any]) -> Float32[np.ndarray, "B max_state_dim"]:
        """An observation's state alone, normalised and padded; all else in it is left.

        Raises:
            ProcessorError: the state is missing or has the wrong form.
        """
        return self.pad_state(_state(self.renamed(observation), self))

    def tasks(self, observation: Mapping[str, Any], batch_size: int) -> list[str]:
        """The instruction of each robot.

        Raises:
            ProcessorError: there is none, or not as many as robots.
        """
        return _tasks(self.renamed(observation), batch_size)

    def renamed(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The observation under the policy's names, by its `rename_map`."""
        return {self.processors.rename_map.get(key, key): value for key, value in observation.items()}

    def pad_state(self, state: Float32[np.ndarray, "B d"]) -> Float32[np.ndarray, "B max_state_dim"]:
        """`observation.state` in dataset units -> the policy's, padded with zeros."""
        state = self.normalize_state(state)
        return np.pad(state, ((0, 0), (0, self.policy.max_state_dim - state.shape[-1])))


def prepare_observation(observation: Mapping[str, Any], transforms: Transforms) -> Observation:
    """Renames, batches, tokenises and normalises an observation; takes whatever offers `__array__`, gives numpy.

    `observation.state` is `[D]` or `[B, D]`; a camera uint8 or float in [0, 1], HWC or CHW, with or without batch; `task` a
    string or a list; `<camera>_padding_mask`, if given, bool `[B]`. Of a time axis the last entry counts.
    Absent cameras are left out: the model stands in for at most `empty_cameras` of them. Cameras that the policy does not
    have are left out with a warning, as LeRobot's policy leaves them.

    Raises:
        ProcessorError: something is missing or has the wrong form; the message names the key.
    """
    renamed = transforms.renamed(observation)
    cameras = _present_cameras(renamed, transforms)
    images = {key: transforms.normalize_image(key, _image(key, renamed[key])) for key in cameras}
    state = _state(renamed, transforms)
    batch = len(state)
    for key, image in images.items():
        if len(image) != batch:
            raise ProcessorError(f"`{key}`: expected a batch of {batch}, as in `{STATE}`, found {len(image)}")
    tokens, token_mask = transforms.tokenize(_tasks(renamed, batch))
    fields: dict[str, Any] = {
        "images": images,
        "image_mask": {key: _camera_mask(renamed, key, batch) for key in cameras},
        "tokens": tokens,
        "token_mask": token_mask,
        "state": transforms.pad_state(state),
    }
    return Observation(**fields)


def example_observation(
    transforms: Transforms, batch_size: int = 1, image_sizes: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, Any]:
    """A batch of black uint8 images and zero states under the names that observations have.

    `image_sizes` has the (height, width) of each camera that is there; the default is all, as `input_features` has them.

    Raises:
        ConfigError: the batch size or an image's is not positive, or there is no such camera.
    """
    policy = transforms.policy
    names = {target: source for source, target in transforms.processors.rename_map.items()}
    cameras = {names.get(key, key): policy.declared_size(key) for key in policy.camera_keys}
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1, found {batch_size}")
    sizes = cameras if image_sizes is None else image_sizes
    for key, size in sizes.items():
        if key not in cameras or len(size) != 2 or min(size) < 1:
            raise ConfigError(f"`{key}`: expected (height, width) of one of {list(cameras)}, found {tuple(size)}")
    width = policy.state_dim or policy.max_state_dim
    images = {key: np.zeros((batch_size, *size, 3), np.uint8) for key, size in sizes.items()}
    return {**images, names.get(STATE, STATE): np.zeros((batch_size, width), np.float32), TASK: "task"}


def _present_cameras(observation: Mapping[str, Any], transforms: Transforms) -> list[str]:
    policy = transforms.policy
    present = [key for key in policy.visual_keys if key in observation]
    missing = [key for key in policy.camera_keys if key not in observation]
    foreign = [key for key in observation if key.startswith(CAMERA_PREFIX) and not key.endswith(_BESIDE_IMAGES)]
    foreign = [key for key in foreign if key not in policy.visual_keys]
    hint = ""
    # Who has named the cameras has named those that are meant.
    if missing and foreign and not transforms.processors.rename_map:
        proposal = json.dumps(dict(zip(foreign, missing, strict=False)))
        hint = f"; if these are the same views, set `rename_map` in policy_preprocessor.json to {proposal}"
    if not present:
        raise ProcessorError(
            f"observation: expected the cameras {list(policy.camera_keys)}, at least one of them; found "
            f"{foreign or 'none'}{hint}"
        )
    if foreign:
        warnings.warn(
            f"observation: the policy has no camera {', '.join(foreign)}, which is left out as in LeRobot; it has "
            f"{', '.join(policy.camera_keys)}{hint}",
            stacklevel=4,
        )
    return present


def _image(key: str, value: Any) -> np.ndarray:
    """uint8 or float32 `[B, H, W, 3]`; the channels may come first or last.

    Where both could be the channels, they are where LeRobot has them: last in uint8, first in float.
    """
    image = _array(key, value)
    if image.ndim not in (3, 4, 5) or 0 in image.shape:
        raise ProcessorError(f"`{key}`: expected an image, with or without batch, found shape {list(image.shape)}")
    image = image[:, -1] if image.ndim == 5 else image[None] if image.ndim == 3 else image
    whole = image.dtype == np.uint8
    if not whole and not np.issubdtype(image.dtype, np.floating):
        raise ProcessorError(f"`{key}`: expected uint8 or float, found {image.dtype}")
    channels = [axis for axis in ((-1, 1) if whole else (1, -1)) if image.shape[axis] == 3]
    if not channels:
        raise ProcessorError(
            f"`{key}`: an image must be [height, width, 3] or [3, height, width], found {list(image.shape[1:])}"
        )
    image = np.moveaxis(image, channels[0], -1)
    if whole:
        return np.ascontiguousarray(image)
    low, high = float(image.min()), float(image.max())
    if not (low >= -_OVERSHOOT and high <= 1.0 + _OVERSHOOT):
        raise ProcessorError(
            f"`{key}`: a float image must lie in [0, 1], found [{low:g}, {high:g}]; divide by 255, or give it as uint8"
        )
    return np.ascontiguousarray(image.astype(np.float32))


def _state(observation: Mapping[str, Any], transforms: Transforms) -> np.ndarray:
    if STATE not in observation:
        raise ProcessorError(f"observation: `{STATE}` is missing; found {', '.join(sorted(observation)) or 'nothing'}")
    state = _array(STATE, observation[STATE])
    if not (np.issubdtype(state.dtype, np.floating) or np.issubdtype(state.dtype, np.integer)):
        raise ProcessorError(f"`{STATE}`: expected numbers, found {state.dtype}")
    dim = transforms.state_dim or f"1 to {transforms.policy.max_state_dim}"
    fits = state.ndim in (1, 2, 3) and 0 not in state.shape and state.shape[-1] <= transforms.policy.max_state_dim
    if not fits or transforms.state_dim not in (None, state.shape[-1]):
        raise ProcessorError(
            f"`{STATE}`: expected [{dim}] or [batch, {dim}], found {list(state.shape)}: "
            "the policy was made for another robot or another state"
        )
    state = state[:, -1] if state.ndim == 3 else state[None] if state.ndim == 1 else state
    if not np.all(np.isfinite(state)):
        raise ProcessorError(
            f"`{STATE}`: not finite in dimension(s) {np.flatnonzero(~np.isfinite(state).all(axis=0)).tolist()}"
        )
    return state.astype(np.float32)


def _tasks(observation: Mapping[str, Any], batch: int) -> list[str]:
    if observation.get(TASK) is None:
        raise ProcessorError(f"observation: `{TASK}` is missing: the instruction, a string or a list of {batch}")
    task = observation[TASK]
    tasks = [task] * batch if isinstance(task, str) else list(task) if isinstance(task, list | tuple) else [task]
    if not all(isinstance(t, str) for t in tasks) or len(tasks) != batch:
        raise ProcessorError(f"`{TASK}`: expected a string or a list of {batch} strings, found {task!r}")
    return tasks


def _camera_mask(observation: Mapping[str, Any], key: str, batch: int) -> np.ndarray:
    name = f"{key}_padding_mask"
    if name not in observation:
        return np.ones(batch, np.bool_)
    mask = _array(name, observation[name]).astype(np.bool_).reshape(-1)
    if mask.shape != (batch,):
        raise ProcessorError(
            f"`{name}`: expected {batch} value(s), true where the camera is present, found {mask.size}"
        )
    return mask


def _array(key: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProcessorError(f"`{key}`: cannot be read as an array ({error})") from error
