"""Maze: find the way to the goal. The Dyna maze of Sutton and Barto (2018), figure 8.2."""

from mbrl_sim.grid import GridTask


class Maze(GridTask):
    """54 cells, of which 7 are walls; the shortest way takes 14 steps.

    Reward: 1 for reaching the goal, else 0; the book discounts by 0.95.
    """

    name = "maze"
    rows = (
        ".......#G",
        "..#....#.",
        "S.#....#.",
        "..#......",
        ".....#...",
        ".........",
    )
    goal_reward = 1.0
