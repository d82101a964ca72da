"""Meta-World with LeRobot's observations, a fast renderer, and a wall that can be passed on two sides.

The stock pictures are those of LeRobot's `MetaworldEnv`: camera corner2, moved, both axes flipped, 480 x 480. The fast ones show
the same view without shadows, reflections and multisampling, at twice the wanted size and averaged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from jaxreflow.errors import ConfigError
from jaxreflow.sim.environment import EnvOptions, Recording
from jaxreflow.sim.metaworld_experts import WALL_DETOUR, make_expert
from jaxreflow.sim.rendering import fast_picture, fast_renderer, no_renderer, no_simulator

try:
    import metaworld
except Exception as error:  # A missing library shows itself as ImportError, AttributeError or a GL error of its own.
    raise no_simulator(f"Meta-World cannot be imported ({error!r})") from error

CAMERA = "corner2"
STOCK_SIZE = 480
# The fingers' tip, where Meta-World measures, lies 4.5 cm below the hand, which the expert steers and the policy sees.
HAND_RADIUS = 0.05
_CAMERA_POSITION = (0.75, 0.075, 0.7)

INSTRUCTIONS = {
    WALL_DETOUR: "Bypass a wall and reach a goal",
    "reach-v3": "Reach a goal position",
    "push-v3": "Push the puck to a goal",
    "pick-place-v3": "Pick and place a puck to a goal",
    "button-press-topdown-v3": "Press a button from the top",
    "drawer-open-v3": "Open a drawer",
    "drawer-close-v3": "Push and close a drawer",
    "door-open-v3": "Open a door with a revolving joint",
    "window-open-v3": "Push and open a window",
    "coffee-button-v3": "Push a button on the coffee machine",
    "handle-press-v3": "Press a handle down",
}


class MetaWorldEnv(gymnasium.Env):
    """One Meta-World task with a new layout per seed; `wall-detour` is reach-wall behind a wall that can only be passed sideways.

    Observations: `pixels` uint8 `[size, size, 3]` and `agent_pos`, the hand's position in metres and the gripper's opening.
    Actions: `[4]` in [-1, 1], the hand's displacement (1 is 1 cm) and the gripper's force.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012  # gymnasium's own declaration
    render_mode = "rgb_array"
    joints = slice(3)
    instructions = ()  # Each task has its own.
    default_max_steps = 200
    also_reports = ()
    recording = Recording(
        robot_type="sawyer",
        state_names=("x", "y", "z", "gripper"),
        action_names=("dx", "dy", "dz", "grab"),
        disturbed=(1.0, 1.0, 1.0, 0.0),
        disturbance=0.5,
        tail=5,
    )

    def __init__(self, task: str, *, render: str = "fast", size: int = 96, max_steps: int = 200) -> None:
        """
        Raises:
            ConfigError: Meta-World has no such task.
        """
        self.task = task
        self.task_description = INSTRUCTIONS.get(task, task.removesuffix("-v3").replace("-", " ").capitalize())
        self.max_steps = max_steps
        self.renders = True
        self._stock = render == "stock"
        self._size = STOCK_SIZE if self._stock else size
        self._env = _make_task("reach-wall-v3" if task == WALL_DETOUR else task)
        if task == WALL_DETOUR:
            _raise_wall(self._env.model)
        self._renderer: Any = None
        self._pixels = np.zeros((self._size, self._size, 3), np.uint8)
        self._steps = 0
        self._grip = 0.0
        self.raw_observation = np.zeros(39)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Box(0, 255, self._pixels.shape, np.uint8),
                "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """Starts an episode whose layout depends on `seed` alone, if one is given."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._env.seed(seed)
        self.raw_observation, _ = self._env.reset(seed=seed)
        self._steps, self._grip = 0, 0.0
        return self._observe(), {"is_success": False}

    def hold(self) -> Float[np.ndarray, " 4"]:
        """No displacement, and the gripper's last force."""
        return np.array([0.0, 0.0, 0.0, self._grip], np.float32)

    def step(self, action: Float[np.ndarray, " 4"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One step of 1/80 s; the episode ends with success, or after `max_steps`."""
        command = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        self.raw_observation, reward, *_, info = self._env.step(command)
        self._steps, self._grip = self._steps + 1, float(command[3])
        if self.task == WALL_DETOUR:
            success = float(np.linalg.norm(self.raw_observation[:3] - self.raw_observation[-3:])) <= HAND_RADIUS
        else:
            success = bool(info["success"])
        truncated = not success and self._steps >= self.max_steps
        return self._observe(), float(reward), success, truncated, {"is_success": success}

    def expert(self, random: np.random.Generator) -> Callable[[], Float[np.ndarray, " 4"]]:
        """The task's scripted expert for the next episode; ConfigError if Meta-World has none."""
        expert = make_expert(self.task, random)

        def act() -> Float[np.ndarray, " 4"]:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Constant")  # They ask for more than an action can be.
                return np.clip(expert(self.raw_observation), -1.0, 1.0).astype(np.float32)

        return act

    @staticmethod
    def cameras(options: EnvOptions) -> dict[str, tuple[int, int]]:
        """Height and width of the picture, by the name that policies know."""
        size = STOCK_SIZE if options.render == "stock" else options.size
        return {"observation.image": (size, size)}

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The scene as it is now."""
        picture = self._stock_picture() if self._stock else self._fast_picture()
        return np.ascontiguousarray(np.flip(picture, (0, 1)))

    def close(self) -> None:
        """Frees the renderers."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _observe(self) -> dict[str, Any]:
        if self.renders:
            self._pixels = self.render()
        return {"pixels": self._pixels, "agent_pos": self.raw_observation[:4].copy()}

    def _stock_picture(self) -> np.ndarray:
        try:
            return self._env.render()
        except Exception as error:
            raise no_renderer(error) from error

    def _fast_picture(self) -> np.ndarray:
        if self._renderer is None:
            try:
                self._renderer = fast_renderer(self._env.model, self._size, self._size)
            except Exception as error:
                raise no_renderer(error) from error
        return fast_picture(self._renderer, self._env.data, CAMERA)


def _make_task(name: str) -> Any:
    if name not in metaworld.ALL_V3_ENVIRONMENTS:
        known = ", ".join([WALL_DETOUR, *sorted(metaworld.ALL_V3_ENVIRONMENTS)])
        raise ConfigError(f"--env: Meta-World has no task {name!r}; expected one of {known}")
    benchmark = metaworld.MT1(name, seed=42)
    env = benchmark.train_classes[name](
        render_mode="rgb_array", camera_name=CAMERA, width=STOCK_SIZE, height=STOCK_SIZE
    )
    env.set_task(benchmark.train_tasks[0])
    env.model.cam_pos[env.model.camera(CAMERA).id] = _CAMERA_POSITION
    env.reset()
    # A new layout per episode, drawn from the seed; the benchmark's own tasks would freeze it.
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    return env


def _raise_wall(model: Any) -> None:
    """Centres the wall and makes it too tall to pass over; it is see-through, for the goal lies behind it."""
    wall = model.body("wall").id
    model.body_pos[wall] = [0.0, 0.75, 0.2]
    for geom in np.flatnonzero(model.geom_bodyid == wall):
        model.geom_size[geom] = [0.10, 0.01, 0.2]
        model.geom_rbound[geom] = np.linalg.norm(model.geom_size[geom])
        if model.geom_matid[geom] >= 0 or model.geom_rgba[geom, 3] > 0:
            model.geom_matid[geom] = -1
            model.geom_rgba[geom] = [0.45, 0.55, 0.75, 0.30]
    goal = model.site("goal").id
    model.site_size[goal] = 0.035
    model.site_rgba[goal] = [1.0, 0.1, 0.9, 1.0]
