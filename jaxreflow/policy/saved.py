"""A policy's folder in LeRobot's layout, read and written as one record: config, weights, processors, VLM files."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxreflow.errors import CheckpointError, ProcessorError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.layer_choice import ALL_LAYERS, LayerChoice
from jaxreflow.model.types import Params
from jaxreflow.policy.adapters import WEIGHTS, open_weights
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.fitting import fit_state, surprises, with_features
from jaxreflow.policy.folder import CONFIG, find_saved_policy
from jaxreflow.policy.normalization import Stats, stats_advice
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.processors import Processors, create_processors, parse_processors, read_processor_files
from jaxreflow.policy.real_time_chunking import fitting_rtc_config
from jaxreflow.policy.statistics import BUFFER_PREFIXES, chosen_stats, rename_stats, stats_in_weights, to_float32
from jaxreflow.policy.vlm import VLM_FOLDER, VLMFiles, has_weights, load_tokenizer, load_vlm
from jaxreflow.policy.weights import check_tensors, read_checked_params, surplus_warning, write_params
from jaxreflow.support.new_folder import new_directory, write_json
from jaxreflow.support.safetensors_file import TensorFile
from jaxreflow.support.storage import AnyPath, as_path
from jaxreflow.support.strict_json import parse_json

TRAIN_CONFIG = "train_config.json"


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy's folder: all but the weights' values, which `load_params` reads; `vlm_dir` is the user's `vlm=`."""

    directory: Path
    policy: PolicyConfig
    vlm: VLMFiles
    config: ModelConfig
    processors: Processors
    tensors: TensorFile
    vlm_dir: Path | None = None
    derived_from: SavedPolicy | None = None
    """The policy some of whose layers this one has (`policy.compact`); None: it stands for itself."""
    layers: LayerChoice = ALL_LAYERS
    """Which of them."""

    @property
    def original(self) -> SavedPolicy:
        """The policy that is in the folder: this one, unless it is derived from it."""
        return self.derived_from or self

    @property
    def vlm_home(self) -> Path:
        """The folder in which a `vlm/` may lie: this one, or that of an adapter's base."""
        return vlm_home(self.directory, self.tensors)

    def load_params(self) -> Params:
        """The network's parameters in float32, on the host."""
        return read_checked_params(self.tensors, self.config)

    def load_transforms(self) -> Transforms:
        """Pre- and postprocessing with the policy's tokenizer."""
        name = self.processors.tokenizer.name
        tokenizer = load_tokenizer(self.policy, self.vlm_home, self.vlm_dir, name)
        return Transforms(self.policy, self.processors, tokenizer, self.config.text.vocab_size)


def load_saved_policy(
    path: str | Path,
    *,
    vlm: str | Path | None = None,
    dtype: str = "float32",
    vision_positions: str = "exact",
    revision: str | None = None,
    stats_from: str | Path | None = None,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
    rename_map: Mapping[str, str] | None = None,
    adapt: Callable[[PolicyConfig], PolicyConfig] | None = None,
) -> SavedPolicy:
    """Reads a policy's folder (local, gs:// or s3://) or hub repository; weights are checked against the config, not yet read.

    `stats_from` is "dataset" (takes `dataset_stats`), a file, or "policy" and None: the checkpoint's own. `rename_map` maps
    dataset names to the policy's; it applies to foreign statistics and replaces the preprocessor's map. `adapt` changes the
    config that is read, and the processors take its features and modes, as in LeRobot's training.

    Raises:
        CheckpointError: files are missing, damaged, or do not fit the config.
        ConfigError: the config is no SmolVLA's, or asks for what cannot be honoured.
        ProcessorError: pre- or postprocessing cannot be built.
    """
    directory = find_saved_policy(path, revision)
    policy = read_policy_config(directory)
    policy = policy if adapt is None else adapt(policy)
    tensors = policy_tensors(directory)
    vlm_files = load_vlm(policy, vlm_home(directory, tensors), vlm)
    config = network_of(policy, vlm_files.config, dtype=dtype, vision_positions=vision_positions)
    check_tensors(tensors, config)
    processors = load_processors(
        directory,
        policy,
        tensors,
        stats_from=stats_from,
        dataset_stats=dataset_stats,
        rename_map=rename_map,
        as_configured=adapt is not None,
    )
    for text in (*surplus_warning(tensors, config), *surprises(policy, processors)):
        warnings.warn(f"{directory}: {text}", stacklevel=2)
    policy, processors = fit_state(policy, processors)
    return SavedPolicy(
        directory, policy, vlm_files, config, processors, tensors, Path(vlm).expanduser() if vlm is not None else None
    )


def policy_tensors(directory: Path) -> TensorFile:
    """The tensors of a policy's folder, an adapter's merged into its base; CheckpointError if they cannot be read."""
    return open_weights(directory, find_saved_policy)


def vlm_home(directory: Path, tensors: TensorFile) -> Path:
    """The first of a policy's folder and its tensors' that holds a `vlm/`; the policy's where none does."""
    found = (home for home in (directory, tensors.folder) if (home / VLM_FOLDER).is_dir())
    return next(found, directory)


