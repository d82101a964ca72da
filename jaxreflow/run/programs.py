"""From a run's settings to its functions: what is trained, by which loss, optimizer and random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array

from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import (
    ParamPath,
    in_parts,
    merge_params,
    param_shapes,
    split_params,
    stored_in_compute_dtype,
)
from jaxreflow.model.types import Batch, Params
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.policy.weights import parameter_table
from jaxreflow.run.config import FinetuneConfig, ReflowConfig, RunConfig
from jaxreflow.support.mesh import gather, make_replicated, replicate, sharded_copy
from jaxreflow.training import experimental
from jaxreflow.training.augmentation import augment, draw_changes
from jaxreflow.training.lora import adapted_kernels, adapter_shapes, init_adapters, merge_adapters
from jaxreflow.training.losses import Draws, LossFunction, Networks, finetune_loss, reflow_loss
from jaxreflow.training.optimizer import make_optimizer, make_schedule
from jaxreflow.training.step import (
    Draw,
    Metrics,
    TrainState,
    init_state,
    make_draw,
    make_eval_step,
    make_train_step,
)

Update: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
MeasureLoss: TypeAlias = Callable[[Params, Batch, int], tuple[Array, Array]]
"""`(exported, batch, index) -> (sum, count)`; the index chooses the draws."""


class Weights(NamedTuple):
    """The trained parameters at their start, the frozen ones, and the teacher's trained ones.

    What no update changes is on the devices, in the compute dtype; so are those of the start that the teacher's equal to the
    bit. The start's others are on the host. With LoRA the start holds adapters, and `base` the kernels that they change: in
    float32, for what is exported is their sum.
    """

    start: Params
    frozen: Params
    teacher: Params
    base: Params | None = None


def trained_paths(config: RunConfig, saved: SavedPolicy) -> Callable[[ParamPath], bool]:
    """Which parameters the run changes, by their paths: it trains them, or adapters of them."""
    whole = trained_whole(config, saved)
    adapted = adapted_kernels(config.adapters, saved.config) if config.lora.rank else frozenset()
    return lambda path: path in adapted or whole(path)


def trained_whole(config: RunConfig, saved: SavedPolicy) -> Callable[[ParamPath], bool]:
    """Which parameters the run trains themselves, by their paths; with LoRA none, unless parts are named."""
    if config.trained_parts is not None:
        return in_parts(config.trained_parts)
    return in_parts(()) if config.lora.rank else trainable_by_policy(saved.policy, saved.config)


def _originals(config: RunConfig, saved: SavedPolicy) -> Callable[[ParamPath], bool]:
    """Which parameters of the policy that `saved` is derived from the run starts to train, by the paths that they have there."""
    trained = trained_paths(config, saved)
    return {saved.layers.original(path) for path in param_shapes(saved.config) if trained(path)}.__contains__


def networks_of(saved: SavedPolicy) -> Networks:
    """The networks of a student's teacher and of the student, where `saved` is what the student starts as."""
    return Networks(saved.original.config, saved.config, saved.layers)


def split_weights(config: RunConfig, saved: SavedPolicy, mesh: Mesh) -> Weights:
    """Reads the policy once; a student starts as its teacher, or some layers of it, and shares the frozen parameters with it.

    The frozen parameters and the teacher's have the teacher's paths, the start has the student's.
    """
    start, frozen = split_params(saved.original.load_params(), _originals(config, saved))
    frozen, teacher = replicate(stored_in_compute_dtype(frozen, saved.config), mesh), {}
    if config.distils:
        teacher = replicate(stored_in_compute_dtype(start, saved.config), mesh)
        start = jax.tree.map(lambda own, copy: copy if copy.dtype == own.dtype else own, start, teacher)
    start = saved.layers.view(start, saved.config)
    if not config.lora.rank:
        return Weights(start, frozen, teacher)
    # Of the seed's keys the first two are for updates and evaluations.
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    adapters = make_replicated(lambda: init_adapters(key, config.adapters, saved.config), mesh)
    whole, base = split_params(start, trained_whole(config, saved))
    return Weights(merge_params(adapters, whole), frozen, teacher, replicate(base, mesh))


