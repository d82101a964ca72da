"""A scripted expert for TransferCube: waypoints, joint targets by inverse kinematics, and two ways to hand over."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import mujoco
import numpy as np
from jaxtyping import Float

JOINT_NAMES = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
# The point between the fingers lies so far ahead of the gripper's link, in metres.
PINCH = 0.135
# Change per step: of a gripper's place in metres, of angles in radians, of a gripper's opening.
SPEED, TURN, ROLL, GRIP = 0.010, 0.04, 0.06, 0.15
MEETING_POINT = np.array([0.0, 0.5, 0.25])
_DOWN, _LEVEL = math.radians(75), math.radians(40)
# Of the inverse kinematics: metres per radian, and Levenberg's damping.
_ROTATION_WEIGHT, _DAMPING = 0.3, 1e-4
_UNDECIDED = 13
"""Steps, at most, in which the way of an episode does not show."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What both arms do until it is done."""

    right: tuple[str, float] | None
    """Where the right gripper goes: metres above the `cube`, the `floor` below it, or the `meeting` point. None: it stays."""
    pitch: float
    right_opening: float
    steps: int = 0
    """It lasts at least so many steps."""
    left_takes: bool = False
    """The left gripper goes to the cube instead of waiting beside the meeting point."""
    left_opening: float = 1.0


STAGES = (
    Stage(("cube", 0.08), _DOWN, 1.0),
    Stage(("floor", 0.018), _DOWN, 1.0),
    Stage(None, _DOWN, 0.0, steps=12),
    Stage(("meeting", 0.0), _LEVEL, 0.0),
    Stage(None, _LEVEL, 0.0, left_takes=True),
    Stage(None, _LEVEL, 0.0, steps=15, left_takes=True, left_opening=0.0),
)
_WAITING = np.array([-0.12, 0.0, 0.0])


@runtime_checkable
class Scene(Protocol):
    """What the expert knows of the environment: MuJoCo's model and data, and where the cube is, in metres."""

    @property
    def model(self) -> Any: ...
    @property
    def data(self) -> Any: ...
    @property
    def cube(self) -> Float[np.ndarray, " 3"]: ...


class TransferExpert:
    """The right arm lifts the cube to a meeting point; the left one comes, its wrist turned by +90 or -90 degrees, and closes.

    Which way it turns is drawn per episode, and does not show in the first 0 to 12 steps.
    """

    def __init__(self, env: Scene, random: np.random.Generator) -> None:
        self._env = env
        self._roll_goal = np.deg2rad(random.choice((-90, 90)))
        self._undecided = int(random.integers(0, _UNDECIDED))
        self._left: Gripper | None = None
        self._right: Gripper | None = None
        self._stage, self._steps, self._roll, self._pitch = 0, 0, 0.0, 0.0
        self._openings = np.full(2, 0.1)

    def act(self) -> Float[np.ndarray, " 14"]:
        """The next joint targets, from where the cube is."""
        left, right = self._grippers()
        stage, cube = STAGES[self._stage], self._env.cube
        done = right.move_to(_place(stage, cube, right.place))
        self._pitch, turned = _towards(self._pitch, stage.pitch, TURN)
        arrived = left.move_to(cube if stage.left_takes else MEETING_POINT + _WAITING)
        self._turn_wrist()
        goals = np.array([stage.left_opening, stage.right_opening])
        self._openings += np.clip(goals - self._openings, -GRIP, GRIP)
        self._steps += 1
        done = done and turned and (arrived or not stage.left_takes) and self._steps >= stage.steps
        if done and self._stage < len(STAGES) - 1:
            self._stage, self._steps = self._stage + 1, 0
        left_joints = left.joints_for(_turn("x", self._roll))
        right_joints = right.joints_for(_turn("z", np.pi) @ _turn("y", self._pitch))
        return np.concatenate([left_joints, self._openings[:1], right_joints, self._openings[1:]])

    def _grippers(self) -> tuple[Gripper, Gripper]:
        if self._left is None or self._right is None:
            self._left, self._right = (Gripper(self._env, arm) for arm in ("left", "right"))
            self._pitch = float(np.arcsin(-self._right.rotation[2, 0]))
        return self._left, self._right

    def _turn_wrist(self) -> None:
        if self._undecided:
            self._undecided -= 1
        else:
            self._roll, _ = _towards(self._roll, self._roll_goal, ROLL)


