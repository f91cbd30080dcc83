"""Learning a game by playing against oneself, with its rules as the model: AlphaZero (Silver et al., 2018,
https://doi.org/10.1126/science.aar6404) with the search that `muzero` uses.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.models.heads import NormedMLP, cross_entropy
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.networks import adam, descend
from mbrl_planner.games import Game, Solver
from mbrl_planner.planners.gumbel import GumbelSearch, Leaf, Outcome


@config
class SelfPlayConfig:
    """Configuration of SelfPlay."""

    hidden: Annotated[tuple[int, ...], Field(description="units of the network's hidden layers [1]")] = (
        128,
        128,
    )
    games: Annotated[int, Field(ge=1, description="games played at once, a round [1]")] = 64
    simulations: Annotated[int, Field(ge=2, description="simulations a move [1]")] = 32
    considered: Annotated[int, Field(ge=1, description="most moves tried at the root [1]")] = 9
    value_scale: Annotated[
        float, Field(gt=0, description="weight of values in the improved policy, c_scale [1]")
    ] = 0.1
    window: Annotated[int, Field(ge=1, description="newest rounds that are learned from [1]")] = 20
    updates: Annotated[int, Field(ge=1, description="gradient steps a round [1]")] = 30
    batch_size: Annotated[int, Field(ge=1, description="positions a gradient step [1]")] = 256
    learning_rate: Annotated[float, Field(gt=0, description="Adam's step size")] = 1e-3


class Round(NamedTuple):
    """Positions of some games: boards [M, S], improved policies [M, A], results for who was to move [M]."""

    board: Tensor
    policy: Tensor
    result: Tensor


class Tally(NamedTuple):
    """How games ended, for the player who is judged."""

    won: int
    drawn: int
    lost: int


class SelfPlay:
    """A policy and a value of boards, learned from games against itself.

    Args:
        game: the rules.
        config: see SelfPlayConfig.
        seed: of weights and all random numbers.
    """

    def __init__(self, game: Game, config: SelfPlayConfig | None = None, *, seed: int = 0) -> None:
        self.game, self.config = game, config or SelfPlayConfig()
        c = self.config
        torch.manual_seed(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.net = NormedMLP(game.size, c.hidden, game.moves + 1, zero=True)
        self.search = GumbelSearch(c.simulations, c.considered, c.value_scale)
        self.optimizer = adam(self.net, c.learning_rate)
        self.rounds: list[Round] = []

    def predict(self, board: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the moves [B, A], -inf where not allowed, and values [B] in -1 .. 1."""
        out = self.net(board)
        return out[:, :-1].masked_fill(~self.game.allowed(board), -torch.inf), torch.tanh(out[:, -1])

    def leaf(self, board: Tensor) -> Leaf:
        """What the network thinks of boards [B, S]."""
        return Leaf(board, *self.predict(board))

    def expand(self, board: Tensor, move: Tensor) -> Outcome:
        """What the rules say of moves [B]: what comes after is the other player's, if anything does."""
        turn = self.game.play(board, move)
        return Outcome(self.leaf(turn.board), turn.won.float(), torch.where(turn.over, 0.0, -1.0))

    @torch.no_grad()
    def choose(self, board: Tensor) -> Tensor:
        """The best moves [B] on boards [B, S]."""
        return self.search.run(self.leaf(board), self.expand, None).action

    @torch.no_grad()
    def play(self) -> Round:
        """A round of games against itself."""
        board = self.game.start(self.config.games)
        over = torch.zeros(len(board), dtype=torch.bool)
        steps = []
        while not over.all():
            found = self.search.run(self.leaf(board), self.expand, self.noise)
            turn = self.game.play(board, found.action)
            steps.append((board, found.policy, turn.won.float(), turn.over, ~over))
            board, over = turn.board, turn.over
        result, results = torch.zeros(len(board)), list[Tensor]()
        for _, _, won, done, _ in reversed(steps):
            result = torch.where(done, won, -result)
            results.append(result)
        boards, policies, _, _, going = (torch.stack(x) for x in zip(*steps, strict=True))
        return Round(boards[going], policies[going], torch.stack(results[::-1])[going])

    def learn(self) -> Metrics:
        """A round of games, then gradient steps on the newest rounds; returns the means of the losses."""
        c = self.config
        self.rounds = [*self.rounds, self.play()][-c.window :]
        board, policy, result = (torch.cat(x) for x in zip(*self.rounds, strict=True))
        totals = torch.zeros(2)
        for _ in range(c.updates):
            index = torch.randint(len(board), (c.batch_size,), generator=self.noise)
            logits, value = self.predict(board[index])
            finite = logits.clamp(min=-1e9)  # a move that is not allowed has no weight in the target either
            losses = torch.stack(
                [cross_entropy(finite, policy[index]).mean(), (value - result[index]).square().mean()]
            )
            descend(losses.sum(), self.optimizer)
            totals += losses.detach() / c.updates
        return {"policy_loss": float(totals[0]), "value_loss": float(totals[1]), "positions": len(board)}


@torch.no_grad()
def judge(player: SelfPlay, *, first: bool, solver: Solver | None = None) -> Tally:
    """Play all games against a player that differ in what the opponent does; the player itself never varies.

    Args:
        first: whether the player makes the first move.
        solver: the opponent only makes moves that are best by perfect play; None = any.
    """
    game, board, mine, counts = player.game, player.game.start(1), first, [0, 0, 0]
    while len(board):
        if mine:
            turn = game.play(board, player.choose(board))
        else:
            replies = game.allowed(board)
            if solver is not None:
                worth = torch.stack([solver.values(one) for one in board])
                replies = worth == worth.amax(-1, keepdim=True)
            row, move = replies.nonzero(as_tuple=True)
            turn = game.play(board[row], move)
        won = int(turn.won.sum())
        counts[0 if mine else 2] += won
        counts[1] += int(turn.over.sum()) - won
        board, mine = turn.board[~turn.over], not mine
    return Tally(*counts)
