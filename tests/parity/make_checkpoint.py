"""Random tiny SmolVLA checkpoints made by LeRobot's own code, without a hub.

python -m tests.parity.make_checkpoint OUT [VARIANT]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.parity.lerobot_shim import (
    FeatureType,
    NormalizationMode,
    PolicyFeature,
    SmolVLAConfig,
    SmolVLAPolicy,
    make_smolvla_pre_post_processors,
    torch,
    upstream_warnings_ignored,
)
from tests.parity.variants import POLICY, TASKS, TEXT, VARIANTS, VISION, Variant

with upstream_warnings_ignored():
    from transformers import (
        GPT2TokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

PUBLISHED_VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
START, END, PAD = "<|im_start|>", "<end_of_utterance>", "<|im_end|>"
IMAGE_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
}


def train_tokenizer(vocab_size: int, corpus: Sequence[str] = TASKS) -> GPT2TokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, with SmolVLM's special tokens and padding id 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [*IMAGE_TOKENS.values(), END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=["<|endoftext|>", START, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(corpus) * 3, trainer)
    return GPT2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=added,
        extra_special_tokens={**IMAGE_TOKENS, "end_of_utterance_token": END},
        model_max_length=8192,
    )


def write_vlm(out: Path, variant: Variant, corpus: Sequence[str] = TASKS) -> SmolVLMConfig:
    """Write the VLM's config, tokenizer and processor into `out`, and its weights if LeRobot is to load them."""
    text, vision = {**TEXT, **variant.text}, {**VISION, **variant.vision}
    tokenizer = train_tokenizer(text["vocab_size"], corpus)
    config = SmolVLMConfig(
        # The published config asks for bfloat16 in its text part only: that is where LeRobot's mixed dtypes come from.
        text_config={
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "pad_token_id": 2,
            "tie_word_embeddings": False,
            "torch_dtype": "float32" if variant.precision == "float32" else "bfloat16",
            **text,
        },
        vision_config={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, **vision},
        scale_factor=variant.scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    config.save_pretrained(out)
    size = {"longest_edge": vision["image_size"]}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=size, max_image_size=size),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=size, max_image_size=size, num_frames=1, fps=1),
        image_seq_len=(vision["image_size"] // vision["patch_size"] // variant.scale_factor) ** 2,
        chat_template="{{ messages }}",
    ).save_pretrained(out)
    if variant.precision == "mixed-vlm":
        SmolVLMForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(out)
    return config


def policy_config(vlm: Path, variant: Variant) -> SmolVLAConfig:
    """LeRobot's configuration of `variant`, its VLM in the directory `vlm`."""
    inputs = {
        f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, *hw)) for n, hw in variant.cameras.items()
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (variant.state_dim,))
    mode = NormalizationMode(variant.normalization)
    return SmolVLAConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (variant.action_dim,))},
        normalization_mapping={"VISUAL": NormalizationMode.IDENTITY, "STATE": mode, "ACTION": mode},
        vlm_model_name=str(vlm),
        load_vlm_weights=variant.precision == "mixed-vlm",
        device="cpu",
        push_to_hub=False,
        **{**POLICY, **variant.policy},
    )


def randomise(policy: SmolVLAPolicy, seed: int) -> None:
    """Draw every parameter anew, so that no norm is one, no bias zero, and a swapped or skipped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                is_scale = "norm" in name and name.endswith("weight")
                draw = 1 + 0.1 * draw if is_scale else 0.05 * draw
            elif "embed_tokens" in name:
                draw = 0.1 * draw
            elif "position_embedding" in name:
                draw = 0.5 * draw
            else:
                draw = draw / parameter[0].numel() ** 0.5
            parameter.copy_(draw)


def random_stats(variant: Variant, seed: int) -> dict[str, dict[str, Any]]:
    """Statistics of state, action and cameras such as a dataset would hold, float32."""
    rng = np.random.default_rng(seed)
    stats: dict[str, dict[str, Any]] = {}
    for key, dim in (("observation.state", variant.state_dim), ("action", variant.action_dim)):
        mean, std = rng.normal(0.2, 0.5, dim), rng.uniform(0.3, 0.9, dim)
        spread = {"min": -3.1, "q01": -2.3, "q10": -1.3, "q50": 0.0, "q90": 1.2, "q99": 2.4, "max": 3.3}
        stats[key] = {"mean": mean, "std": std, **{name: mean + z * std for name, z in spread.items()}}
    for camera in variant.cameras:
        stats[f"observation.images.{camera}"] = {"mean": np.full((3, 1, 1), 0.45), "std": np.full((3, 1, 1), 0.22)}
    return {key: {name: torch.tensor(v, dtype=torch.float32) for name, v in s.items()} for key, s in stats.items()}


def make_checkpoint(out: Path, variant: Variant, seed: int = 0) -> Path:
    """Write a random checkpoint of `variant` as LeRobot would, its VLM's files in `out/vlm`, and return `out`."""
    vlm = out / "vlm"
    vlm.mkdir(parents=True)
    torch.manual_seed(seed)
    with upstream_warnings_ignored():
        write_vlm(vlm, variant)
        config = policy_config(vlm, variant)
        policy = SmolVLAPolicy(config)
        randomise(policy, seed)
        pre, post = make_smolvla_pre_post_processors(config, dataset_stats=random_stats(variant, seed + 1))
        # The saved name is the published one, as in a real checkpoint: readers are told where the VLM lies.
        config.vlm_model_name = PUBLISHED_VLM
        for step in pre.steps:
            if hasattr(step, "tokenizer_name"):
                step.tokenizer_name = PUBLISHED_VLM
        resize, config.resize_imgs_with_padding = config.resize_imgs_with_padding, (1, 1)
        for part in (policy, pre, post):
            part.save_pretrained(out)
    # Written here because LeRobot 0.6.1 fails at the null for "no resize", which 0.4.4 writes.
    saved = out / "config.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "resize_imgs_with_padding": resize}, indent=4))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("variant", choices=sorted(VARIANTS), default="tiny", nargs="?")
    arguments = parser.parse_args()
    make_checkpoint(arguments.out, VARIANTS[arguments.variant])


if __name__ == "__main__":
    main()
