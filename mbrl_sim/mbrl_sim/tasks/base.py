"""What all simulated tasks share. A task is one Python file and the MJCF of the same name beside it.

Nothing here imports MuJoCo or torch: planners use a task's reward without a simulator, the simulator uses
a task without a learning library.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Element, Spec

if TYPE_CHECKING:
    from mbrl_sim.physics import Physics

Array = Any  # a numpy array or a torch tensor
State = tuple[NDArray[np.float64], NDArray[np.float64]]  # qpos [nq], qvel [nv]


class MujocoTask:
    """A task in MuJoCo: what is wanted, and how its world looks.

    The simulator measures a reward once a *frame* and adds up the `action_repeat` frames of a control
    period. A planner sees only the ends of a period, so `reward` takes its last frame for all of them.

    Observations are [..., D] in SI units, actions [..., A] scaled to [-1, 1]; numpy or torch alike.
    A task may also define `after_step(qpos, qvel, timestep)`, called after each physics step, which changes
    positions [..., nq] and velocities [..., nv] in place, `success(obs)`: whether its aim is met, bool
    [...], by which a run is judged, and `edit(mjcf)`, which changes the MJCF (a mujoco.MjSpec) once it is
    read.

    Args:
        action_repeat: frames in a control period; None = as the task says. `max_steps` is scaled with it, so
            that an episode lasts as long.

    Raises:
        UserError: `action_repeat` is less than 1.
    """

    name: ClassVar[str]
    mjcf: ClassVar[Path]  # the world
    observation: ClassVar[tuple[Element, ...]]
    action: ClassVar[tuple[Element, ...]]  # limits = gear x ctrlrange of the MJCF's actuators
    frame: ClassVar[float]  # time between two measured rewards, a multiple of the MJCF's timestep [s]
    action_repeat: int = 1  # frames in a control period
    goal: ClassVar[str] = ""  # body that shows what is to be reached (mbrl_sim/goal.py); empty = none
    max_steps: int = 1000  # control periods until an episode is truncated [steps]

    def __init__(self, action_repeat: int | None = None) -> None:
        if action_repeat is not None:
            if action_repeat < 1:
                raise UserError(f"action_repeat is {action_repeat}, but it must be at least 1")
            self.max_steps = max(1, round(self.max_steps * self.action_repeat / action_repeat))
            self.action_repeat = action_repeat
        self.spec = Spec(
            task=self.name,
            observation=self.observation,
            action=self.action,
            control_period=round(self.frame * self.action_repeat, 9),
        )

    def sample_initial_state(self, rng: np.random.Generator, model: Any) -> State:
        """Draw where an episode begins."""
        raise NotImplementedError

    def observe(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Observation [..., D] of positions [..., nq] and velocities [..., nv]."""
        raise NotImplementedError

    def frame_reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Reward of one frame, [...]."""
        raise NotImplementedError

    def reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Reward of one control period, [...]."""
        reward = self.frame_reward(obs, action, next_obs)
        return reward if self.action_repeat == 1 else self.action_repeat * reward

    def terminated(self, next_obs: Array) -> Array | None:
        """Whether the task ended, bool [...]; None where it never does."""
        return None

    def make_simulator(self, seed: int | None = None, image_size: int = 0, camera: str = "") -> Physics:
        """The task's world; see mbrl_sim.simulator.Simulator."""
        from mbrl_sim.simulator import Simulator  # only now: a planner has the task without MuJoCo

        return Simulator(self, seed, image_size, camera)

    def pose(self, obs: Array) -> Array:
        """Qpos [..., nq] that looks like an observation, to draw what was recorded or predicted."""
        raise NotImplementedError

    def motion(self, obs: Array) -> Array:
        """Qvel [..., nv] of an observation; with `pose`, the state that a model in MuJoCo begins with."""
        raise NotImplementedError

    def points(self, obs: Array) -> Array:
        """A few telling points [..., K, 3] of the robot in the world [m], the most telling one first."""
        raise NotImplementedError


def gaussian(x: Array, margin: float, value_at_margin: float = 0.1) -> Array:
    """1 where x is 0, `value_at_margin` where it is `margin` away; a bell in between and beyond.

    The `tolerance` of dm_control.utils.rewards with bounds (0, 0).
    """
    xp = array_namespace(x)
    return xp.exp((math.log(value_at_margin) / margin**2) * (x * x))


def quadratic(x: Array, margin: float, value_at_margin: float = 0.0) -> Array:
    """1 where x is 0, `value_at_margin` where it is `margin` away; a parabola until it reaches 0, then 0.

    The `tolerance` of dm_control.utils.rewards with bounds (0, 0) and sigmoid="quadratic".
    """
    return (1.0 - ((1.0 - value_at_margin) / margin**2) * (x * x)).clip(min=0.0)


def inside(x: Array, low: float, high: float) -> Array:
    """1 where low <= x <= high, else 0: the `tolerance` of dm_control.utils.rewards without a margin."""
    xp = array_namespace(x)
    return xp.astype((x >= low) & (x <= high), x.dtype)
