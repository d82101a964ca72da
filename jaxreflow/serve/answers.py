"""Answers to a client's observations, from a policy."""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np

from jaxreflow.errors import ProcessorError
from jaxreflow.policy.names import STATE
from jaxreflow.policy.observation import TASK
from jaxreflow.policy.seen import SeenContext
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy

_log = logging.getLogger(__name__)
PROMPT, NOISE, KEEP_IMAGES = "prompt", "noise", "keep_images"
# Every other form of the pictures is another program, which takes a while to compile and memory to keep.
MOST_FORMS, LONGEST_SIDE = 8, 8192
# What the network keeps of a client's images takes some 20 MB.
MOST_KEPT = 16


class Answers:
    """A policy's answers to requests: one observation in, one chunk `[chunk, action_dim]` in dataset units out."""

    def __init__(self, policy: SmolVLAPolicy, *, num_steps: int, seed: int) -> None:
        self._policy, self._num_steps = policy, num_steps
        self._key = jax.random.key(seed)
        self._forms: set[tuple[Any, ...]] = set()
        self._kept: dict[int, SeenContext] = {}

    def __call__(self, request: dict[str, Any], client: int, number: int) -> np.ndarray:
        """The noise of a client's request `number` is of the key fold_in(fold_in(key(seed), client), number).

        With `keep_images` a request's images are kept for its client's next requests, which may then have none.

        Raises:
            ProcessorError: the observation has the wrong form, or more forms came than are kept.
        """
        form = self._form(request)
        if form and form not in self._forms and len(self._forms) == MOST_FORMS:
            raise ProcessorError(
                f"observation: pictures of {MOST_FORMS} different forms came before; send them in one size, found {form}"
            )
        if form and form not in self._forms and self._forms:
            _log.warning("client %d sends pictures of another form, which may compile: %a", client, form)
        noise = request.get(NOISE)
        if noise is not None:
            if not isinstance(noise, np.ndarray):
                raise ProcessorError(f"`{NOISE}`: expected an array, found {type(noise).__name__}")
            noise = noise[None]
        observation = request if TASK in request or PROMPT not in request else {**request, TASK: request[PROMPT]}
        key = jax.random.fold_in(jax.random.fold_in(self._key, client), number)
        context = self._context(observation, client, bool(form))
        actions = self._policy.predict_action_chunk(observation, noise, self._num_steps, key, context=context)[0]
        if not np.all(np.isfinite(actions)):
            raise ProcessorError(
                "the policy's actions for this observation are not finite; check its values and the noise's"
            )
        if form:
            self._forms.add(form)
        return actions

    def leave(self, client: int) -> None:
        """Forgets a client's images."""
        self._kept.pop(client, None)

    def _context(self, observation: dict[str, Any], client: int, has_images: bool) -> SeenContext | None:
        """What the network has of the images that count, or None where they are not to be kept."""
        keep = observation.get(KEEP_IMAGES, False)
        if not isinstance(keep, (bool, np.bool_)):
            raise ProcessorError(f"`{KEEP_IMAGES}`: expected true or false, found {keep!r}")
        if not keep:
            return None
        seen = self._policy.observe(observation) if has_images else self._kept.get(client)
        if seen is None:
            raise ProcessorError(
                f"`{KEEP_IMAGES}`: expected images in this request, for none of this connection are kept; they are kept for the "
                f"{MOST_KEPT} clients that sent some last; send them again"
            )
        self._check_kept(observation, seen)
        if has_images:
            self.leave(client)
            self._kept[client] = seen
            while len(self._kept) > MOST_KEPT:
                self.leave(next(iter(self._kept)))
        return seen

    def _check_kept(self, observation: dict[str, Any], kept: SeenContext) -> None:
        """In a client's words what `predict_action_chunk` says of a context that does not fit."""
        transforms = self._policy.transforms
        if (found := len(transforms.prepare_state(observation))) != 1:
            raise ProcessorError(
                f"`{STATE}`: expected one robot's state, found {found}; send one observation at a time"
            )
        if TASK in observation and (tasks := transforms.tasks(observation, 1)) != list(kept.tasks):
            raise ProcessorError(
                f"`{TASK}`: expected {kept.tasks[0]!r}, which the kept images came with, found {tasks[0]!r}; send images with it"
            )

    def _form(self, request: dict[str, Any]) -> tuple[Any, ...]:
        """Shapes and types of the pictures, of which a program is compiled."""
        policy = self._policy
        names = policy.transforms.processors.rename_map
        form = []
        for name, image in sorted(request.items()):
            if names.get(name, name) not in policy.config.visual_keys:
                continue
            found = list(image.shape) if isinstance(image, np.ndarray) else type(image).__name__
            if not isinstance(image, np.ndarray) or (image.ndim > 3 and len(image) != 1):
                raise ProcessorError(
                    f"`{name}`: expected one picture as an array, found {found}; send one observation at a time"
                )
            if image.ndim < 3 or not all(1 <= size <= LONGEST_SIDE for size in image.shape):
                raise ProcessorError(
                    f"`{name}`: expected a picture of at most {LONGEST_SIDE} x {LONGEST_SIDE}, found {found}"
                )
            form.append((name, image.shape, image.dtype.str))
        return tuple(form)
