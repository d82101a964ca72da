"""Changes to a dataset of `lerobot_fixtures`, and whether all its frames are still read right."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxreflow.data.lerobot import LeRobotDataset
from tests.lerobot_fixtures import CAMERA, LENGTHS, TASKS, actions, brightness

FILES = ("data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet")


def edit_info(root, change):
    """Changes `meta/info.json` in place."""
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def edit_table(file, change):
    """Puts `change(table)` in the place of a parquet file."""
    pq.write_table(change(pq.read_table(file)), file)


def set_column(file, name, values):
    """Replaces one column of a parquet file."""
    edit_table(file, lambda table: table.set_column(table.column_names.index(name), name, pa.array(values)))


def is_right(root, **options):
    """Opens the dataset and compares actions, images and tasks of all its frames."""
    dataset = LeRobotDataset.open(root, **options)
    np.testing.assert_array_equal(dataset.column("action"), actions(range(18)))
    for frame in range(18):
        assert abs(dataset.image(frame, CAMERA).mean() - brightness(frame)) < 4
    episodes = np.searchsorted(np.cumsum(LENGTHS), range(18), side="right")
    assert [dataset.frame(i, ())["task"] for i in range(18)] == [TASKS[e] for e in episodes]
    return dataset
