"""LeRobot's dataset and PyTorch's DataLoader, read in a process of its own: one line in, one measurement out.

python -m benchmarks.lerobot_loader DATASET BATCH WORKERS BATCHES READ_AHEAD
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    """Answers each line of the standard input with the seconds that BATCHES batches took."""
    root, (batch, workers, count, read_ahead) = Path(sys.argv[1]), map(int, sys.argv[2:])
    source = batches(root, batch, workers)
    for _ in sys.stdin:
        print(json.dumps({"seconds": measure_batches(source, count, read_ahead)}), flush=True)


if __name__ == "__main__":
    main()
