"""What a policy's files declare and LeRobot never reads, brought to what it goes by: the statistics."""

from __future__ import annotations

import json

from jaxreflow.policy.config import PolicyConfig, features_to_json
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.normalization import state_width, without_spread
from jaxreflow.policy.processors import (
    NORMALIZER,
    POSTPROCESSOR,
    PREPROCESSOR,
    UNNORMALIZER,
    Processors,
    dump_pipeline,
    parse_processors,
)


def fit_state(policy: PolicyConfig, processors: Processors) -> tuple[PolicyConfig, Processors]:
    """The policy and its processors with the width that the statistics of `observation.state` have; as they are if it agrees.

    LeRobot's fine-tunes keep the base's declared shape, whatever their robot's state, and LeRobot never reads it.
    """
    width = state_width(processors.normalizer)
    if not misdeclared_state(policy, processors) or width is None:
        return policy, processors
    fitted = policy.with_state_dim(width)
    return fitted, with_features(processors, fitted, inputs=(STATE,))


def misdeclared_state(policy: PolicyConfig, processors: Processors) -> str | None:
    """A warning where config.json declares another width of the state than the statistics have."""
    width = state_width(processors.normalizer)
    # Without a declaration nothing is wrong with a state that stays as it is.
    if width in (None, policy.state_dim) or not (policy.state_dim or processors.fixes_state_width):
        return None
    return (
        f"config.json declares `{STATE}` with {policy.state_dim or 'no'} dimension(s), the statistics have {width}. "
        f"LeRobot never reads the declared number, so {width} counts here too, and what is saved declares {width} "
        "(`python -m convert doctor DIR --fix` corrects this policy)"
    )


def with_features(processors: Processors, policy: PolicyConfig, inputs: tuple[str, ...] | None = None) -> Processors:
    """The same pipelines with the features and modes of the policy's config, or with no more than these `inputs` of it."""
    own = features_to_json({**policy.input_features, **policy.output_features})
    files = dict(processors.files)
    for name, registered in ((PREPROCESSOR, NORMALIZER), (POSTPROCESSOR, UNNORMALIZER)):
        pipeline = json.loads(files[name])
        config = next(s for s in pipeline["steps"] if s["registry_name"] == registered)["config"]
        before = json.dumps(config)
        if inputs is not None:
            config["features"] |= {key: own[key] for key in inputs if key in config["features"]}
        else:
            config["features"] = own if name == PREPROCESSOR else features_to_json(policy.output_features)
            config["norm_map"] = dict(policy.normalization_mapping)
        if json.dumps(config) != before:
            files[name] = dump_pipeline(pipeline)
    return parse_processors(files)


def surprises(policy: PolicyConfig, processors: Processors) -> list[str]:
    """Warnings of what sound statistics lead to: another state than declared, no spread, images that stay as they are."""
    normalizer = processors.normalizer
    sources = [(normalizer, key, PREPROCESSOR) for key in policy.used_inputs]
    found = [without_spread(*source) for source in sources]
    found.append(
        without_spread(processors.unnormalizer, ACTION, POSTPROCESSOR)
        or without_spread(normalizer, ACTION, PREPROCESSOR)
    )
    bare = [
        key for key in policy.used_inputs if key not in normalizer.stats and policy.input_features[key].type == "VISUAL"
    ]
    if bare and normalizer.norm_map.get("VISUAL", "IDENTITY") != "IDENTITY":
        found.append(
            f"{PREPROCESSOR}: there are no statistics of {', '.join(bare)}, so these images reach the network as they are. "
            "LeRobot does the same"
        )
    return [text for text in (misdeclared_state(policy, processors), *found) if text is not None]
