"""What training needs besides the network of `tiny`: batches, the VLM's files, and a dataset."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Batch, Params
from tests.tiny import TEXT, VISION, tiny_observation

DATASET = Path(__file__).parent / "assets" / "metaworld_mini"


def make_vlm(folder: Path) -> Path:
    """Config and tokenizer of `tiny.VLM`, no weights."""
    words = ["<pad>", "<unk>", *(f"word{i}" for i in range(20))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    text = {**dataclasses.asdict(TEXT), "model_type": "llama", "hidden_act": "silu", "rope_theta": 10000.0}
    vision = {**dataclasses.asdict(VISION), "model_type": "smolvlm_vision", "hidden_act": "gelu_pytorch_tanh"}
    config = {"model_type": "smolvlm", "scale_factor": 2, "text_config": text, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_batch(size: int, config: ModelConfig) -> Batch:
    """Random observations and actions on the host; the later an example, the more of its chunk is padding."""
    actions = np.random.default_rng(1).normal(size=(size, config.chunk_size, config.max_action_dim))
    return Batch(
        observation=tiny_observation(size),
        actions=actions.astype(np.float32),
        action_is_pad=np.arange(config.chunk_size) > np.linspace(config.chunk_size - 1, 0, size)[:, None],
        index=np.arange(100, 100 + size, dtype=np.int32),
    )


def perturb(params: Params, scale: float = 0.1) -> Params:
    """The parameters with noise on all of them: a student that has left its teacher."""
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(7)
    return jax.tree.unflatten(tree, [x + np.float32(scale) * random.normal(size=x.shape).astype("f4") for x in leaves])