def _place(stage: Stage, cube: np.ndarray, now: np.ndarray) -> np.ndarray:
    if stage.right is None:
        return now
    anchor, height = stage.right
    return {"cube": cube, "floor": cube * (1, 1, 0), "meeting": MEETING_POINT}[anchor] + (0, 0, height)


def _towards(value: float, goal: float, step: float) -> tuple[float, bool]:
    new = float(np.clip(goal, value - step, value + step))
    return new, bool(abs(new - goal) < 1e-3)


def _turn(axis: str, angle: float) -> Float[np.ndarray, "3 3"]:
    rotation = np.zeros(9)
    quaternion = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quaternion, np.eye(3)["xyz".index(axis)], angle)
    mujoco.mju_quat2Mat(rotation, quaternion)
    return rotation.reshape(3, 3)


class Gripper:
    """One arm's point between the fingers: where it shall be, and the joints that bring it there."""

    def __init__(self, env: Scene, arm: str) -> None:
        self._model, self._data = env.model, mujoco.MjData(env.model)
        self._data.qpos[:] = env.data.qpos
        joints = [env.model.joint(f"vx300s_{arm}/{name}").id for name in JOINT_NAMES]
        self._range, self._dofs = env.model.jnt_range[joints].T, env.model.jnt_dofadr[joints]
        self._positions = env.model.jnt_qposadr[joints]
        self._link = env.model.body(f"vx300s_{arm}/gripper_link").id
        self._joints = env.data.qpos[self._positions].copy()
        self.place, self.rotation = self._pose()

    def move_to(self, place: Float[np.ndarray, " 3"]) -> bool:
        """Moves the wanted place on by one step; whether it is there."""
        way = place - self.place
        length = float(np.linalg.norm(way))
        self.place = place.copy() if length <= SPEED else self.place + way * (SPEED / length)
        return length <= SPEED

    def joints_for(self, rotation: Float[np.ndarray, "3 3"], iterations: int = 8) -> Float[np.ndarray, " 6"]:
        """Joints for the wanted place and rotation, by damped least squares from the last ones."""
        for _ in range(iterations):
            place, now = self._pose()
            error = np.concatenate([self.place - place, _ROTATION_WEIGHT * _turn_between(now, rotation)])
            if np.linalg.norm(error) < 1e-4:
                break
            jacobian = self._jacobian(place)
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING * np.eye(6), error)
            self._joints = np.clip(self._joints + np.clip(step, -0.3, 0.3), *self._range)
        return self._joints

    def _pose(self) -> tuple[np.ndarray, np.ndarray]:
        self._data.qpos[self._positions] = self._joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        rotation = self._data.xmat[self._link].reshape(3, 3).copy()
        return self._data.xpos[self._link] + PINCH * rotation[:, 0], rotation

    def _jacobian(self, place: np.ndarray) -> np.ndarray:
        shift, turn = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        mujoco.mj_jac(self._model, self._data, shift, turn, place, self._link)
        return np.vstack([shift[:, self._dofs], _ROTATION_WEIGHT * turn[:, self._dofs]])


def _turn_between(now: np.ndarray, goal: np.ndarray) -> Float[np.ndarray, " 3"]:
    """The rotation vector that turns one orientation into the other."""
    quaternions: Any = np.zeros((2, 4))
    for quaternion, rotation in zip(quaternions, (now, goal), strict=True):
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).reshape(9))
    vector = np.zeros(3)
    mujoco.mju_subQuat(vector, quaternions[1], quaternions[0])
    # mju_subQuat gives it in the frame of the second.
    return now @ vector
