"""gym-aloha's TransferCube: two arms, 14 joint targets, and one picture where somebody looks instead of three a step.

Physics, resets by seed, reward and success are gym-aloha's own, as LeRobot runs them (`--env.type=aloha
--env.task=AlohaTransferCube-v0`). The stock pictures are those of its camera `top`, 480 x 640. The fast ones show the same view
without shadows, reflections and multisampling, at twice the wanted size and averaged; they are as wide as `--options.size` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from jaxreflow.errors import ConfigError
from jaxreflow.sim.environment import EnvOptions, Recording
from jaxreflow.sim.rendering import fast_picture, fast_renderer, no_renderer, no_simulator

try:
    from dm_control.rl.control import PhysicsError
    from gym_aloha.constants import ACTIONS, JOINTS
    from gym_aloha.env import AlohaEnv as StockEnv
except Exception as error:  # A missing library shows itself as ImportError, AttributeError or a GL error of its own.
    raise no_simulator(f"gym-aloha cannot be imported ({error!r})") from error

TASK, CAMERA, STOCK_SIZE = "transfer-cube", "top", (480, 640)
# What LeRobot 0.6.1 tells a policy, and LeRobot 0.4.4. Demonstrations have both.
INSTRUCTIONS = ("transfer_cube", "")
LIFTED_BY_LEFT = 4
"""gym-aloha's largest reward: the left gripper touches the cube, and the table does not."""
# After stock success an episode goes on for half a second at most, so that a handover can be seen.
GRACE = 25
_ARM = np.array([*range(6), *range(7, 13)])


class AlohaEnv(gymnasium.Env):
    """A cube lies before the right arm, which has to lift it and hand it over to the left one.

    Observations: `pixels`, a dict of `top`, uint8, and `agent_pos` `[14]`: six joints in radians and the gripper's opening (0 is
    closed, 1 open) of the left arm, then of the right one. Actions `[14]` are targets for the same; they reach beyond [-1, 1].

    `is_success` is gym-aloha's: a finger of the left gripper touches the lifted cube. `handover` is stricter: both its fingers do.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012  # gymnasium's own declaration
    render_mode = "rgb_array"
    joints = _ARM
    instructions = INSTRUCTIONS
    default_max_steps = 400
    also_reports = ("handover",)
    recording = Recording(
        robot_type="aloha",
        state_names=tuple(JOINTS),
        action_names=tuple(ACTIONS),
        disturbed=(1.0,) * 6 + (0.0,) + (1.0,) * 6 + (0.0,),
        disturbance=0.03,
        tail=10,
    )

    def __init__(self, task: str, *, render: str = "fast", size: int = 96, max_steps: int = 400) -> None:
        """
        Raises:
            ConfigError: there is no such task.
        """
        if task != TASK:
            raise ConfigError(f"--env: aloha has no task {task!r}; expected {TASK}")
        self.task, self.task_description, self.max_steps = task, INSTRUCTIONS[0], max_steps
        self.renders = True
        self._stock = render == "stock"
        self._env = StockEnv("transfer_cube", obs_type="pixels_agent_pos")
        self._physics = self._env._env.physics
        # The stock task renders three pictures of 480 x 640 for every observation, of which one is used.
        self._env._env.task.get_observation = self._seen
        ((_, shape),) = self.cameras(EnvOptions(render="stock" if self._stock else "fast", size=size)).items()
        self._pixels = np.zeros((*shape, 3), np.uint8)
        self._observation: dict[str, Any] = {}
        self._renderer: Any = None
        self._steps, self._since_success, self._last = 0, 0, np.zeros(14)
        picture = gymnasium.spaces.Box(0, 255, self._pixels.shape, np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict({CAMERA: picture}),
                "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (14,), np.float64),
            }
        )
        self.action_space = gymnasium.spaces.Box(-np.pi, np.pi, (14,), np.float32)

    @staticmethod
    def cameras(options: EnvOptions) -> dict[str, tuple[int, int]]:
        """Height and width of the pictures, by the names that policies know."""
        fast = (options.size * STOCK_SIZE[0] // STOCK_SIZE[1], options.size)
        return {f"observation.images.{CAMERA}": STOCK_SIZE if options.render == "stock" else fast}

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return self._physics.model.ptr

    @property
    def data(self) -> Any:
        """MuJoCo's data."""
        return self._physics.data.ptr

    @property
    def cube(self) -> Float[np.ndarray, " 3"]:
        """Where the cube is, in metres."""
        return self.data.qpos[16:19].copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """Starts an episode; the cube's place depends on `seed` alone, if one is given."""
        super().reset(seed=seed, options=options)
        self._steps = self._since_success = 0
        self._observation, _ = self._env.reset(seed=seed)
        self._last = np.asarray(self._observation["agent_pos"], np.float64)
        return self._observation, {"is_success": False, "handover": False}

    def step(self, action: Float[np.ndarray, " 14"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One step of 1/50 s; the episode ends half a second after success, with a handover, or after `max_steps`.

        It also ends, as it stands, where the physics breaks. gym-aloha raises an error there.
        """
        self._last = np.asarray(action, np.float64)
        try:
            self._observation, reward, *_ = self._env.step(self._last)
        except PhysicsError:  # Such actions throw the arms about until MuJoCo gives up.
            return self._observation, 0.0, True, False, {"is_success": self._since_success > 0, "handover": False}
        self._steps += 1
        if self._since_success or reward == LIFTED_BY_LEFT:
            self._since_success += 1
        handover = self._since_success > 0 and reward == LIFTED_BY_LEFT and self._left_grips()
        success = self._since_success > 0
        over = handover or self._since_success > GRACE
        truncated = not over and self._steps >= self.max_steps
        return self._observation, float(reward), over, truncated, {"is_success": success, "handover": handover}

    def hold(self) -> Float[np.ndarray, " 14"]:
        """The last targets."""
        return self._last

    def expert(self, random: np.random.Generator) -> Callable[[], Float[np.ndarray, " 14"]]:
        """The scripted expert of the next episode; it hands over in one of two ways, drawn from `random`."""
        from jaxreflow.sim.aloha_expert import TransferExpert

        return TransferExpert(self, random).act

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The scene as it is now."""
        try:
            return self._picture()
        except Exception as error:
            raise no_renderer(error) from error

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _seen(self, physics: Any) -> dict[str, Any]:
        """In place of the stock task's observation, which the stock environment reads."""
        if self.renders:
            self._pixels = self.render()
        return {"qpos": self._env._env.task.get_qpos(physics), "images": {CAMERA: self._pixels}}

    def _picture(self) -> np.ndarray:
        if self._stock:
            return self._physics.render(*STOCK_SIZE, camera_id=CAMERA)
        if self._renderer is None:
            self._renderer = fast_renderer(self.model, *self._pixels.shape[:2])
        return fast_picture(self._renderer, self.data, CAMERA)

    def _left_grips(self) -> bool:
        name, contacts = self.model.geom, self.data.contact[: self.data.ncon]
        pairs = {frozenset((name(c.geom1).name, name(c.geom2).name)) for c in contacts}
        fingers = (f"vx300s_left/10_{side}_gripper_finger" for side in ("left", "right"))
        return all(frozenset(("red_box", finger)) in pairs for finger in fingers)
