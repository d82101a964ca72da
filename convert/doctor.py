"""What is wrong with a checkpoint, what it means, and what to do."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxreflow.errors import CheckpointError, JaxReflowError, ProcessorError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import count_parameters
from jaxreflow.policy.adapters import ADAPTER_CONFIG, is_adapter
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import DEFAULT_VLM, PolicyConfig
from jaxreflow.policy.fitting import surprises
from jaxreflow.policy.folder import check_folder, policy_hint
from jaxreflow.policy.names import ACTION
from jaxreflow.policy.normalization import check_normalizer, stats_advice
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.processors import POSTPROCESSOR, PREPROCESSOR, Processors, parse_processors, read_processor_files
from jaxreflow.policy.real_time_chunking import fitting_rtc_config
from jaxreflow.policy.saved import CONFIG, load_processors, policy_tensors, read_config_fields, vlm_home
from jaxreflow.policy.statistics import BUFFER_PREFIXES
from jaxreflow.policy.vlm import load_tokenizer, load_vlm
from jaxreflow.policy.weights import check_tensors, expected_tensors, surplus_tensors, surplus_warning
from jaxreflow.support.safetensors_file import TensorFile

from .archive import PICKLES
from .dtypes import own_dtypes
from .finding import BY_FIX, Finding
from .positions import change_in_actions, set_ups, sides
from .repair import ARTEFACTS, lacks_vlm_weights, names_an_adapter
from .weight_findings import dtypes, module_dtypes, names

# Policies up to this size are measured without being asked: some seconds.
_SMALL = 20_000_000


def examine(directory: Path, *, vlm: Path | None = None, measure: bool | None = None) -> list[Finding]:
    """All findings on a checkpoint's folder; nothing is changed.

    `measure` compares actions under both numberings of vision positions (None: if the policy is small).

    Raises:
        CheckpointError: there is no such folder.
    """
    check_folder(directory)
    policy, found = _config(directory)
    findings = [*_pickles(directory), *found]
    file, found = _weights(directory)
    findings += found
    config: ModelConfig | None = None
    if policy is not None and file is not None:
        try:
            files = load_vlm(policy, vlm_home(directory, file), vlm)
            config = network_of(policy, files.config)
            check_tensors(file, config)
            findings += [Finding("warning", text) for text in surplus_warning(file, config)]
            findings += dtypes(file, set(file.keys) - set(surplus_tensors(file, config)))
            findings += module_dtypes(file, own_dtypes(file, config, policy, files))
        except JaxReflowError as error:
            config = None
            findings.append(_from_error(error))
        findings += _processors(directory, policy, file, config, vlm)
    if config is not None and policy is not None and file is not None:
        small = count_parameters(expected_tensors(config)) <= _SMALL
        findings += _positions(file, config, policy, small if measure is None else measure)
    return findings


def _from_error(error: JaxReflowError) -> Finding:
    return Finding("error", str(error))


def _pickles(directory: Path) -> Iterator[Finding]:
    names = [p.relative_to(directory).as_posix() for p in sorted(directory.rglob("*")) if p.suffix in PICKLES]
    if names:
        yield Finding(
            "warning",
            f"pickle files: {', '.join(names)}",
            "a pickle can run any code when it is loaded; jaxreflow never loads one",
            "remove them; weights that exist only there must first be saved as safetensors in PyTorch",
        )


def _config(directory: Path) -> tuple[PolicyConfig | None, list[Finding]]:
    findings = []
    try:
        if not (directory / CONFIG).exists():
            raise CheckpointError(f"{directory / CONFIG}: no such file; {policy_hint(directory)}")
        fields = read_config_fields(directory / CONFIG)
    except CheckpointError as error:
        return None, [_from_error(error)]
    if artefacts := [name for name in ARTEFACTS if name in fields]:
        findings.append(
            Finding(
                "error",
                f"{CONFIG}: training artefacts: {', '.join(f'{name} = {fields[name]!r}' for name in artefacts)}",
                "training settings of an old fork: LeRobot refuses unknown fields, and the fork loads a second model",
                f"remove them: {BY_FIX}",
            )
        )
    if names_an_adapter(directory, fields):
        findings.append(
            Finding(
                "error",
                f"{CONFIG}: use_peft is true, although the weights are whole",
                "LeRobot looks for an adapter and does not load the policy; a merged adapter leaves this behind",
                f"set it to false: {BY_FIX}",
            )
        )
    if is_adapter(directory):
        findings.append(
            Finding(
                "note",
                f"{ADAPTER_CONFIG}: the weights are a LoRA adapter",
                "jaxreflow merges it into its base whenever it reads the policy",
                "to keep the merged policy: SmolVLAPolicy.from_pretrained(DIR).save_pretrained(OUT)",
            )
        )
    if lacks_vlm_weights(fields):
        findings.append(
            Finding(
                "warning",
                f"{CONFIG}: load_vlm_weights is {str(fields.get('load_vlm_weights', False)).lower()}, although "
                f"{fields.get('vlm_model_name', DEFAULT_VLM)!r} has weights",
                "LeRobot then keeps the vision tower in float32: slow inference, and under transformers 4.57 "
                "other vision positions (see the note on them)",
                f"set it to true (the checkpoint's own weights still count): {BY_FIX}; a policy that LeRobot "
                "trained under 4.57 as it stands has learned the shifted positions: compare actions before and after",
            )
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the artefacts are reported above
            policy = PolicyConfig.from_json(fields)
            return policy, [*findings, *_cameras(policy), *_guidance(policy)]
    except JaxReflowError as error:
        return None, [*findings, _from_error(error)]


def _cameras(policy: PolicyConfig) -> Iterator[Finding]:
    if not policy.camera_keys:
        yield Finding(
            "error",
            f"{CONFIG}: input_features has no camera",
            "SmolVLA acts by pictures, and finds them by the names there",
            "list the cameras that the policy was trained with, each of type VISUAL with a shape such as [3, 480, 640]",
        )


def _guidance(policy: PolicyConfig) -> Iterator[Finding]:
    found, steps = policy.carried.get("rtc_config"), policy.num_steps
    if isinstance(found, dict) and fitting_rtc_config(found, steps) != found:
        yield Finding(
            "warning",
            f"{CONFIG}: rtc_config has max_guidance_weight {found.get('max_guidance_weight', 10.0):g}, but num_steps is {steps}",
            "with real-time chunking LeRobot's guidance then overshoots: with one step and weight 10, the actions that are on "
            "their way end up nine times as far off",
            f"lower the weight to {steps}: {BY_FIX}; `lerobot-rollout` takes the weight from its command line: "
            f"give it --inference.rtc.max_guidance_weight={steps}",
        )


def _weights(directory: Path) -> tuple[TensorFile | None, list[Finding]]:
    try:
        file = policy_tensors(directory)
    except CheckpointError as error:
        return None, [_from_error(error)]
    return file, list(names(file))


def _processors(
    directory: Path, policy: PolicyConfig, file: TensorFile, config: ModelConfig | None, vlm: Path | None
) -> Iterator[Finding]:
    try:
        files = read_processor_files(directory)
        if not files:
            yield from _old_statistics(directory, policy, file)
            return
        processors = parse_processors(files)
    except ProcessorError as error:
        yield _from_error(error)
        return
    yield from _statistics(processors, policy)
    yield from _tokenizer(processors, policy, vlm_home(directory, file), config, vlm)


def _tokenizer(
    processors: Processors, policy: PolicyConfig, home: Path, config: ModelConfig | None, vlm: Path | None
) -> Iterator[Finding]:
    """Tries a tokenizer that lies in a folder; one of the hub is not fetched."""
    vocab_size = None if config is None else config.text.vocab_size
    # Whatever length the policy allows, the example is no error.
    forgiving = dataclasses.replace(processors, tokenizer=dataclasses.replace(processors.tokenizer, truncation=True))
    try:
        tokenizer = load_tokenizer(policy, home, vlm, processors.tokenizer.name, local_only=True)
        if tokenizer is not None:
            Transforms(policy, forgiving, tokenizer, vocab_size).tokenize(["pick up the cube"])
    except JaxReflowError as error:
        yield _from_error(error)


def _old_statistics(directory: Path, policy: PolicyConfig, file: TensorFile) -> Iterator[Finding]:
    buffers = any(key.startswith(BUFFER_PREFIXES) for key in file.keys)
    yield Finding(
        "warning" if buffers else "error",
        f"no {PREPROCESSOR} and {POSTPROCESSOR}" + (", but statistics among the weights" if buffers else ""),
        "the checkpoint is from before LeRobot 0.4; newer versions do not normalise it"
        + ("" if buffers else ", and nothing says in which units it acts"),
        "save it anew with SmolVLAPolicy.from_pretrained(DIR).save_pretrained(NEW)"
        + (f", or: {BY_FIX}" if buffers and not policy.adapt_to_pi_aloha else "")
        + ("" if buffers else ", giving `stats_from` a stats.json of the dataset it was trained on"),
    )
    if buffers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_processors(directory, policy, file)
        except ProcessorError as error:
            yield _from_error(error)


def _statistics(processors: Processors, policy: PolicyConfig) -> Iterator[Finding]:
    seen: dict[str, None] = {}
    checks = [(processors.normalizer, key, PREPROCESSOR) for key in (*policy.used_inputs, ACTION)]
    for normalizer, key, where in [*checks, (processors.unnormalizer, ACTION, POSTPROCESSOR)]:
        try:
            check_normalizer(normalizer, policy, [key], where, stats_advice())
        except ProcessorError as error:
            seen[str(error)] = None
    yield from (Finding("error", message) for message in seen)
    if seen:
        return
    yield from (Finding("warning", message) for message in surprises(policy, processors))


def _positions(file: TensorFile, config: ModelConfig, policy: PolicyConfig, measure: bool) -> Iterator[Finding]:
    side, table_side = sides(config, policy)
    lines = []
    for set_up in set_ups(side, table_side):
        exact = set_up.ids == [k * table_side // side for k in range(side)]
        lines.append(
            f"transformers {set_up.transformers}, load_vlm_weights {str(set_up.load_vlm_weights).lower()} "
            f"({set_up.dtype}): {_brief(set_up.ids)} ({'exact' if exact else 'shifted'})"
        )
    yield Finding(
        "note",
        "vision positions of a patch row, by LeRobot set-up:\n" + "\n".join(lines),
        _measured(file, config, policy)
        if measure and policy.camera_keys
        else "their effect on the actions was not measured (--measure does)",
        "act in the set-up the policy was trained in; `vision_positions` (exact or shifted) follows it here",
    )


def _measured(file: TensorFile, config: ModelConfig, policy: PolicyConfig) -> str:
    change = 100 * change_in_actions(file, config, policy)
    return f"shifted positions change the actions by {change:.3g} % (relative; random observations, same noise)"


def _brief(ids: list[int]) -> str:
    shown: list[Any] = ids if len(ids) <= 8 else [*ids[:5], "...", ids[-1]]
    return ",".join(map(str, shown))
