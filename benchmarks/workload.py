"""What the network's benchmarks use: a policy of full size, and inputs that need no dataset."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.dataset import write_dataset
from benchmarks.floor import LANGUAGE_TOKENS
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.model.config import ModelConfig, VLMConfig
from jaxreflow.model.types import Batch, Observation
from jaxreflow.policy.config import Feature, PolicyConfig
from jaxreflow.policy.vlm import SMALL_FILES
from jaxreflow.run.config import PolicySource
from jaxreflow.run.new_policy import create_policy

CACHE = Path("build/benchmarks")
# Its vocabulary is small; all that is asked of it is that the tokens which LeRobot looks up are there.
TOKENIZER = Path("tests/assets/teacher/vlm")
IMAGE_SIZE, STATE_DIM, ACTION_DIM = 512, 6, 6


def full_policy(cameras: int) -> PolicyConfig:
    """LeRobot's defaults, a robot of six joints, and this many cameras of 512 x 512."""
    images = {
        f"observation.images.camera{i + 1}": Feature("VISUAL", (3, IMAGE_SIZE, IMAGE_SIZE)) for i in range(cameras)
    }
    inputs = {"observation.state": Feature("STATE", (STATE_DIM,)), **images}
    return PolicyConfig(input_features=inputs, output_features={"action": Feature("ACTION", (ACTION_DIM,))})


def full_checkpoint(cameras: int) -> Path:
    """A random policy of 450 million parameters in LeRobot's layout. The first call writes it (1 GB)."""
    out = CACHE / f"full_{cameras}_cameras"
    if not out.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            data = LeRobotDataset.open(write_dataset(Path(folder) / "data", full_policy(cameras), frames=2))
            vlm = _full_vlm(Path(folder) / "vlm")
            identity = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")
            source = PolicySource(new=True, vlm=str(vlm), normalization_mapping=identity)
            create_policy(out, source, data, rename_map={}, seed=0)
    return out


def make_batch(config: ModelConfig, batch: int, cameras: int) -> Batch:
    """Random observations with `cameras` images in the tower's size and 48 valid language tokens, on the host."""
    random = np.random.default_rng(0)
    width, height = config.resize_imgs_with_padding or (config.vision.image_size,) * 2
    keys = config.visual_keys[:cameras]
    return Batch(
        observation=Observation(
            images={key: random.integers(0, 256, (batch, height, width, 3), np.uint8) for key in keys},
            image_mask={key: np.ones(batch, bool) for key in keys},
            tokens=random.integers(3, min(400, config.text.vocab_size), (batch, LANGUAGE_TOKENS), np.int32),
            token_mask=np.ones((batch, LANGUAGE_TOKENS), bool),
            state=random.normal(size=(batch, config.max_state_dim)).astype(np.float32),
        ),
        actions=random.normal(size=(batch, config.chunk_size, config.max_action_dim)).astype(np.float32),
        action_is_pad=np.zeros((batch, config.chunk_size), bool),
        index=np.arange(batch, dtype=np.int32),
    )


def _full_vlm(folder: Path) -> Path:
    """Config of SmolVLM2-500M, with a small tokenizer."""
    vlm = VLMConfig()
    folder.mkdir()
    for pattern in SMALL_FILES:
        for file in TOKENIZER.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((TOKENIZER / "config.json").read_text())
    config["text_config"] |= vars(vlm.text)
    config["vision_config"] |= vars(vlm.vision)
    config["scale_factor"] = vlm.scale_factor
    (folder / "config.json").write_text(json.dumps(config))
    return folder
