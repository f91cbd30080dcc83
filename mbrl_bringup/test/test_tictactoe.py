"""The command that makes docs/results/tictactoe.json; what is learned is tested in mbrl_planner."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mbrl_bringup import tictactoe


def test_it_writes_how_all_games_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["tictactoe", "--out", str(out), "--seeds", "3", "--rounds", "1"])
    tictactoe.main()
    result = json.loads(out.read_text())
    (player,) = result["players"]
    sides = [player[f"{side}_against_{who}"] for side in ("first", "second") for who in ("any", "perfect")]
    assert player["seed"] == 3 and player["games_of_self_play"] == 64
    assert result["lost"] == player["lost"] == sum(side["lost"] for side in sides)
    assert all(side["won"] == 0 for side in sides[1::2]), "nobody wins against perfect play"
