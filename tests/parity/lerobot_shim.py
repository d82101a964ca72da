"""Makes LeRobot 0.4.4 importable beside a CPU torch; all modules here import torch and LeRobot through this one.

LeRobot is installed without its dependencies and torchvision is a CUDA build whose compiled extension does not load
beside a CPU torch.  Two things are then missing, and are supplied here: the schemas of two operators that
torchvision registers fake kernels for, and the video reader that LeRobot's `pyav` backend decodes with, which left
torchvision after 0.25.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import av
import torch

_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _operator):
        _OPERATORS.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


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
    "FeatureType",
    "LeRobotDataset",
    "NormalizationMode",
    "PolicyFeature",
    "PreTrainedConfig",
    "RTCConfig",
    "SmolVLAConfig",
    "SmolVLAPolicy",
    "make_att_2d_masks",
    "make_pre_post_processors",
    "make_smolvla_pre_post_processors",
    "torch",
    "upstream_warnings_ignored",
]
