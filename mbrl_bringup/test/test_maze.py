"""Dyna-Q learns the maze; more planning, fewer steps (Sutton and Barto, 2018, figure 8.2).

Mutations that this test notices: the planned transition's outcome taken for the state it began in, or
planning left out (what was seen is not put to use); ties broken by the lowest action (the first episode takes
several times as long).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mbrl_bringup.maze import OPTIMAL, greedy_steps, learn
from mbrl_dynamics.models.tabular import value_iteration
from mbrl_planner.agents.dyna_q import DynaQ


def shortest_known(agent: DynaQ) -> int:
    """Steps of the shortest way through what the agent has tried, from the value of the start."""
    value, _ = value_iteration(*agent.table.tables(), agent.config.discount)
    return 1 + round(math.log(value[18]) / math.log(agent.config.discount))


@pytest.mark.learning
def test_planning_finds_the_shortest_way_in_a_few_episodes() -> None:
    torch.set_num_threads(1)
    planners = [learn(50, seed, 6) for seed in range(5)]
    ways = [greedy_steps(agent) for agent, _ in planners]
    assert ways == [shortest_known(agent) for agent, _ in planners], "all that was seen is put to use"
    assert np.median(ways) == OPTIMAL and max(ways) <= OPTIMAL + 4  # tried by then
    planned = np.array([lengths for _, lengths in planners])
    plain = np.array([learn(0, seed, 6)[1] for seed in range(2)])
    later = slice(1, None)  # the first episode is a random walk for both, of 869 steps on average
    assert plain[:, later].mean() >= 2 * planned[:, later].mean()
    assert planned[:, 0].mean() < 1600 and plain[:, 0].mean() < 1600
