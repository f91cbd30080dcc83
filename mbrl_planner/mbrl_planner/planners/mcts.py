"""Monte Carlo tree search: UCT (Kocsis and Szepesvari, 2006, https://doi.org/10.1007/11871842_29), with
double progressive widening where actions are continuous or outcomes are random (Couetoux et al., 2011,
https://doi.org/10.1007/978-3-642-25566-3_32).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Heads, Plan
from mbrl_planner.planners.scoring import returns_of
from mbrl_planner.planners.shared import shown, singles

MOST_DIMENSIONS = 4  # of continuous actions; a tree that tries a few values of each would be too wide


@config
class MCTSConfig:
    """Configuration of MCTS."""

    horizon: Annotated[int, Field(ge=1, description="how far tree and rollouts look ahead [steps]")] = 15
    simulations: Annotated[int, Field(ge=1, description="ways down the tree a decision [1]")] = 64
    rollouts: Annotated[
        int, Field(ge=1, description="random futures that tell what a leaf without a value is worth [1]")
    ] = 32
    exploration: Annotated[
        float, Field(ge=0, description="weight of what was seldom tried, in units of the range of values [1]")
    ] = 0.5
    discount: Annotated[float, Field(gt=0, le=1, description="of rewards a step later [1]")] = 1.0
    widening: Annotated[
        float, Field(gt=0, description="after n visits there are widening x n^widening_power children [1]")
    ] = 1.5
    widening_power: Annotated[float, Field(gt=0, lt=1, description="growth of the children [1]")] = 0.5


@dataclass
class Node:
    """A state [1] in the tree; `guess` is the warm start's actions from here on [H', A], if it leads here."""

    state: ModelState
    depth: int
    guess: Tensor | None = None
    visits: int = 0
    edges: list[Edge] = field(default_factory=list)


@dataclass
class Edge:
    """An action [A] in a node, its mean return, and what came of it."""

    action: Tensor
    guess: Tensor | None = None  # as the node's, where the action is its first row
    visits: int = 0
    value: float = 0.0
    refused: bool = False  # no number came of it: it is never taken again
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass
class Outcome:
    """A state that an action led to."""

    node: Node
    reward: float
    alive: float
    visits: int = 0


class Step(NamedTuple):
    """A part of a way down the tree."""

    node: Node
    edge: Edge
    outcome: Outcome


class MCTS:
    """Plans by a tree of what may happen; follows the most visited actions.

    All of a few discrete actions are tried in each node; of continuous ones, and of random outcomes, a number
    that grows with the visits. Beyond the tree, random rollouts (or a learned value) tell what a state is
    worth. Beyond what the tree knows of it, a plan repeats its last action.
    """

    Config = MCTSConfig

    def __init__(self, config: Any = None) -> None:
        self.config: MCTSConfig = config or self.Config()

    def check(self, spec: Spec, model: Any = None, task: Any = None) -> None:
        """Look whether the planner fits a world; see `Planner.check`. It searches through every model."""
        if not spec.discrete and spec.action_dim > MOST_DIMENSIONS:
            raise UserError(
                f"planner 'mcts' takes at most {MOST_DIMENSIONS} continuous action elements, but task "
                f"'{spec.task}' has {spec.action_dim}; take another planner, such as planner:=icem"
            )

    @torch.inference_mode()
    def plan(
        self,
        model: Model,
        state: ModelState,
        guess: Guess | None = None,
        *,
        shift: int = 1,
        heads: Heads | None = None,
        deadline: float | None = None,
        noise: torch.Generator | None = None,
        display: int = 0,
    ) -> Plan:
        """Search; see `Planner.plan`. At the deadline each tree has been gone down at least once."""
        self.check(model.spec)
        noise = torch.default_generator if noise is None else noise
        roots = singles(state)
        before = [None] * len(roots) if guess is None else list(guess.shifted(shift).mean)
        pairs = zip(roots, before, strict=True)
        trees = [Tree(self.config, model, root, first, heads, noise) for root, first in pairs]
        met = True
        for simulation in range(self.config.simulations):
            if simulation and deadline is not None and time.perf_counter() > deadline:
                break
            for tree in trees:
                tree.simulate()
        met = deadline is None or time.perf_counter() <= deadline
        best = [tree.ranking(tree.root)[0] for tree in trees]
        actions = torch.stack([tree.path(edge) for tree, edge in zip(trees, best, strict=True)])
        valid = torch.tensor([not edge.refused for edge in best])
        value = torch.tensor([-math.inf if edge.refused else edge.value for edge in best])
        return Plan(
            actions=torch.where(valid[:, None, None], actions, torch.nan),
            value=value,
            guess=Guess(actions),
            deadline_met=met,
            valid=valid,
            refused=torch.tensor([tree.refused for tree in trees]),
            **(_display(model, state, actions, trees, display) if display else {}),
        )


class Tree:
    """The search from one state.

    Args:
        model: what happens next; its outcomes are drawn if it is stochastic.
        root: a ModelState [1].
        guess: [H, A] actions that are tried first; None = none.
        heads: values of leaves and first proposals of actions; None = random rollouts.
        noise: of all random numbers.
    """

    def __init__(
        self,
        config: MCTSConfig,
        model: Model,
        root: ModelState,
        guess: Tensor | None,
        heads: Heads | None,
        noise: torch.Generator,
    ) -> None:
        self.config, self.model, self.heads, self.noise = config, model, heads, noise
        self.root = Node(root, 0, guess)
        self.refused = 0  # futures that were no numbers
        self._low, self._high = math.inf, -math.inf  # of all returns seen
        self._drawn = noise if model.capabilities.stochastic else None  # of outcomes

    def simulate(self) -> None:
        """Go down to a new leaf, look what it is worth, and tell the nodes above."""
        path, node = list[Step](), self.root
        while (edge := self.choose(node)) is not None:
            path.append(self.follow(node, edge))
            node, outcome = path[-1].outcome.node, path[-1].outcome
            if not outcome.visits or not outcome.alive or node.depth == self.config.horizon:
                break
        if edge is None:  # whatever is done here, no number comes of it
            value = math.nan
        else:
            value = self.worth(node) if path[-1].outcome.alive else 0.0
        returns = []
        for step in reversed(path):
            value = step.outcome.reward + self.config.discount * step.outcome.alive * value
            returns.append(value)
        if math.isfinite(value):
            self.tell(path, returns[::-1])
        else:
            self.refused += 1
            if path:
                path[-1].edge.refused = True

    def choose(self, node: Node) -> Edge | None:
        """The edge to take from a node: a new one while it may widen, else the one with the best bound.

        The bound is UCB1 (Kocsis and Szepesvari, section 2.2) on returns scaled to [0, 1].
        """
        known = [edge for edge in node.edges if not edge.refused]
        if self.may_widen(node, len(known)):
            node.edges.append(self.propose(node))
            return node.edges[-1]
        if not known:
            return None
        span = max(self._high - self._low, 1e-9)
        bonus = self.config.exploration * math.sqrt(math.log(max(node.visits, 1)))

        def bound(edge: Edge) -> float:
            return (edge.value - self._low) / span + bonus / math.sqrt(max(edge.visits, 1))

        return max(known, key=bound)

    def may_widen(self, node: Node, children: int) -> bool:
        """Whether a node may get another action: all discrete ones at once, of continuous ones ever more."""
        if self.model.spec.discrete:
            return len(node.edges) < self.model.spec.inner_action_dim
        return self.widens(node.visits, children)

    def widens(self, visits: int, children: int) -> bool:
        """Progressive widening: whether so many children are too few after so many visits."""
        return children < max(self.config.widening * visits**self.config.widening_power, 1.0)

    def propose(self, node: Node) -> Edge:
        """An action that was not tried: the warm start's, the learned policy's mode, then at random."""
        tried = [edge.action for edge in node.edges]
        first = [] if node.guess is None else [node.guess[0]]
        if self.heads is not None:
            first.append(self.heads.policy(node.state)[0])
        for action in first:
            if not any(torch.equal(action, other) for other in tried):
                return Edge(action, guess=node.guess if action is first[0] else None)
        if not self.model.spec.discrete:
            return Edge(self.random(1)[0])
        left = 1.0 - torch.stack(tried).sum(0) if tried else torch.ones(self.model.spec.inner_action_dim)
        index = torch.multinomial(left, 1, generator=self.noise)[0]
        return Edge(torch.nn.functional.one_hot(index, len(left)).float())

    def random(self, count: int) -> Tensor:
        """Uniform actions [count, A]."""
        width = self.model.spec.inner_action_dim
        if self.model.spec.discrete:
            index = torch.randint(width, (count,), generator=self.noise)
            return torch.nn.functional.one_hot(index, width).float()
        return torch.rand(count, width, generator=self.noise) * 2.0 - 1.0

    def follow(self, node: Node, edge: Edge) -> Step:
        """What an action leads to: a new outcome while there may be more, else one that came of it before.

        An old one is drawn as often as it came; one that comes anew is counted as the same.
        """
        old = edge.outcomes
        if old and not (self._drawn is not None and self.widens(edge.visits, len(old))):
            counts = torch.tensor([float(outcome.visits) for outcome in old])
            drawn = torch.multinomial(counts, 1, generator=self.noise) if len(old) > 1 else 0
            return Step(node, edge, old[int(drawn)])
        ahead = self.model.step(node.state, edge.action[None], self._drawn)
        for outcome in old:
            if _same(outcome.node.state, ahead.state):
                return Step(node, edge, outcome)
        guess = None if edge.guess is None or len(edge.guess) < 2 else edge.guess[1:]
        after = Node(ahead.state, node.depth + 1, guess)
        reward = 0.0 if ahead.reward is None else float(ahead.reward)
        edge.outcomes.append(Outcome(after, reward, 1.0 if ahead.alive is None else float(ahead.alive)))
        return Step(node, edge, edge.outcomes[-1])

    def worth(self, node: Node) -> float:
        """What comes after a leaf: the learned value, or the mean return of random rollouts."""
        steps = self.config.horizon - node.depth
        if self.heads is not None:
            return float(self.heads.value(node.state))
        if not steps:
            return 0.0
        plans = self.random(self.config.rollouts * steps).view(1, self.config.rollouts, steps, -1)
        rollout = self.model.imagine(node.state, plans, noise=self._drawn)
        returns = returns_of(rollout, self.config.discount, None).mean(-1)[0]
        finite = returns.isfinite()
        self.refused += int((~finite).sum())
        return float(returns[finite].mean())  # NaN where there is none

    def tell(self, path: list[Step], returns: list[float]) -> None:
        """Count a way down, and the return [reward] from each of its nodes on."""
        for step, value in zip(path, returns, strict=True):
            step.node.visits += 1
            step.outcome.visits += 1
            step.edge.visits += 1
            step.edge.value += (value - step.edge.value) / step.edge.visits
            self._low, self._high = min(self._low, step.edge.value), max(self._high, step.edge.value)

    def ranking(self, node: Node) -> list[Edge]:
        """The actions of a node, the most visited first, those that were refused last."""
        return sorted(node.edges, key=lambda e: (not e.refused, e.visits, e.value), reverse=True)

    def path(self, edge: Edge) -> Tensor:
        """The plan [H, A] that begins with an edge of the root."""
        actions = [edge.action]
        while edge.outcomes:
            node = max(edge.outcomes, key=lambda outcome: outcome.visits).node
            if not node.edges or len(actions) == self.config.horizon:
                break
            edge = self.ranking(node)[0]
            actions.append(edge.action)
        return torch.stack(actions + [actions[-1]] * (self.config.horizon - len(actions)))


def _same(one: ModelState, other: ModelState) -> bool:
    leaves = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(x is y or torch.equal(x, y) for x, y in leaves)


def _display(
    model: Model, state: ModelState, actions: Tensor, trees: list[Tree], count: int
) -> dict[str, Tensor]:
    """Predicted observations of the plans, and of those that begin with the most visited actions."""
    count = min(count, *(len(tree.root.edges) for tree in trees))
    ranked = [tree.ranking(tree.root)[:count] for tree in trees]
    paths = [[tree.path(edge) for edge in edges] for tree, edges in zip(trees, ranked, strict=True)]
    candidates = torch.stack([torch.stack(each) for each in paths])
    returns = torch.tensor([[edge.value for edge in edges] for edges in ranked])
    return shown(model, state, actions, candidates, returns)
