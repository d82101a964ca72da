"""Hides what differs between LeRobot 0.4.4 and 0.6.1; all modules here import torch and LeRobot through this one.

LeRobot 0.4.4 lacks the video reader of its `pyav` backend, which left torchvision after 0.25. It is supplied here.
"""

import contextlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import av
import torch

LEROBOT_VERSION = importlib.metadata.version("lerobot")
IS_0_6 = tuple(map(int, LEROBOT_VERSION.split(".")[:2])) >= (0, 6)
# Under transformers 4 a vision tower in float32 sees position ids that are shifted by one.
SHIFTS_FLOAT32_POSITIONS = int(importlib.metadata.version("transformers").split(".")[0]) < 5
# Which reduction of the loss `SmolVLAPolicy.forward` returns: the mean over all padded dimensions, or over real ones.
OWN_LOSS = "loss/real" if IS_0_6 else "loss/padded"


@contextlib.contextmanager
def upstream_warnings_ignored() -> Iterator[None]:
    """Silence the deprecation notices of LeRobot and its dependencies: they are not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


with upstream_warnings_ignored():
    import torchvision
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, make_att_2d_masks
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    if IS_0_6:
        from lerobot.transforms import ImageTransformsConfig
    else:
        from lerobot.datasets.transforms import ImageTransformsConfig


def fill_cache(expert: Any, embeddings: Any, mask: Any, blocks: Any) -> Any:
    """Runs the prefix through the VLM and returns the cache that `denoise_step` reads.

    Args:
        expert: LeRobot's `SmolVLMWithExpertModel`.
        embeddings, mask, blocks: what `embed_prefix` returns.
    """
    _, cache = expert.forward(
        attention_mask=make_att_2d_masks(mask, blocks),
        position_ids=torch.cumsum(mask, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[embeddings, None],
        use_cache=True,
        **({} if IS_0_6 else {"fill_kv_cache": True}),
    )
    return cache


def cached_keys_and_values(cache: Any) -> list[tuple[Any, Any]]:
    """Keys and values by layer, each `[B, L, heads, head_dim]`."""
    if IS_0_6:
        return [(layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in cache.layers]
    return [(entry["key_states"], entry["value_states"]) for _, entry in sorted(cache.items())]


class PyAVVideoReader:
    """The part of torchvision's former `VideoReader` that LeRobot uses: seek to a key frame, then iterate."""

    def __init__(self, path: str, stream: str) -> None:
        if stream != "video":
            raise ValueError(f"stream: expected 'video', found {stream!r}")
        self.container = av.open(path)
        self._stream = self.container.streams.video[0]

    def seek(self, time_s: float, keyframes_only: bool = False) -> "PyAVVideoReader":
        del keyframes_only  # PyAV seeks to the key frame before `time_s` in any case.
        self.container.seek(int(time_s / self._stream.time_base), stream=self._stream)
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for frame in self.container.decode(self._stream):
            image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": image, "pts": float(frame.pts * self._stream.time_base)}


if not hasattr(torchvision.io, "VideoReader"):
    torchvision.io.VideoReader = PyAVVideoReader
if not hasattr(torchvision, "set_video_backend"):
    torchvision.set_video_backend = lambda _backend: None

__all__ = [
    "IS_0_6",
    "LEROBOT_VERSION",
    "OWN_LOSS",
    "SHIFTS_FLOAT32_POSITIONS",
    "FeatureType",
    "ImageTransformsConfig",
    "LeRobotDataset",
    "NormalizationMode",
    "PolicyFeature",
    "PreTrainedConfig",
    "RTCConfig",
    "SmolVLAConfig",
    "SmolVLAPolicy",
    "cached_keys_and_values",
    "fill_cache",
    "make_pre_post_processors",
    "make_smolvla_pre_post_processors",
    "torch",
    "upstream_warnings_ignored",
]
