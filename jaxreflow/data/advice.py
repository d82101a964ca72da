"""What errors about a dataset may advise: only options that the command at hand has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetOptions:
    """The names of a command's options for its dataset; None stands for an option that the command lacks."""

    episodes: str | None = None
    """Chooses episodes."""
    skip_bad: str | None = None
    """Puts another frame in the place of one that cannot be decoded."""
    tolerance: str | None = None
    """Seconds between a frame's timestamp and the frame of the video."""
    cameras: str | None = None
    """Chooses cameras."""
    cache_frames: str | None = None
    """Decodes all frames into memory."""

    def leave_out(self) -> str:
        """The ways to go on without a bad episode, frame or camera, to be put behind other advice; empty without any."""
        ways = {
            "leave the episode out with": self.episodes,
            "replace bad frames with": self.skip_bad,
            "choose other cameras with": self.cameras,
        }
        return "".join(f", or {way} {option}" for way, option in ways.items() if option)


# A program that opens a dataset by itself has no options.
NO_OPTIONS = DatasetOptions()
TRAIN_OPTIONS = DatasetOptions(
    episodes="--dataset.episodes",
    skip_bad="--dataset.skip-bad",
    tolerance="--dataset.tolerance-s",
    cache_frames="--dataset.cache-frames",
)
EVALUATE_OPTIONS = DatasetOptions(episodes="--dataset.episodes", tolerance="--dataset.tolerance-s")
PACK_OPTIONS = DatasetOptions(tolerance="--tolerance-s", cameras="--cameras")
FEATURES_OPTIONS = DatasetOptions(tolerance="--tolerance-s")
