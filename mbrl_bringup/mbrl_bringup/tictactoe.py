"""Tic-tac-toe learned by self-play, then every game there is against the player that learned.

python -m mbrl_bringup.tictactoe --out docs/results/tictactoe.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from mbrl_bringup.result import atomic_write, commit_id, machine_name
from mbrl_planner.games import Solver, TicTacToe
from mbrl_planner.self_play import SelfPlay, SelfPlayConfig, judge


def learn(seed: int, rounds: int) -> SelfPlay:
    """A player that learned by so many rounds of games against itself."""
    player = SelfPlay(TicTacToe(), SelfPlayConfig(), seed=seed)
    for _ in range(rounds):
        player.learn()
    return player


def measure(seed: int, rounds: int) -> dict[str, Any]:
    """How all games end that differ in the opponent's moves: any ones, and those of perfect play."""
    begin = time.monotonic()
    player, solver = learn(seed, rounds), Solver(TicTacToe())
    result: dict[str, Any] = {
        "seed": seed,
        "rounds": rounds,
        "games_of_self_play": rounds * player.config.games,
        "wall_s": round(time.monotonic() - begin, 1),
    }
    lost = 0
    for opponent, reply in (("any", None), ("perfect", solver)):
        for side in ("first", "second"):
            tally = judge(player, first=side == "first", solver=reply)
            result[f"{side}_against_{opponent}"] = tally._asdict()
            lost += tally.lost
    return {**result, "lost": lost}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="tic-tac-toe by self-play")
    parser.add_argument("--out", type=Path, default=Path("docs/results/tictactoe.json"), help="file to write")
    parser.add_argument("--seeds", default="0,1,2", help="players that learn")
    parser.add_argument("--rounds", type=int, default=80, help="rounds of self-play of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    players = [measure(int(seed), options.rounds) for seed in options.seeds.split(",")]
    for player in players:
        print(json.dumps(player))
    result = {
        "game": "tictactoe",
        "players": players,
        "lost": sum(player["lost"] for player in players),
        "commit": commit_id(),
        "machine": machine_name(),
    }
    atomic_write(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
