"""Many worlds of one task, stepped together in lock-step and without ROS: what `mbrl train` learns in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_sim.world_process import LocalWorld, Order, WorldProcess


class _Seat(Protocol):
    """One world, here or in another process. All worlds are asked before the first result is taken."""

    def ready(self) -> Spec: ...

    def ask_reset(self, seed: int | None) -> None: ...

    def ask_step(self, action: NDArray[np.float64]) -> None: ...

    def result(self) -> Transition: ...

    def close(self) -> None: ...


class Worlds(AbstractContextManager["Worlds"]):
    """`count` worlds of one task.

    The same seeds and actions give the same transitions, in this process or in others.

    Args:
        task: an installed task, or package.module:Class.
        count: how many worlds.
        seed: of the initial states; each world draws a sequence of its own from it.
        processes: whether each world lives in a process of its own. These end with `close`, and if this
            process ends in any way.
        action_repeat: frames in a control period; 0 = as the task says.
        image_size: height and width of an image in each transition; 0 = none [px].
        camera: of the image; empty = the first one of the world.

    Attributes:
        task: the task; planners may use its reward.
        spec: of all the worlds, with the camera of the images.
        max_steps: an episode is truncated after so many steps [steps].

    Raises:
        UserError: there is no such task, or images are wanted and cannot be drawn.
    """

    def __init__(
        self,
        task: str,
        count: int = 1,
        *,
        seed: int = 0,
        processes: bool = False,
        action_repeat: int = 0,
        image_size: int = 0,
        camera: str = "",
    ) -> None:
        if count < 1:
            raise ValueError(f"there must be at least one world, not {count}")
        self.task = make_task(task, action_repeat)
        self.max_steps: int = self.task.max_steps
        self._newest: list[Transition | None] = [None] * count
        self._seats: list[_Seat] = []
        try:
            for index in range(count):
                own = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
                order = Order(task, own, action_repeat, image_size, camera)
                self._seats.append(WorldProcess(order, f"world {index}") if processes else LocalWorld(order))
            (self.spec, *_) = [seat.ready() for seat in self._seats]
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._newest)

    def reset(self, index: int, seed: int | None = None) -> Transition:
        """Begin an episode in one world; its first transition.

        Args:
            index: which world.
            seed: of the initial state; None = the next one of the world's own sequence.

        Raises:
            RuntimeError: a world's process died, or failed; all worlds are closed then.
        """
        return self._ask([index], lambda seat, _: seat.ask_reset(seed))[0]

    def reset_all(self, seeds: Sequence[int] | None = None) -> list[Transition]:
        """Begin an episode in every world; `seeds` [count] as in `reset`."""
        if seeds is not None and len(seeds) != len(self):
            raise ValueError(f"there are {len(seeds)} seeds for {len(self)} worlds")
        return self._ask(
            range(len(self)), lambda seat, index: seat.ask_reset(None if seeds is None else int(seeds[index]))
        )

    def step(self, actions: NDArray[np.float64]) -> list[Transition]:
        """Simulate one control period in every world.

        Args:
            actions: [count, A], SI; limits are applied, and the transitions tell what was executed.

        Raises:
            ValueError: the actions have the wrong shape or are not finite, or an episode is over (`reset`
                that world first); nothing is changed.
            RuntimeError: a world's process died, or failed; all worlds are closed then.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (len(self), self.spec.action_dim):
            raise ValueError(f"actions are {actions.shape}, but must be {(len(self), self.spec.action_dim)}")
        if not np.isfinite(actions).all():
            raise ValueError("an action is not finite")
        for index, newest in enumerate(self._newest):
            if newest is None or newest.last:
                raise ValueError(f"no episode is going on in world {index}: reset it first")
        return self._ask(range(len(self)), lambda seat, index: seat.ask_step(actions[index]))

    def close(self) -> None:
        """End the worlds, and their processes."""
        for seat in self._seats:
            seat.close()
        self._seats = []

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, indices: Sequence[int], ask: Callable[[_Seat, int], None]) -> list[Transition]:
        """Ask some worlds at once, so that they work at the same time; then take their results."""
        if not self._seats:
            raise RuntimeError("the worlds are closed")
        try:
            for index in indices:
                ask(self._seats[index], index)
            results = [self._seats[index].result() for index in indices]
        except BaseException:  # what the other worlds still have to say would be taken for a later answer
            self.close()
            raise
        for index, transition in zip(indices, results, strict=True):
            self._newest[index] = transition
        return results
