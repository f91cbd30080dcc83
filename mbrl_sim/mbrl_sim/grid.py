"""Worlds of square cells: a task is a map. No MuJoCo; the same contract as all other worlds.

The observation is the number of the cell, row by row from the top left; the action is one of up, right,
down, left. A move into a wall or off the map leaves everything where it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Element, Spec
from mbrl_sim.drawing import Drawing
from mbrl_sim.physics import Physics, StepResult

Array = Any  # a numpy array or a torch tensor

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: rows and columns
FREE, WALL, START, GOAL, CLIFF = ".", "#", "S", "G", "C"
COLOURS = {FREE: (235, 235, 235), WALL: (60, 60, 60), START: (160, 190, 240), GOAL: (150, 220, 150)}
COLOURS |= {CLIFF: (230, 140, 110)}
BODY = (200, 40, 40)  # colour of who moves
VIEW = "map"  # the only camera


class GridTask:
    """A task on a map; a subclass gives `name`, `rows` and the rewards.

    An episode begins at S and ends at G. Who steps on C is put back to S.

    Args:
        action_repeat: must be 1; there is nothing between two cells.

    Raises:
        UserError: `action_repeat` is something else.
    """

    name: ClassVar[str]
    rows: ClassVar[tuple[str, ...]]  # the map, one letter a cell
    control_period: ClassVar[float] = 0.1  # of a move [s]
    action_repeat = 1
    max_steps = 10_000  # moves until an episode is truncated [steps]
    step_reward: ClassVar[float] = 0.0
    goal_reward: ClassVar[float] = 0.0  # of a step to G
    cliff_reward: ClassVar[float] = 0.0  # of a step to C

    def __init__(self, action_repeat: int | None = None) -> None:
        if action_repeat not in (None, 1):
            raise UserError(f"action_repeat is {action_repeat}, but on a grid it must be 1")
        self.letters = np.array([list(row) for row in self.rows])  # [rows, columns]
        cells = self.letters.size
        (self.start,), (self.goal,) = (np.flatnonzero(self.letters.ravel() == c) for c in (START, GOAL))
        self.after, self.fell = self._moves()
        self.frame = self.control_period
        self.spec = Spec(
            task=self.name,
            observation=(Element("cell", "1", 0.0, cells - 1.0, count=cells),),
            action=(Element("move", count=len(MOVES)),),
            control_period=self.control_period,
        )

    def _moves(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each move leads from each cell [cells, 4], and whether over the cliff."""
        height, width = self.letters.shape
        after = np.zeros((height * width, len(MOVES)), np.int64)
        fell = np.zeros(after.shape, np.bool_)
        for cell in range(height * width):
            row, column = divmod(cell, width)
            for move, (down, right) in enumerate(MOVES):
                r, c = row + down, column + right
                free = 0 <= r < height and 0 <= c < width and self.letters[r, c] != WALL
                fell[cell, move] = free and self.letters[r, c] == CLIFF
                after[cell, move] = self.start if fell[cell, move] else (r * width + c if free else cell)
        return after, fell

    def reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """Reward of one move [...], for cells [..., 1] and one-hot moves [..., 4]; numpy or torch alike."""
        xp = array_namespace(obs)
        cell = xp.astype(xp.clip(xp.round(obs[..., 0]), 0, len(self.fell) - 1), xp.int64)
        fell = xp.asarray(self.fell, device=device(obs))[cell, xp.argmax(action, axis=-1)]
        reached = self.terminated(next_obs)
        none = 0.0 * obs[..., 0]
        reward = xp.where(fell, none + self.cliff_reward, none + self.step_reward)
        return xp.where(reached, none + self.goal_reward, reward)

    def terminated(self, next_obs: Array) -> Array:
        """Whether the goal is reached, bool [...]."""
        return array_namespace(next_obs).round(next_obs[..., 0]) == float(self.goal)

    def make_simulator(self, seed: int | None = None, image_size: int = 0, camera: str = "") -> Physics:
        """The task's world; nothing in it is random."""
        return GridSimulator(self, image_size, camera)

    def pose(self, obs: Array) -> Array:
        """The cell [..., 1]."""
        return obs

    def points(self, obs: Array) -> Array:
        """The middle of the cell [..., 1, 3], with cells of 1 m, the map's bottom left at the origin."""
        xp = array_namespace(obs)
        height, width = self.letters.shape
        row = xp.floor(obs[..., 0] / width)
        x, y = obs[..., 0] - width * row + 0.5, height - row - 0.5
        return xp.stack([x, y, 0.0 * x], axis=-1)[..., None, :]


