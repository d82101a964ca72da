"""What a run needs before any weight is read: the devices, the data and the policy to start from; a dry run needs the same."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.config import RunConfig
from jaxreflow.run.data import RunData, check_early_task, open_dataset, open_image_tokens, split_data
from jaxreflow.run.programs import weight_shapes
from jaxreflow.run.record.trackers import check_tracker
from jaxreflow.run.start import check_action_names, open_initial_policy
from jaxreflow.support import processes
from jaxreflow.support.compilation import use_compilation_cache
from jaxreflow.support.mesh import check_batch_size, make_mesh
from jaxreflow.support.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class Setup:
    """The devices of a run, the policy that it starts from, and its dataset as examples for that policy."""

    mesh: Mesh
    saved: SavedPolicy
    data: RunData

    @property
    def dataset(self) -> LeRobotDataset:
        """The whole dataset, of which `data` has the parts."""
        return self.data.train.dataset


def set_up_devices(config: RunConfig) -> Mesh:
    """The mesh of all devices; ConfigError if the settings do not fit it, or if processes do not know each other."""
    use_compilation_cache()
    processes.check_connected()
    mesh = make_mesh(config.fsdp)
    check_batch_size(config.batch_size, config.accumulate, mesh)
    check_tracker(config.tracker)
    return mesh


def set_up(config: RunConfig, mesh: Mesh, folder: AnyPath) -> Setup:
    """Opens the dataset and the policy, and lets them meet; a new policy is first written into `folder`.

    Raises:
        CheckpointError, ConfigError, DatasetError, ProcessorError: one cannot be read or made, or does not fit the others.
    """
    dataset = open_dataset(config.dataset)
    saved = open_initial_policy(config, dataset, folder)
    tokens_of_images = open_image_tokens(config, saved, dataset, weight_shapes(config, saved).start)
    data = split_data(dataset, saved.policy, saved.load_transforms(), config, tokens_of_images)
    check_action_names(saved, data.action_names, distils=config.distils)
    check_early_task(config, data.held_out)
    return Setup(mesh, saved, data)
