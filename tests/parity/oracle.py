"""The real LeRobot as an oracle: runs its SmolVLA on given inputs and returns float32 numpy arrays by name.

Names: `images/<i>`, `image_mask/<i>`, `tokens`, `token_mask`, `state`, `actions`; `vision/<i>` (image tokens after the
connector), `key/<layer>`, `value/<layer>`, `prefix_mask`; `velocity` (at the first noise and time), `sample/<steps>`;
`chunk` (real dimensions, normalised), `chunk_raw` (dataset units); `loss/padded`, `loss/real`; `grad/<key>`;
`update/<step>/<key>`; `trained/<key>`.
"""

import contextlib
import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.inputs import TRAINING_STEPS, Inputs
from tests.parity.lerobot_shim import (
    IS_0_6,
    OWN_LOSS,
    PreTrainedConfig,
    SmolVLAPolicy,
    cached_keys_and_values,
    fill_cache,
    make_pre_post_processors,
    torch,
    upstream_warnings_ignored,
)

Arrays = dict[str, np.ndarray]


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor as numpy; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy().copy()


def read_config(checkpoint: Path) -> Any:
    """LeRobot's config of `checkpoint`; LeRobot cannot read the null that 0.4.4 writes for "no resize"."""
    fields = json.loads((checkpoint / "config.json").read_text())
    if fields["resize_imgs_with_padding"] is not None:
        return PreTrainedConfig.from_pretrained(checkpoint)
    with tempfile.TemporaryDirectory() as readable:
        fields["resize_imgs_with_padding"] = [1, 1]
        (Path(readable) / "config.json").write_text(json.dumps(fields))
        config = PreTrainedConfig.from_pretrained(readable)
    config.resize_imgs_with_padding = None
    return config