class GridSimulator(Drawing):
    """The world of a GridTask; its only position is the cell.

    Args:
        task: what is simulated.
        image_size, camera: see Drawing; the only camera is "map".
    """

    def __init__(self, task: GridTask, image_size: int = 0, camera: str = "") -> None:
        self.task, self.cell = task, int(task.start)
        self._steps, self._over = 0, False
        cells, moves = task.after.shape  # the task's own rewards, for all moves at once
        before = np.repeat(np.arange(cells, dtype=np.float64), moves)[:, None]
        after = task.after.reshape(-1, 1).astype(np.float64)
        self._rewards = task.reward(before, np.tile(np.eye(moves), (cells, 1)), after).reshape(cells, moves)
        super().__init__(None, None, image_size, camera)

    @property
    def qpos(self) -> NDArray[np.float64]:
        """The cell [1]."""
        return np.array([float(self.cell)])

    @property
    def time(self) -> float:
        """Simulated time since the episode began [s]."""
        return self._steps * self.task.control_period

    def reset(self, seed: int | None = None, initial_state: ArrayLike | None = None) -> NDArray[np.float64]:
        """Begin an episode; the first observation [1].

        Args:
            seed: changes nothing.
            initial_state: the cell, if not S.

        Raises:
            UserError: `initial_state` is not the number of a free cell.
        """
        cell = int(self.task.start) if initial_state is None else self._checked(initial_state)
        self.cell, self._steps, self._over = cell, 0, False
        return self.qpos

    def step(self, action: ArrayLike) -> StepResult:
        """One move.

        Raises:
            ValueError: the action is not one number of a move.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (1,) or values[0] not in range(len(MOVES)):
            raise ValueError(f"the action must be a number from 0 to {len(MOVES) - 1}, not {action!r}")
        move = int(values[0])
        reward = float(self._rewards[self.cell, move])
        self.cell = int(self.task.after[self.cell, move])
        self._steps += 1
        self._over = self.cell == int(self.task.goal)
        return StepResult(self.qpos, reward, self._over)

    def coast(self, action: ArrayLike, periods: int) -> str:
        """Move on unseen."""
        for _ in range(periods):
            if not self._over:
                self.step(action)
        return ""

    def render(
        self, width: int = 640, height: int = 480, camera: str = "", pose: ArrayLike | None = None
    ) -> NDArray[np.uint8]:
        """The map, seen from above; uint8 [height, width, 3].

        Raises:
            UserError: there is no such camera.
        """
        if camera not in ("", VIEW):
            raise UserError(f"unknown camera '{camera}'; valid: {VIEW}")
        letters = self.task.letters
        colours = np.array([[COLOURS[letter] for letter in row] for row in letters], np.uint8)
        cell = self.cell if pose is None else int(np.asarray(pose).item())
        colours[divmod(cell, letters.shape[1])] = BODY
        rows = np.arange(height) * letters.shape[0] // height
        columns = np.arange(width) * letters.shape[1] // width
        return colours[rows][:, columns]

    def _views(self) -> list[str]:
        return [VIEW]

    def _checked(self, state: ArrayLike) -> int:
        values, letters = np.asarray(state, dtype=np.float64), self.task.letters.ravel()
        free = values.shape == (1,) and values[0] in range(letters.size)
        if not free or letters[int(values[0])] in (WALL, CLIFF, GOAL):
            raise UserError(f"initial_state must be the number of a free cell (0 to {letters.size - 1})")
        return int(values[0])
