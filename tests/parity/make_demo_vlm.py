"""The tiny SmolVLM that the demo's teacher is built on: config, trained tokenizer, processor and random weights.

    .venv-parity/bin/python -m tests.parity.make_demo_vlm OUT

Needs LeRobot's environment (`make parity` makes it), because LeRobot also wants the processor files that transformers writes with
torch only. `train.py finetune --policy.new --policy.vlm OUT` starts from it, as a real SmolVLA starts from SmolVLM2.
"""

import argparse
from pathlib import Path

from tests.parity.lerobot_shim import torch, upstream_warnings_ignored
from tests.parity.make_checkpoint import write_vlm
from tests.parity.variants import Variant

INSTRUCTIONS = Path(__file__).parents[1] / "assets" / "instructions.txt"

# The patch grid is 8 x 8: a power of two, so that every version of transformers sees the same vision positions in bfloat16.
DEMO = Variant(
    about="the demo's teacher: one 96 x 96 camera, 64 patches, 16 image tokens",
    precision="mixed-vlm",
    text={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 768},
    vision={"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"image_size": 96, "patch_size": 12},
    scale_factor=2,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True)
    torch.manual_seed(0)
    with upstream_warnings_ignored():
        write_vlm(out, DEMO, INSTRUCTIONS.read_text().splitlines())


if __name__ == "__main__":
    main()
