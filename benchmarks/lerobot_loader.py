"""LeRobot's dataset and PyTorch's DataLoader, read in a process of its own (`child.worker`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import serve
from benchmarks.loader import measure_batches
from jaxreflow.data.metadata import read_metadata
from tests.parity.lerobot_shim import LeRobotDataset, torch

CHUNK = 50


def batches(root: Path, batch: int, workers: int) -> Iterator[dict[str, Any]]:
    """Endless shuffled batches, each sample with its chunk of actions, as LeRobot's training script reads them."""
    offsets = [step / read_metadata(root).fps for step in range(CHUNK)]
    dataset = LeRobotDataset(
        f"local/{root.name}", root=root, video_backend="pyav", delta_timestamps={"action": offsets}
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def main() -> None:
    """Answers the order "measure" with the seconds that a number of batches took."""
    settings = json.loads(sys.argv[1])
    source = batches(Path(settings["dataset"]), settings["batch"], settings["workers"])
    serve({"measure": lambda: {"seconds": measure_batches(source, settings["batches"], settings["read_ahead"])}})


if __name__ == "__main__":
    main()