def read_policy_config(directory: Path) -> PolicyConfig:
    """The folder's `config.json`; CheckpointError if it cannot be read, ConfigError if it cannot be honoured."""
    return PolicyConfig.from_json(read_config_fields(directory / CONFIG))


def read_config_fields(path: Path) -> dict[str, Any]:
    """A config.json as it stands; CheckpointError if it is missing or no JSON object."""
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}); copy or download the checkpoint again"
        ) from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(fields).__name__}")
    return fields


def load_processors(
    directory: Path,
    policy: PolicyConfig,
    tensors: TensorFile,
    *,
    stats_from: str | Path | None = None,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
    rename_map: Mapping[str, str] | None = None,
    as_configured: bool = False,
) -> Processors:
    """The checkpoint's processors; statistics from `stats_from`, else its files, else old buffers, else the dataset.

    With `as_configured` they have the config's features and modes instead of their own.

    Raises:
        ProcessorError: a feature that is normalised would get no sound statistics.
    """
    files = read_processor_files(directory)
    stats = chosen_stats(stats_from, dataset_stats, rename_map or {})
    if not files and stats is None:
        stats = _fallback_stats(directory, policy, tensors, dataset_stats, rename_map or {})
    processors = parse_processors(files) if files else create_processors(policy, stats or {})
    if files and stats is not None:
        processors = processors.with_statistics(stats)
    if as_configured:
        processors = with_features(processors, policy)
    if rename_map:
        processors = processors.with_rename_map(rename_map)
    try:
        processors.check(
            policy,
            stats_advice(
                dataset=bool(dataset_stats) and stats_from != "dataset",
                policy=bool(files) and stats_from not in (None, "policy"),
            ),
        )
    except ProcessorError as error:
        if stats_from in (None, "policy"):
            raise
        source = (
            "dataset (its meta/stats.json, or before v3.0 episodes_stats.jsonl)"
            if stats_from == "dataset"
            else stats_from
        )
        raise ProcessorError(f"--stats-from {source}: {error}") from error
    return processors


def _fallback_stats(
    directory: Path,
    policy: PolicyConfig,
    tensors: TensorFile,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None,
    rename_map: Mapping[str, str],
) -> Stats:
    """Statistics for a checkpoint without processor files, as LeRobot wrote them before 0.4."""
    buffers = {key: tensors.read(key) for key in tensors.keys if key.startswith(BUFFER_PREFIXES)}
    if buffers:
        if policy.adapt_to_pi_aloha:
            warnings.warn(
                f"{directory}: `adapt_to_pi_aloha` with the statistics of a checkpoint from before LeRobot 0.4: "
                "that version adapted the state before normalising it, later ones (and jaxreflow) after; "
                "compare the actions before trusting them",
                stacklevel=2,
            )
        return stats_in_weights(buffers, {**policy.input_features, **policy.output_features})
    if dataset_stats:
        return rename_stats(to_float32(dataset_stats), rename_map)
    if set(policy.normalization_mapping.values()) <= {"IDENTITY"}:
        return {}
    raise ProcessorError(
        f"{directory}: neither processor files (policy_preprocessor.json) nor normalize_* buffers in {WEIGHTS} "
        f"hold statistics: {stats_advice()}"
    )


def save_pretrained(
    out: str | AnyPath,
    saved: SavedPolicy,
    params: Params,
    *,
    num_steps: int | None = None,
    train_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that unmodified LeRobot loads: `saved` with the values of `params`, complete or not at all.

    `params` may be part of the tree. Tensors keep their keys, shapes and dtypes, untouched ones their bits;
    `load_vlm_weights` is true where the VLM that the config names has weights: LeRobot then runs it in its own dtype.

    Raises:
        CheckpointError: `out` is there already and not empty, or cannot be written; nothing is left behind then.
    """
    out = as_path(out)
    fields = student_policy(saved.policy, num_steps).to_json()
    # The source's order of fields, so that a comparison shows what changed and nothing else.
    order = read_config_fields(saved.directory / CONFIG)
    with new_directory(out) as folder:
        write_json(folder / CONFIG, {key: fields[key] for key in {**order, **fields} if key in fields})
        write_params(folder / WEIGHTS, saved.tensors, params, saved.config)
        saved.processors.save(folder)
        if train_config is not None:
            write_json(folder / TRAIN_CONFIG, train_config)
        if (saved.vlm_home / VLM_FOLDER).is_dir():
            shutil.copytree(saved.vlm_home / VLM_FOLDER, folder / VLM_FOLDER, copy_function=shutil.copyfile)


def student_policy(policy: PolicyConfig, num_steps: int | None = None) -> PolicyConfig:
    """The config to be written: `load_vlm_weights` true if the VLM it names has weights, `num_steps` as asked.

    Where `num_steps` is asked for, the weight in `rtc_config` is at most that.
    """
    # The weights that are written are whole, also those of an adapter's base.
    carried = {name: False if name == "use_peft" else value for name, value in policy.carried.items()}
    if has_weights(policy.vlm_model_name):
        carried["load_vlm_weights"] = True
    if num_steps is None:
        return dataclasses.replace(policy, carried=carried)
    carried["rtc_config"] = fitting_rtc_config(carried.get("rtc_config"), num_steps)
    return dataclasses.replace(policy, carried=carried, num_steps=num_steps)
