"""`adapt_to_pi_aloha`: Aloha's joint signs and gripper scale against those of the data that SmolVLA was pretrained on.

LeRobot applies these maps inside the policy, after normalising the state and before unnormalising the actions; so does
jaxreflow. Dimensions 1, 2, 8, 9 are joints of the other sign, 6 and 13 the grippers.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from jaxreflow.errors import ConfigError

FLIPPED_JOINTS = [1, 2, 8, 9]
GRIPPERS = [6, 13]

# Aloha's puppet gripper in metres, its linkage (Interbotix), the angles measured on a Trossen robot, and Aloha's joint.
LINEAR_RANGE = (0.01844, 0.05800)
ARM_LENGTH, HORN_RADIUS = 0.036, 0.022
ANGLE_RANGE = (0.4, 1.5)
JOINT_RANGE = (-0.6213, 1.4910)


def decode_state(state: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
    """Aloha's state -> the policy's: joints flipped, grippers from linear to angular. Needs 14 dimensions."""
    state = _flip_joints(state)
    linear = _from_unit(state[..., GRIPPERS], LINEAR_RANGE)
    sine = (HORN_RADIUS**2 + linear**2 - ARM_LENGTH**2) / (2 * HORN_RADIUS * linear)
    state[..., GRIPPERS] = _to_unit(np.arcsin(np.clip(sine, -1.0, 1.0)), ANGLE_RANGE)
    return state


def encode_actions(actions: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
    """The policy's actions -> Aloha's: joints flipped, grippers to the range of Aloha's joint."""
    actions = _flip_joints(actions)
    actions[..., GRIPPERS] = _to_unit(_from_unit(actions[..., GRIPPERS], ANGLE_RANGE), JOINT_RANGE)
    return actions


def encode_actions_inv(actions: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
    """Aloha's actions -> the policy's, for training: the inverse of `encode_actions`."""
    actions = _flip_joints(actions)
    actions[..., GRIPPERS] = _to_unit(_from_unit(actions[..., GRIPPERS], JOINT_RANGE), ANGLE_RANGE)
    return actions


def _flip_joints(x: np.ndarray) -> np.ndarray:
    if x.shape[-1] < 14:
        raise ConfigError(
            f"config.json: `adapt_to_pi_aloha` is true: Aloha has 14 state and action dimensions, found {x.shape[-1]}"
        )
    x = x.copy()
    x[..., FLIPPED_JOINTS] *= -1
    return x


def _to_unit(x: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return (x - ends[0]) / (ends[1] - ends[0])


def _from_unit(x: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return x * (ends[1] - ends[0]) + ends[0]
