"""Returns and lengths of episodes, from the States of one world or of several side by side."""

from __future__ import annotations

from mbrl_dynamics.transition import Transition, WorldId


class Tally:
    """Adds up the rewards of episodes.

    Attributes:
        episodes: return and steps of each episode that is over, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.episodes: list[tuple[float, int]] = []
        self._going: dict[WorldId, tuple[float, int]] = {}

    def hear(self, state: Transition) -> bool:
        """Take in a State; returns whether an episode ended with it.

        An episode whose beginning was not heard, or that was broken off, does not count.
        """
        if state.first:
            self._going[state.world_id] = 0.0, 0
            return False
        if state.world_id not in self._going:
            return False
        total, steps = self._going[state.world_id]
        self._going[state.world_id] = total, steps = total + state.reward, steps + 1
        if state.last:
            self.episodes.append((total, steps))
            del self._going[state.world_id]
        return state.last
