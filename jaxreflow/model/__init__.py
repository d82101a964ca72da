"""SmolVLA in Flax Linen, as five pure functions `f(params, inputs, *, config)`. Nothing here reads files or options."""

from jaxreflow.model.smolvla import embed_images, encode, extend, init_params, memorise, observe, remember, velocity

__all__ = ["embed_images", "encode", "extend", "init_params", "memorise", "observe", "remember", "velocity"]