def weight_shapes(config: RunConfig, saved: SavedPolicy) -> Weights:
    """What `split_weights` gives, as shapes and dtypes; no weight is read."""
    table = parameter_table(saved.original.config)
    whole = unflatten_dict({entry.path: jax.ShapeDtypeStruct(entry.shape, np.float32) for entry in table})
    start, frozen = split_params(whole, _originals(config, saved))
    stored = jax.eval_shape(
        lambda *trees: [stored_in_compute_dtype(tree, saved.config) for tree in trees], start, frozen
    )
    teacher = stored[0] if config.distils else {}
    start = saved.layers.view(start, saved.config)
    if not config.lora.rank:
        return Weights(start, stored[1], teacher)
    shapes = adapter_shapes(config.adapters, saved.config)
    adapters = unflatten_dict({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()})
    own, base = split_params(start, trained_whole(config, saved))
    return Weights(merge_params(adapters, own), stored[1], teacher, base)


def make_loss(config: RunConfig, saved: SavedPolicy) -> LossFunction:
    """The loss that the run minimises, `(trainable, frozen, teacher, batch, draws) -> (sum, count)`, from the policy `saved` on."""
    networks, action_dim = networks_of(saved), saved.policy.action_dim
    if not isinstance(config, ReflowConfig):
        assert isinstance(config, FinetuneConfig)
        return finetune_loss(saved.config, action_dim=action_dim, reduction=config.loss_compat)
    options: dict[str, Any] = {
        "teacher_steps": config.teacher_steps,
        "solver": experimental.SOLVERS[config.teacher_solver],
        "objective": experimental.OBJECTIVES[config.objective],
        "dims": action_dim if config.loss_dims == "real" else None,
    }
    if not config.real_noises:
        return reflow_loss(networks, **options)
    return experimental.mixed_reflow_loss(networks, real_noises=config.real_noises, action_dim=action_dim, **options)


def loss_and_draw(config: RunConfig, saved: SavedPolicy) -> tuple[LossFunction, Draw]:
    """The run's loss, and the noises and times that it is drawn with."""
    draw = make_draw(experimental.TIME_LAWS[config.time_law], config.noises, saved.config, times=config.times_per_noise)
    return make_loss(config, saved), draw


def _adapted(loss_fn: LossFunction, scale: float) -> LossFunction:
    """The loss as a function of adapters and what else is trained; its frozen parameters are those of `unchanged_by`."""

    def loss(adapters: Params, frozen: Params, teacher: Params, batch: Batch, draws: Draws) -> tuple[Array, Array]:
        merged = merge_adapters(frozen["base"], adapters, scale=scale)
        return loss_fn(merged, frozen["rest"], teacher, batch, draws)

    return loss


def augmented(loss_fn: LossFunction, draw: Draw, config: RunConfig, saved: SavedPolicy) -> tuple[LossFunction, Draw]:
    """The loss on changed images, the same for teacher and student, and draws of these changes; both as they are if that is off."""
    cameras, settings = saved.config.visual_keys, config.dataset.image_transforms
    if not settings.enable:
        return loss_fn, draw
    for camera in cameras:
        mode = saved.processors.normalizer.mode(camera)
        if mode != "IDENTITY":
            raise ConfigError(
                f"--dataset.image-transforms.enable: expected images in [0, 1], but the policy normalises {camera} ({mode}); "
                "leave it out"
            )

    def augmented_draw(key: Array, batch_size: int) -> Draws:
        # Noise and times take the first two keys: with and without augmentation they are the same.
        changes = draw_changes(jax.random.fold_in(key, 2), batch_size, cameras, settings)
        return draw(key, batch_size)._replace(changes=changes)

    def loss(trainable: Params, frozen: Params, teacher: Params, batch: Batch, draws: Draws) -> tuple[Array, Array]:
        changed = dataclasses.replace(batch, observation=augment(batch.observation, draws.changes))
        return loss_fn(trainable, frozen, teacher, changed, draws)

    return loss, augmented_draw


