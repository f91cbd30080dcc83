"""What the adapters share: an environment of another library as a task and a simulator of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec
from mbrl_sim.adapters.translate import sentence
from mbrl_sim.drawing import Drawing
from mbrl_sim.physics import Physics, StepResult
from mbrl_sim.tasks.base import MujocoTask

Array = Any  # a numpy array or a torch tensor
LONG = 1000  # frames in an episode of an environment without a limit


def never(next_obs: Array) -> None:
    """The termination of a task that never ends."""


@dataclass(frozen=True)
class Hint:
    """What we know of an environment's task; None = only the world knows.

    Functions of the observation [..., D] at the end of a control period, numpy or torch alike.
    """

    reward: Callable[[Array], Array] | None = None  # of one frame [...]
    terminated: Callable[[Array], Array | None] | None = None  # bool [...], or None where it never ends
    angles: tuple[int, ...] = ()  # places, in the environment's observation, of angles that can grow for ever
    twin: type[MujocoTask] | None = None  # the same world with an MJCF of ours, which planners can simulate


class AdaptedTask:
    """A task behind the Task protocol whose reward only its world knows, unless there is a hint.

    Args:
        spec: its interface, with the control period of a single frame.
        frames: in an episode.
        action_repeat: frames in a control period; None = 1.
        hint: what planners can know.
        make: the world, from the task, a seed and the arguments of the images.

    Attributes:
        frame: time between two rewards [s].
        max_steps: control periods until an episode is truncated [steps].

    Raises:
        UserError: `action_repeat` is less than 1.
    """

    def __init__(
        self, spec: Spec, frames: int, action_repeat: int | None, hint: Hint, make: Callable[..., Physics]
    ) -> None:
        self.action_repeat = 1 if action_repeat is None else action_repeat
        if self.action_repeat < 1:
            raise UserError(f"action_repeat is {action_repeat}, but it must be at least 1")
        self.frame = spec.control_period
        self.spec = Spec(spec.task, spec.observation, spec.action, round(self.frame * self.action_repeat, 9))
        self.max_steps = max(1, round(frames / self.action_repeat))
        self.name = spec.task
        self._hint, self._make = hint, make

    @property
    def knows_reward(self) -> bool:
        """Whether `reward` is known to planners."""
        return self._hint.reward is not None

    @property
    def twin(self) -> MujocoTask | None:
        """The same world as a task of ours, whose state an observation tells; None = there is none."""
        return None if self._hint.twin is None else self._hint.twin(self.action_repeat)

    def reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Reward of one control period, [...], of which the last frame is taken for all.

        Raises:
            NotImplementedError: only the world knows it.
        """
        if self._hint.reward is None:
            raise NotImplementedError(f"only the world knows the reward of '{self.name}'")
        return self.action_repeat * self._hint.reward(next_obs)

    def terminated(self, next_obs: Array) -> Array | None:
        """Whether the task ended, bool [...]; None where it never does.

        Raises:
            NotImplementedError: only the world knows it.
        """
        if self._hint.terminated is None:
            raise NotImplementedError(f"only the world knows when '{self.name}' terminates")
        return self._hint.terminated(next_obs)

    def make_simulator(self, seed: int | None = None, image_size: int = 0, camera: str = "") -> Physics:
        """The task's world; see mbrl_sim.physics.SimTask."""
        try:
            return self._make(self, seed, image_size, camera)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # some worlds cannot be without a renderer, and each library fails its own way
            raise UserError(f"the world of '{self.name}' cannot be made: {sentence(error)}") from error


@dataclass(frozen=True)
class Frame:
    """What came of one step of the environment."""

    observation: NDArray[np.float64]  # [D]
    reward: float
    terminated: bool = False
    truncated: bool = False
    fault: str = ""


class AdaptedSimulator(Drawing):
    """The world of an AdaptedTask. A subclass says how its environment begins and steps.

    Every episode is seeded: an unseeded reset draws its seed from a sequence of the simulator's own.

    Args:
        task: what is simulated.
        seed: of that sequence; None = from the operating system.
        model, data, image_size, camera: see Drawing.
    """

    def __init__(
        self, task: AdaptedTask, seed: int | None, model: Any, data: Any, image_size: int, camera: str
    ) -> None:
        self.task = task
        self._rng = np.random.default_rng(seed)
        self._frames = 0  # simulated since the episode began
        self._newest = Frame(np.zeros(task.spec.observation_dim), 0.0)
        self.reset()
        super().__init__(model, data, image_size, camera)

    @property
    def time(self) -> float:
        """Simulated time since the episode began [s]."""
        return self._frames * self.task.frame

    def reset(self, seed: int | None = None, initial_state: ArrayLike | None = None) -> NDArray[np.float64]:
        """Begin an episode, as the environment does with this seed.

        Args:
            seed: of the episode; None = the next one of the simulator's own sequence.
            initial_state: qpos, then qvel; the rest, such as a target, is still drawn.

        Returns:
            The first observation [D].

        Raises:
            UserError: `initial_state` cannot be; nothing is changed.
        """
        if initial_state is not None:
            initial_state = self._checked_state(initial_state)
        observation = self._begin(int(self._rng.integers(2**31)) if seed is None else seed)
        if initial_state is not None:
            observation = self._put(np.asarray(initial_state))
        self._frames, self._newest = 0, Frame(observation, 0.0)
        return observation.copy()

    def step(self, action: ArrayLike) -> StepResult:
        """Simulate one control period; it is cut short where the environment ends.

        Raises:
            ValueError: the action has the wrong length or is not finite.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (self.task.spec.action_dim,) or not np.isfinite(values).all():
            raise ValueError(f"the action must be {self.task.spec.action_dim} finite values, not {action!r}")
        reward = self._advance(values, self.task.action_repeat)
        newest = self._newest
        return StepResult(
            newest.observation.copy(), reward, newest.terminated, newest.fault, newest.truncated
        )

    def coast(self, action: ArrayLike, periods: int) -> str:
        """Simulate whole control periods without rewarding them, as far as the environment goes."""
        self._advance(np.asarray(action, dtype=np.float64), periods * self.task.action_repeat)
        return self._newest.fault

    def _advance(self, action: NDArray[np.float64], frames: int) -> float:
        """Step the environment until it ends; the sum of its rewards."""
        total = 0.0
        for _ in range(frames):
            if self._newest.terminated or self._newest.truncated or self._newest.fault:
                break
            frame = self._frame(action)
            if not frame.fault and not np.isfinite(frame.observation).all():
                frame = Frame(frame.observation, 0.0, fault="an observation is not finite")
            if frame.fault:
                frame = Frame(self._newest.observation, 0.0, fault=frame.fault)
            self._newest = frame
            self._frames += 1
            total += frame.reward
        return total

    def _begin(self, seed: int) -> NDArray[np.float64]:
        """Begin an episode; the first observation [D]."""
        raise NotImplementedError

    def _frame(self, action: NDArray[np.float64]) -> Frame:
        """Step the environment once with an action [A]."""
        raise NotImplementedError

    def _checked_state(self, state: ArrayLike) -> NDArray[np.float64]:
        """An initial state that `_put` takes; UserError where it is none."""
        raise UserError(f"the world of '{self.task.name}' cannot begin in a given state")

    def _put(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring the world into a state; its observation [D]."""
        raise NotImplementedError
