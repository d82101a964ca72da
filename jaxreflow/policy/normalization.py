"""LeRobot's normaliser on numpy: five modes, and the check that every feature has the statistics its mode needs.

What LeRobot's arithmetic handles is no error here: a dimension without spread, one number for all dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from jaxreflow.errors import ProcessorError
from jaxreflow.policy.config import NORMALIZATION_MODES, Feature, PolicyConfig
from jaxreflow.policy.names import ACTION, STATE

Stats = dict[str, dict[str, np.ndarray]]
"""Statistics by feature, then by name ("mean", "std", "min", "max", "q01", ...)."""

# What each mode reads: location and scale, or the two ends of the range that becomes [-1, 1].
STATISTICS: Mapping[str, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}

# What tells a vector's width where no mode reads its statistics.
_WIDTHS = ("mean", "std", "min", "max")
_COLOURS = 3


def stats_advice(*, dataset: bool = False, policy: bool = False) -> str:
    """What to do about statistics that do not serve; `dataset` and `policy`: whether theirs are there and might."""
    others = {
        "`--stats-from dataset` (the dataset's own statistics)": dataset,
        "`--stats-from policy` (the policy's)": policy,
    }
    ways = ", ".join([way for way, there in others.items() if there] + ["`--stats-from FILE`"])
    return (
        f"choose {' or '.join(ways.rsplit(', ', 1))} (a stats.json, or a safetensors file with keys like `action.mean`) where a "
        "command has this option; or write a FILE's into a policy of your own by "
        "SmolVLAPolicy.from_pretrained(DIR, stats_from=FILE).save_pretrained(NEW)"
    )


def normalize(
    x: Float32[np.ndarray, "*shape"], stats: Mapping[str, np.ndarray], mode: str, eps: float = 1e-8
) -> Float32[np.ndarray, "*shape"]:
    """Dataset units -> the policy's: `(x - mean) / (std + eps)`, or a range to [-1, 1], in LeRobot's order."""
    if mode == "IDENTITY":
        return x
    first, second = (stats[name] for name in STATISTICS[mode])
    if mode == "MEAN_STD":
        return (x - first) / (second + eps)
    return 2 * (x - first) / _span(first, second, eps) - 1


def unnormalize(
    x: Float32[np.ndarray, "*shape"], stats: Mapping[str, np.ndarray], mode: str, eps: float = 1e-8
) -> Float32[np.ndarray, "*shape"]:
    """The policy's units -> dataset units: `x * std + mean` (no eps, as in LeRobot), or [-1, 1] mapped to the range."""
    if mode == "IDENTITY":
        return x
    first, second = (stats[name] for name in STATISTICS[mode])
    if mode == "MEAN_STD":
        return x * second + first
    span = _span(first, second, eps)
    # The order of the two products differs between the modes in LeRobot, and with it the last bit.
    return (x + 1) / 2 * span + first if mode == "MIN_MAX" else (x + 1) * span / 2 + first