class Programs(NamedTuple):
    """A run's functions before any array is made.

    `init(start) -> state` is jitted by whoever places the state; jitted are `update(state, unchanged, teacher, batch, key) ->
    (state, metrics)`, where `unchanged` is what `unchanged_by` gives, and `measure(exported, frozen, teacher, batch, key)` of the
    loss.
    """

    init: Callable[[Params], TrainState]
    update: Any
    measure: Any


def unchanged_by(weights: Weights) -> Params:
    """What an update reads beside its state and the teacher: the frozen parameters, and with LoRA the kernels that it adapts."""
    return weights.frozen if weights.base is None else {"base": weights.base, "rest": weights.frozen}


def make_programs(config: RunConfig, saved: SavedPolicy, mesh: Mesh) -> Programs:
    """The run's functions, from the policy `saved` on."""
    loss_fn, draw = loss_and_draw(config, saved)
    train_loss, train_draw = augmented(loss_fn, draw, config, saved)
    if config.lora.rank:
        train_loss = _adapted(train_loss, config.lora.scale)
    settings = config.optimizer.resolve(saved.policy)
    optimizer = make_optimizer(settings, config.steps)
    update = make_train_step(
        train_loss,
        optimizer,
        make_schedule(settings, config.steps),
        train_draw,
        mesh,
        accumulation=config.accumulate,
        ema_decay=config.ema_decay,
        reduce_dtype=config.reduce_dtype,
    )
    return Programs(
        lambda start: init_state(start, optimizer, ema=config.ema_decay > 0),
        update,
        make_eval_step(loss_fn, draw, mesh),
    )


def make_update(
    config: RunConfig, saved: SavedPolicy, weights: Weights, mesh: Mesh
) -> tuple[TrainState, Update, MeasureLoss]:
    """The first state, and the jitted `update(state, batch)` and `measure(exported, batch, index)` of the loss."""
    programs, unchanged = make_programs(config, saved, mesh), unchanged_by(weights)
    # Evaluations draw the same noise and time every time, and none that training draws.
    key, eval_key = make_replicated(lambda: tuple(jax.random.split(jax.random.key(config.seed))), mesh)

    def update_state(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return programs.update(state, unchanged, weights.teacher, batch, key)

    def measure_loss(exported: Params, batch: Batch, index: int) -> tuple[Array, Array]:
        return programs.measure(exported, weights.frozen, weights.teacher, batch, jax.random.fold_in(eval_key, index))

    return sharded_copy(weights.start, mesh, programs.init), update_state, measure_loss


def exported_params(config: RunConfig, state: TrainState, weights: Weights, mesh: Mesh) -> Params:
    """The parameters that the run has changed as they are evaluated and exported, whole on every device."""
    trained = gather(state.averaged if config.export == "ema" else state.trainable, mesh)
    if weights.base is None:
        return trained
    return merge_adapters(weights.base, trained, scale=config.lora.scale)


def trainable_by_policy(policy: PolicyConfig, config: ModelConfig) -> Callable[[ParamPath], bool]:
    """The trainable set that LeRobot derives from `train_expert_only`, `freeze_vision_encoder` and `train_state_proj`.

    A full fine-tune freezes the last text layer (the last two where the expert has fewer layers), as LeRobot's main does.
    """
    frozen_from = config.num_vlm_layers - (1 if config.layer_stride == 1 else 2)

    def trainable(path: ParamPath) -> bool:
        match path:
            case ("state_proj", *_):
                return policy.train_state_proj
            case ("vision_model", *_):
                return not policy.train_expert_only and not policy.freeze_vision_encoder
            case ("text_model", "layers", index, *_) if int(index) >= frozen_from:
                return False
            case ("text_model" | "connector", *_):
                return not policy.train_expert_only
        return True

    return trainable
