"""Games whose rules are known, for searches and for learning by self-play: they are the exact model. And a
tree of choices, the smallest world in which looking ahead pays.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mbrl_dynamics.spec import Element, Spec
from mbrl_planner.small_worlds import Array


class Turn(NamedTuple):
    """What a move leads to, in B games.

    Attributes:
        board: [B, S] as the other player sees it.
        won: [B] bool, the move won.
        over: [B] bool, the game is over.
    """

    board: Tensor
    won: Tensor
    over: Tensor


class Game(Protocol):
    """A game of two players who move in turn, over B boards at once; who is to move sees them as his own.

    A game that is over goes on as it is, whatever is moved, and nobody wins it again.
    """

    size: int  # numbers that tell a board, S
    moves: int  # A

    def start(self, games: int) -> Tensor:
        """Boards [B, S] before the first move."""
        ...

    def allowed(self, board: Tensor) -> Tensor:
        """Moves that may be made on boards [B, S]: bool [B, A]; all of them where the game is over."""
        ...

    def play(self, board: Tensor, move: Tensor) -> Turn:
        """Make the moves [B], integers, on boards [B, S]."""
        ...


class TicTacToe:
    """Three in a row on nine squares: 1 is the mover's mark, -1 the other's, 0 an empty square."""

    size = moves = 9
    lines = torch.tensor(
        [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
    )

    def start(self, games: int) -> Tensor:
        """Empty."""
        return torch.zeros(games, self.size)

    def allowed(self, board: Tensor) -> Tensor:
        """Empty squares."""
        return (board == 0) | self.over(board)[:, None]

    def over(self, board: Tensor) -> Tensor:
        """Whether the other one has three in a row, or no square is empty: bool [B]."""
        return (board[:, self.lines].sum(-1) == -3).any(-1) | (board != 0).all(-1)

    def play(self, board: Tensor, move: Tensor) -> Turn:
        """Put the mover's mark on squares [B]."""
        done = self.over(board)
        marked = board.scatter(1, move[:, None], 1.0)
        won = (marked[:, self.lines].sum(-1) == 3).any(-1) & ~done
        after = torch.where(done[:, None], board, -marked)
        return Turn(after, won, self.over(after))


class Solver:
    """What perfect play makes of a game, by exhaustive search (minimax); for small games."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self._known: dict[bytes, Tensor] = {}

    def values(self, board: Tensor) -> Tensor:
        """Worth of each move on a board [S]: 1 a win, 0 a draw, -1 a loss; -inf where not allowed, [A]."""
        key = board.numpy().tobytes()
        if key not in self._known:
            moves = self.game.allowed(board[None])[0].nonzero()[:, 0]
            turn = self.game.play(board.expand(len(moves), -1), moves)
            worth = torch.full((self.game.moves,), -torch.inf)
            for move, after, won, over in zip(moves, *turn, strict=True):
                worth[move] = won.float() if over else -self.values(after).max()
            self._known[key] = worth
        return self._known[key]


class ChoiceTree:
    """A tree of choices between two ways, five deep; each way pays something, and the best total pays 1.

    What is seen is the node, one-hot. Taking the better payment at each step does not lead to the best total.

    Args:
        seed: of the payments.
    """

    depth = steps = 5

    def __init__(self, seed: int = 0) -> None:
        nodes = 2 ** (self.depth + 1) - 1  # node n leads to 2 n + 1 and 2 n + 2
        self.spec = Spec(
            "choice_tree",
            tuple(Element(f"node_{n}", low=0.0, high=1.0) for n in range(nodes)),
            (Element("way", count=2),),
            0.1,
        )
        rng, inner = np.random.default_rng(seed), nodes // 2
        while True:
            pay = rng.uniform(-1.0, 1.0, (inner, 2))
            total = self._totals(pay)
            greedy = 0
            for _ in range(self.depth):
                greedy = 2 * greedy + 1 + int(pay[greedy].argmax())
            if total.max() - total[greedy - inner] > 0.2 * np.ptp(total):
                break
        self.pay = pay - (total.max() - 1.0) / self.depth  # so that the best total is 1
        self.worst = float(self._totals(self.pay).min())

    def _totals(self, pay: Array) -> Array:
        """What is paid on the way to each leaf, from left to right [32]."""
        total = np.zeros(1)
        for level in range(self.depth):
            first = 2**level - 1
            total = (total[:, None] + pay[first : first + 2**level]).ravel()
        return total

    def mean(self) -> float:
        """What random choices are paid."""
        return float(self._totals(self.pay).mean())

    def reset(self, rng: np.random.Generator) -> Array:
        """At the root."""
        return np.zeros(1)

    def step(self, state: Array, action: Array) -> tuple[Array, float, bool]:
        """Down one of two ways."""
        node, way = int(state[0]), int(action.argmax())
        after = 2 * node + 1 + way
        return np.array([float(after)]), float(self.pay[node, way]), after >= len(self.pay)

    def observe(self, state: Array) -> Array:
        """Which node it is, one-hot [63]."""
        return np.eye(len(self.spec.observation))[int(state[0])]