class Oracle:
    """One checkpoint in LeRobot.

    Args:
        checkpoint: directory as LeRobot writes it; the VLM's files are in `vlm/`, or where its config says.
        positions: "exact" gives patches the position ids 0..n-1 (every transformers from 5 on, and bfloat16 before);
            "native" leaves those of the installed transformers, which in float32 are shifted by one.
        cast: dtype that the whole policy is converted to; None keeps what LeRobot makes of the checkpoint.
    """

    def __init__(self, checkpoint: Path, positions: str = "exact", cast: str | None = "float32") -> None:
        with upstream_warnings_ignored(), contextlib.redirect_stdout(sys.stderr):
            config = read_config(checkpoint)
            config.device = "cpu"
            if (checkpoint / "vlm").is_dir():
                config.vlm_model_name = str(checkpoint / "vlm")
            # A student says true when the VLM named in it has weights on the hub; here only those on disk can be had.
            config.load_vlm_weights &= (Path(config.vlm_model_name) / "model.safetensors").is_file()
            self.policy = SmolVLAPolicy.from_pretrained(checkpoint, config=config, strict=True)
            if cast:
                self.policy.to(getattr(torch, cast))
            self.preprocess, self.postprocess = make_pre_post_processors(
                config,
                pretrained_path=str(checkpoint),
                preprocessor_overrides={
                    "tokenizer_processor": {"tokenizer_name": config.vlm_model_name},
                    "device_processor": {"device": "cpu"},
                },
            )
        self.policy.eval()
        self.config, self.model = self.policy.config, self.policy.model
        self.vlm = self.model.vlm_with_expert
        if positions == "exact":
            self._use_exact_positions()

    def _use_exact_positions(self) -> None:
        embeddings = self.vlm.get_vlm_model().vision_model.embeddings
        table_side = embeddings.num_patches_per_side

        def exact_ids(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any]:
            (ids,) = arguments
            side = int(ids.shape[1] ** 0.5)
            axis = torch.arange(side) * table_side // side
            return ((axis[:, None] * table_side + axis[None, :]).flatten().expand_as(ids),)

        embeddings.position_embedding.register_forward_pre_hook(exact_ids)

    @property
    def vision_dtype(self) -> Any:
        """The dtype that the vision tower runs in."""
        return self.vlm.get_vlm_model().vision_model.dtype

    def batch(self, inputs: Inputs, train: bool = True) -> dict[str, Any]:
        """The preprocessed batch; `train` adds the actions."""
        raw: dict[str, Any] = {"observation.state": torch.from_numpy(inputs.state.copy()), "task": list(inputs.tasks)}
        for key, images in inputs.images.items():
            raw[key] = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            raw[f"{key}_padding_mask"] = torch.from_numpy(inputs.image_mask[key])
        if train:
            raw["action"] = torch.from_numpy(inputs.actions.copy())
            raw["action_is_pad"] = torch.from_numpy(inputs.action_is_pad)
        return self.preprocess(raw)

    def prepared(self, inputs: Inputs) -> tuple[Any, ...]:
        """What the network receives: images, image masks, tokens, token mask, padded state, padded actions."""
        batch = self.batch(inputs)
        if self.config.adapt_to_pi_aloha:
            batch["observation.state"] = self.policy._pi_aloha_decode_state(batch["observation.state"].clone())
            batch["action"] = self.policy._pi_aloha_encode_actions_inv(batch["action"].clone())
        images, masks = self.policy.prepare_images(batch)
        tokens, token_mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
        return images, masks, tokens, token_mask, self.policy.prepare_state(batch), self.policy.prepare_action(batch)

    def preparation(self, inputs: Inputs) -> Arrays:
        """What preprocessing makes of the inputs."""
        images, masks, tokens, token_mask, state, actions = self.prepared(inputs)
        record = {f"images/{i}": image for i, image in enumerate(images)}
        record |= {f"image_mask/{i}": mask for i, mask in enumerate(masks)}
        record |= {"tokens": tokens, "token_mask": token_mask, "state": state, "actions": actions}
        return {name: to_numpy(value) for name, value in record.items()}

    @torch.no_grad()
    def network(self, inputs: Inputs) -> Arrays:
        """Image tokens, cache, velocity at the first noise and time, and samples of 1, 2 and 10 steps from it."""
        *observation, state, _ = self.prepared(inputs)
        noise, time = torch.from_numpy(inputs.noise[0]), torch.from_numpy(inputs.time[0])
        record = {f"vision/{i}": self.vlm.embed_image(image) for i, image in enumerate(observation[0])}
        embeddings, mask, blocks = self.model.embed_prefix(*observation, state=state)
        cache = fill_cache(self.vlm, embeddings, mask, blocks)
        for layer, (keys, values) in enumerate(cached_keys_and_values(cache)):
            record[f"key/{layer}"], record[f"value/{layer}"] = keys, values
        record["prefix_mask"] = mask
        record["velocity"] = self.model.denoise_step(mask, cache, noise, time)
        for steps in (1, 2, 10):
            with self._num_steps(steps):
                record[f"sample/{steps}"] = self.model.sample_actions(*observation, state, noise=noise.clone())
        return {name: to_numpy(value) for name, value in record.items()}

    def chunk(self, inputs: Inputs, num_steps: int = 10) -> Arrays:
        """The policy's own action chunk from the first noise, before and after the postprocessor."""
        with self._num_steps(num_steps):
            noise = torch.from_numpy(inputs.noise[0].copy())
            self.policy.reset()
            chunk = self.policy.predict_action_chunk(self.batch(inputs, train=False), noise=noise)
        return {"chunk": to_numpy(chunk), "chunk_raw": to_numpy(self.postprocess(chunk.clone()))}

    def selected(self, inputs: Inputs, count: int) -> list[np.ndarray]:
        """`count` calls of `select_action` in dataset units; the n-th refill of the queue takes the n-th noise."""
        self.policy.reset()
        actions = []
        for step in range(count):
            noise = torch.from_numpy(inputs.noise[step // self.config.n_action_steps].copy())
            action = self.policy.select_action(self.batch(inputs, train=False), noise=noise)
            actions.append(to_numpy(self.postprocess(action)))
        return actions

    def losses(self, inputs: Inputs, step: int = 0) -> tuple[Any, Any]:
        """LeRobot's two reductions, differentiable: 0.4.4's mean over all padded dimensions, which ignores the
        episode's end, and the later one's mean over real dimensions inside the episode."""
        *observation, state, actions = self.prepared(inputs)
        noise, time = torch.from_numpy(inputs.noise[step]), torch.from_numpy(inputs.time[step])
        per_element = self.model.forward(*observation, state, actions, noise, time)
        real = per_element[..., : self.config.action_feature.shape[0]]
        inside = torch.from_numpy(~inputs.action_is_pad)[..., None].expand_as(real)
        return per_element.mean(), real[inside].mean()

    def loss_record(self, inputs: Inputs) -> Arrays:
        """Both losses at the first noise and time, checked against LeRobot's own `forward`."""
        noise, time = torch.from_numpy(inputs.noise[0]), torch.from_numpy(inputs.time[0])
        with torch.no_grad():
            padded, real = self.losses(inputs)
            own, _ = self.policy.forward(self.batch(inputs), noise=noise, time=time)
        record = {"loss/padded": to_numpy(padded), "loss/real": to_numpy(real)}
        expected = record[OWN_LOSS]
        assert abs(own - expected) <= 1e-6 * abs(own), f"LeRobot's forward gives {own}, the oracle {expected}"
        return record

    def trainable(self) -> dict[str, Any]:
        """The tensors that LeRobot trains: 0.4.4's, less what it meant to freeze, and 0.6.1's as they are."""
        frozen: list[str] = []
        if not IS_0_6 and not self.config.train_expert_only:
            last = self.vlm.num_vlm_layers - 1
            thinned = self.vlm.num_vlm_layers != self.vlm.num_expert_layers
            frozen = [f"text_model.layers.{i}." for i in ((last, last - 1) if thinned else (last,))]
            frozen += ["text_model.norm.weight"]
        named = {n: p for n, p in self.policy.named_parameters() if p.requires_grad}
        return {n: p for n, p in named.items() if not any(part in n for part in frozen)}

    @contextlib.contextmanager
    def _num_steps(self, steps: int) -> Iterator[None]:
        kept, self.config.num_steps = self.config.num_steps, steps
        try:
            yield
        finally:
            self.config.num_steps = kept

    def gradients(self, inputs: Inputs) -> Arrays:
        """Gradient of the later version's loss for every trainable tensor; zeros where none reaches it."""
        trainable = self.trainable()
        _, loss = self.losses(inputs)
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        return {
            f"grad/{name}": to_numpy(torch.zeros_like(parameter) if gradient is None else gradient)
            for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True)
        }

    def updates(self, gradients: Arrays, num_training_steps: int) -> Arrays:
        """What LeRobot's clipping, AdamW and schedule make of `gradients`, three times over with growing scale.

        Weights and gradients are taken to float64, so that the difference of weights is the update to 12 digits.
        """
        weights = {n.removeprefix("grad/"): None for n in gradients}
        named = dict(self.policy.named_parameters())
        weights = {n: torch.nn.Parameter(named[n].detach().double().clone()) for n in weights}
        optimizer = self.config.get_optimizer_preset().build(list(weights.values()))
        schedule = self.config.get_scheduler_preset().build(optimizer, num_training_steps)
        record: Arrays = {}
        for step, scale in enumerate((1.0, 0.01, 300.0)):
            before = {n: w.detach().clone() for n, w in weights.items()}
            for name, weight in weights.items():
                weight.grad = torch.from_numpy(gradients[f"grad/{name}"]).double() * scale
            self._step(optimizer, schedule, list(weights.values()))
            record |= {f"update/{step}/{n}": (w.detach() - before[n]).numpy() for n, w in weights.items()}
        return record

    def learning_rates(self, num_training_steps: int) -> dict[int, float]:
        """The preset schedule's learning rate at the first, some middle and the last updates."""
        optimizer = self.config.get_optimizer_preset().build([torch.nn.Parameter(torch.zeros(1))])
        schedule = self.config.get_scheduler_preset().build(optimizer, num_training_steps)
        probed = {0, 1, 2, 33, 999, 1000, 1001, num_training_steps // 2, num_training_steps - 1, num_training_steps}
        factor, peak = schedule.lr_lambdas[0], self.config.optimizer_lr
        return {count: peak * factor(count) for count in probed if count <= num_training_steps}

    def train(self, inputs: Inputs) -> Arrays:
        """Change of every trainable tensor, and the losses, over whole training steps on a copy of the policy."""
        copied = copy.copy(self)
        copied.policy = copy.deepcopy(self.policy)
        copied.model, copied.config = copied.policy.model, copied.policy.config
        copied.vlm = copied.model.vlm_with_expert
        trainable = copied.trainable()
        before = {n: p.detach().clone() for n, p in trainable.items()}
        optimizer = copied.config.get_optimizer_preset().build(list(trainable.values()))
        schedule = copied.config.get_scheduler_preset().build(optimizer, TRAINING_STEPS)
        losses = []
        for step in range(TRAINING_STEPS):
            _, loss = copied.losses(inputs, step)
            loss.backward()
            losses.append(loss.detach())
            self._step(optimizer, schedule, list(trainable.values()))
        record = {f"trained/{n}": to_numpy(p - before[n]) for n, p in trainable.items()}
        return {"train_losses": to_numpy(torch.stack(losses)), **record}

    def _step(self, optimizer: Any, schedule: Any, weights: list[Any]) -> None:
        torch.nn.utils.clip_grad_norm_(weights, self.config.get_optimizer_preset().grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
