"""How many episodes a model needs: the table, and the quickest of them."""

from __future__ import annotations

import torch

from mbrl_bringup.few_data import learned, table


def test_an_mjcf_with_a_wrong_mass_needs_one_episode() -> None:
    torch.set_num_threads(1)
    row = learned("physics", 0)
    assert row["episodes"] == len(row["returns"]) == 1 and len(row["returns"][0]) == 3


def test_the_table_tells_what_was_solved_given_up_and_not_run() -> None:
    runs = [
        {"model": "gp", "seed": 0, "episodes": 2},
        {"model": "gp", "seed": 1, "episodes": None},
        {"model": "physics", "seed": 1, "episodes": 1},
    ]
    lines = table({"runs": runs}).splitlines()
    assert lines[0] == "| | seed 0 | seed 1 |"
    assert lines[2:4] == ["| `physics` | – | 1 |", "| `gp` | 2 | not in 12 |"]
