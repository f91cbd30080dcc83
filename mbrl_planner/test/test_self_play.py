"""Tic-tac-toe: its rules, perfect play, the search with the rules for a model, and learning by self-play."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbrl_planner.games import Solver, TicTacToe
from mbrl_planner.self_play import SelfPlay, SelfPlayConfig, judge
from mbrl_planner.small_worlds import typical_score

torch.set_num_threads(1)

GAME = TicTacToe()


def board(text: str) -> Tensor:
    """As the one to move sees it: x his own, o the other's."""
    return torch.tensor([[{"x": 1.0, "o": -1.0, ".": 0.0}[c] for c in text.replace(" ", "")]])


def test_a_move_is_seen_by_the_other_as_the_others() -> None:
    turn = GAME.play(GAME.start(1), torch.tensor([4]))
    assert torch.equal(turn.board, board("... .o. ..."))
    assert not turn.won and not turn.over
    assert GAME.allowed(turn.board)[0].tolist() == [True] * 4 + [False] + [True] * 4


@pytest.mark.parametrize("line", [(0, 1, 2), (2, 5, 8), (0, 4, 8), (2, 4, 6)])
def test_three_in_a_row_win_and_end_the_game(line: tuple[int, ...]) -> None:
    before = torch.zeros(1, 9)
    before[0, list(line[:2])] = 1.0
    turn = GAME.play(before, torch.tensor([line[2]]))
    assert turn.won and turn.over
    again = GAME.play(turn.board, torch.tensor([3]))
    assert torch.equal(again.board, turn.board) and not again.won and again.over
    assert GAME.allowed(turn.board).all()


def test_a_full_board_is_a_draw() -> None:
    turn = GAME.play(board("xox xoo ox."), torch.tensor([8]))
    assert turn.over and not turn.won


def test_perfect_play_is_a_draw_and_sees_forks() -> None:
    solver = Solver(GAME)
    assert (solver.values(GAME.start(1)[0]) == 0).all()
    assert solver.values(board("x.. .o. ..o")[0])[2] == 0
    fork = solver.values(board("o.. .x. ..o")[0])  # a corner loses to the fork, an edge draws
    assert fork[2] == fork[6] == -1 and fork[1] == 0
    assert solver.values(board("xx. oo. ...")[0])[2] == 1


def untrained(simulations: int) -> SelfPlay:
    return SelfPlay(GAME, SelfPlayConfig(simulations=simulations))


def test_the_search_wins_and_blocks_without_having_learned_anything() -> None:
    player = untrained(400)
    assert player.choose(board("xx. oo. ...")) == 2
    assert player.choose(board("oo. x.. ...")) == 2
    assert player.choose(board("o.. .o. x..")) == 8


def test_results_of_a_round_alternate_between_the_players() -> None:
    games = untrained(4).play()
    empty = (games.board == 0).all(-1)
    assert empty.sum() == 64
    starts = empty.nonzero()[:, 0]
    assert set(games.result.tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.allclose(games.policy.sum(-1), torch.ones(len(games.policy)))
    assert (games.policy[games.board != 0] == 0).all()
    assert torch.equal(starts, torch.arange(64))  # positions are in order of the moves
    second = games.result[64:128]  # no game ends with its first move
    assert torch.equal(second, -games.result[:64])


class Perfect(SelfPlay):
    """Plays what the solver says."""

    def choose(self, board: Tensor) -> Tensor:
        solver = Solver(self.game)
        return torch.stack([solver.values(one).argmax() for one in board])


def test_the_judge_plays_all_games_there_are() -> None:
    perfect, solver = Perfect(GAME), Solver(GAME)
    for first in (True, False):
        any_reply, best_reply = judge(perfect, first=first), judge(perfect, first=first, solver=solver)
        assert any_reply.lost == best_reply.lost == best_reply.won == 0
        assert any_reply.won > 0 and best_reply.drawn > 0


def lost(seed: int, rounds: int = 40) -> int:
    """Games lost, against every opponent there is, after so many rounds of self-play."""
    player = SelfPlay(GAME, SelfPlayConfig(), seed=seed)
    for _ in range(rounds):
        player.learn()
    return sum(judge(player, first=first).lost for first in (True, False))


@pytest.mark.slow
@pytest.mark.learning
def test_never_loses_after_forty_rounds_of_self_play() -> None:
    """All games against all opponents, perfect ones among them.

    Seeds 0, 1, 3, 4 and 5 lose none of about 600, seed 2 loses 2. The same search loses 129 of 645 unlearned.
    Seen to fail (seeds 0 and 1): the other's value taken for one's own in the search (552 and 417 lost), the
    winner's result told to both (5 and 4), a policy that is not learned (9 and 5).
    """
    assert typical_score(lambda seed: -float(lost(seed)), 0.0) == 0.0
