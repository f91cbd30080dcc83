"""Dyna-Q learns the maze; more planning, fewer steps (Sutton and Barto, 2018, figure 8.2).

Mutations that this test notices: the planned transition's outcome taken for the state it began in (n = 50 does
not find the shortest way); ties broken by the lowest action (the first episode takes several times as long);
planning left out (n = 50 is as slow as n = 0).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_bringup.maze import OPTIMAL, greedy_steps, learn


@pytest.mark.learning
def test_planning_finds_the_shortest_way_in_a_few_episodes() -> None:
    torch.set_num_threads(1)
    planners = [learn(50, seed, 6) for seed in range(10)]
    assert [greedy_steps(agent) for agent, _ in planners].count(OPTIMAL) == 10
    planned = np.array([lengths for _, lengths in planners])
    plain = np.array([learn(0, seed, 6)[1] for seed in range(10)])
    later = slice(1, None)  # the first episode is a random walk for both, of 869 steps on average
    assert plain[:, later].sum() >= 2 * planned[:, later].sum()
    assert planned[:, 0].mean() < 1600 and plain[:, 0].mean() < 1600
