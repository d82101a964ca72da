"""Parameter trees as Orbax checkpoints, written and read a leaf at a time, so that the whole never lies in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreflow.errors import CheckpointError
from jaxreflow.model.params import ParamPath


@dataclasses.dataclass(frozen=True, eq=False)
class LazyLeaf:
    """An array that `read` gives when its turn has come."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class _LazyLeafHandler(ocp.type_handlers.NumpyHandler):
    """Writes leaves as Orbax writes numpy arrays, but one after another."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            for written in await super().serialize([value.read()], [info], [arg]):
                written.result()
        return []


def save_tree(path: Path, leaves: Mapping[ParamPath, LazyLeaf]) -> None:
    """Writes a checkpoint that `orbax.checkpoint.StandardCheckpointer` restores as a tree of arrays.

    Raises:
        CheckpointError: `path` cannot be written.
    """
    # One uncompressed array per leaf: weights hardly shrink, and OCDBT would hold encoded copies of many in memory.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_zarr3=True,
        use_compression=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((LazyLeaf, _LazyLeafHandler())),
    )
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(unflatten_dict(dict(leaves))))
    except CheckpointError:
        raise
    except Exception as error:  # TensorStore reports a full disk as ValueError, OSError or RuntimeError
        raise CheckpointError(f"{path}: cannot be written ({_first_line(error)}); nothing was left there") from error


class TreeReader:
    """An Orbax checkpoint of nested dicts, or the part of one under the key `name`.

    Raises:
        CheckpointError: there is no such checkpoint, or no `name` in it.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self._name = path.absolute(), name
        try:
            self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
            tree = self._checkpointer.metadata(self.path).item_metadata.tree
        except Exception as error:
            raise CheckpointError(f"{path}: no Orbax checkpoint that can be read ({_first_line(error)})") from error
        if name is not None and name not in tree:
            raise CheckpointError(f"{path}: expected `{name}`, found {', '.join(tree)}")
        leaves = flatten_dict(tree if name is None else tree[name])
        self.shapes: dict[ParamPath, tuple[int, ...]] = {path: tuple(leaf.shape) for path, leaf in leaves.items()}

    def read(self, leaf: ParamPath) -> np.ndarray:
        """One leaf in its stored dtype; CheckpointError if it is damaged."""
        whole = leaf if self._name is None else (self._name, *leaf)
        wanted = unflatten_dict({whole: ocp.RestoreArgs(restore_type=np.ndarray)})
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=wanted, partial_restore=True)
        try:
            return flatten_dict(self._checkpointer.restore(self.path, args=args))[whole]
        except Exception as error:
            raise CheckpointError(
                f"{self.path}: {'/'.join(leaf)} is damaged ({_first_line(error)}); make or copy it again"
            ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
