"""Cliff: the shortest way leads along an abyss. Sutton and Barto (2018), example 6.6."""

from mbrl_sim.grid import GridTask


class Cliff(GridTask):
    """48 cells, of which 10 are the cliff; the shortest way takes 13 steps.

    Reward: -1 a step; -100 for falling, which leads back to the start but does not end the episode.
    """

    name = "cliff"
    rows = (
        "............",
        "............",
        "............",
        "SCCCCCCCCCCG",
    )
    step_reward = -1.0
    goal_reward = -1.0
    cliff_reward = -100.0
    max_steps = 1000