def _span(low: np.ndarray, high: np.ndarray, eps: float) -> np.ndarray:
    span = high - low
    return np.where(span == 0, span.dtype.type(eps), span)


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """LeRobot's (un)normaliser step: features, mode by feature type, statistics in float32 (images: one per channel).

    `observation_keys`, where given, are the only observations that are normalised.
    """

    features: Mapping[str, Feature]
    norm_map: Mapping[str, str]
    stats: Mapping[str, Mapping[str, np.ndarray]]
    eps: float = 1e-8
    observation_keys: tuple[str, ...] | None = None

    def mode(self, key: str) -> str:
        """The mode that applies to a feature; what LeRobot passes through unchanged is IDENTITY."""
        if key == ACTION:
            return self.norm_map.get("ACTION", "IDENTITY")
        if key not in self.features or (self.observation_keys is not None and key not in self.observation_keys):
            return "IDENTITY"
        kind = self.features[key].type
        if kind == "VISUAL" and key not in self.stats:
            return "IDENTITY"
        return self.norm_map.get(kind, "IDENTITY")

    def normalize(self, key: str, x: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
        """Feature `key` in dataset units -> the policy's; images channels last, in [0, 1]."""
        return normalize(x, self.stats.get(key, {}), self.mode(key), self.eps)

    def unnormalize(self, key: str, x: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
        """Feature `key` in the policy's units -> dataset units."""
        return unnormalize(x, self.stats.get(key, {}), self.mode(key), self.eps)


def state_width(normalizer: Normalizer) -> int | None:
    """Dimensions of `observation.state` by its statistics, which LeRobot goes by; None if there are none."""
    stats = normalizer.stats.get(STATE, {})
    return max(
        (stats[name].size for name in STATISTICS[normalizer.mode(STATE)] or _WIDTHS if name in stats), default=None
    )


def check_normalizer(
    normalizer: Normalizer, policy: PolicyConfig, keys: Sequence[str], where: str, advice: str
) -> None:
    """Checks that each feature in `keys` that is to be normalised has sound statistics; `advice` says where others may be.

    LeRobot passes on what has none as it is, which for a state or an action is the wrong unit, so here that is an error.
    Images without statistics are passed on as they are, as in LeRobot.

    Raises:
        ProcessorError: names feature, statistic, what was expected and what was found; `where` says in which file.
    """
    features = {**policy.input_features, **policy.output_features}
    undeclared = [key for key in keys if key not in features]
    if undeclared:
        raise ProcessorError(
            f"{where}: {_names(undeclared)} is to be normalised, but config.json has no such feature; "
            f"it has {_names(features)}"
        )
    unlisted = [key for key in keys if key == STATE and key not in normalizer.features]
    unlisted = [key for key in unlisted if normalizer.norm_map.get(features[key].type, "IDENTITY") != "IDENTITY"]
    if unlisted:
        raise ProcessorError(
            f"{where}: the normaliser does not list {_names(unlisted)}, inputs of the policy in config.json; "
            f"it lists {_names(normalizer.features)}, so these inputs would reach the policy in the wrong units: "
            "add them to its `features`"
        )
    needed = [key for key in keys if normalizer.mode(key) != "IDENTITY"]
    missing = [key for key in needed if key not in normalizer.stats]
    if missing:
        share = "no feature that needs them" if len(missing) == len(needed) else "not every feature that needs them"
        raise ProcessorError(
            f"{where}: the statistics match {share}: expected {_names(missing)}, found {_names(normalizer.stats)}; "
            f"without them the robot would move in the wrong units: {advice}"
        )
    for key in needed:
        _check_feature(normalizer, key, features[key], where, advice)


def _check_feature(normalizer: Normalizer, key: str, feature: Feature, where: str, advice: str) -> None:
    mode, stats = normalizer.mode(key), normalizer.stats[key]
    absent = [name for name in STATISTICS[mode] if name not in stats]
    if absent:
        source = (
            "LeRobot's script augment_dataset_quantile_stats.py adds them to a dataset; then "
            if "QUANTILE" in mode
            else ""
        )
        raise ProcessorError(
            f"{where}: `{key}` is normalised by {mode}, which needs {_names(absent)}; "
            f"found {_names(stats)}: {source}{advice}"
        )
    size, source = _expected_size(normalizer, key, feature)
    for name in STATISTICS[mode]:
        # One number holds for all dimensions, as in LeRobot.
        if stats[name].shape not in ((size,), (1,)):
            raise ProcessorError(
                f"{where}: `{key}.{name}` must have shape [{size}], as {source}, "
                f"found {list(stats[name].shape)}: {advice}"
            )
        if not np.all(np.isfinite(stats[name])):
            raise ProcessorError(
                f"{where}: `{key}.{name}` is not finite in dimension(s) {_dimensions(~np.isfinite(stats[name]))} "
                f"(statistics that were never filled in): {advice}"
            )
    width, what = _spread(stats, mode)
    if np.any(width < 0):
        raise ProcessorError(
            f"{where}: `{key}`: {what} must not be negative, found so in dimension(s) {_dimensions(width < 0)}; "
            f"no data have such statistics, so the file is damaged: {advice}"
        )
    if np.any(width == 0) and normalizer.eps <= 0:
        raise ProcessorError(
            f"{where}: `{key}`: {what} is zero in dimension(s) {_dimensions(width == 0)}, and `eps` is {normalizer.eps:g}, so "
            "that inputs would be divided by zero: set `eps` of the normaliser to LeRobot's 1e-8"
        )


def _expected_size(normalizer: Normalizer, key: str, feature: Feature) -> tuple[int, str]:
    """How many numbers each statistic of a feature has, and where that is said."""
    if feature.type == "VISUAL":
        return _COLOURS, "an image has colours"
    if key == STATE:
        return state_width(normalizer) or 0, "its other statistic"
    return feature.shape[0], "the feature in config.json"


def _spread(stats: Mapping[str, np.ndarray], mode: str) -> tuple[np.ndarray, str]:
    """What normalised values are scaled by, and its name."""
    first, second = (stats[name] for name in STATISTICS[mode])
    return (second, "std") if mode == "MEAN_STD" else (second - first, " - ".join(reversed(STATISTICS[mode])))


def without_spread(normalizer: Normalizer, key: str, where: str) -> str | None:
    """A warning where the statistics of `key` know no spread in some dimension, for a normaliser that was checked."""
    mode = normalizer.mode(key)
    if mode == "IDENTITY":
        return None
    width, what = _spread(normalizer.stats[key], mode)
    if np.all(width > 0):
        return None
    centre = STATISTICS[mode][0]
    effect = (
        f"Actions stay at `{centre}` there, whatever the network says, and recorded actions off it become very large in training"
        if key == ACTION
        else f"A value off `{centre}` becomes very large there"
    )
    return (
        f"{where}: `{key}`: {what} is zero in dimension(s) {_dimensions(width == 0)}. {effect}: LeRobot computes the same. "
        "If the dimension moves on your robot, take the statistics of data in which it moves"
    )


def _names(keys: Mapping[str, object] | Sequence[str]) -> str:
    names = [f"`{key}`" for key in keys]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"


def _dimensions(wrong: np.ndarray) -> str:
    return ", ".join(str(i) for i in np.flatnonzero(wrong))


def check_mode(mode: str, where: str) -> str:
    """`mode` itself if it is one of LeRobot's; ProcessorError otherwise."""
    if mode not in NORMALIZATION_MODES:
        raise ProcessorError(
            f"{where}: normalisation mode must be one of {', '.join(NORMALIZATION_MODES)}, found {mode!r}"
        )
    return mode
