"""A small dataset, a new policy for it, and the cache of its image tokens."""

from pathlib import Path
from types import SimpleNamespace

from jaxreflow.data.features import FeaturesConfig, compute_features
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.run.config import PolicySource
from jaxreflow.run.new_policy import create_policy
from tests.lerobot_fixtures import write_v30
from tests.tiny_policy import make_vlm

SHARD = 8


def make_cached_policy(folder: Path, vlm: Path) -> SimpleNamespace:
    """All three in `folder`, and the VLM's files in `vlm`; the cache's shards hold `SHARD` frames."""
    root = write_v30(folder / "data", image_format="PNG")
    source = PolicySource(
        new=True,
        vlm=str(make_vlm(vlm)),
        vlm_model_name="tiny/vlm",
        normalization_mapping={"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "MEAN_STD"},
        num_vlm_layers=2,
        chunk_size=3,
        n_action_steps=3,
        resize_imgs_with_padding=(32, 32),
    )
    dataset = LeRobotDataset.open(root)
    create_policy(folder / "policy", source, dataset, rename_map={}, seed=0)
    config = FeaturesConfig(dataset=str(root), policy=str(folder / "policy"), out=str(folder / "cache"), batch_size=5)
    cache = compute_features(config, shard_frames=SHARD)
    return SimpleNamespace(folder=folder, root=root, dataset=dataset, config=config, cache=cache)
