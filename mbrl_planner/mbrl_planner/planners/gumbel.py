"""Tree search that improves a policy with few simulations, for many roots at once (Gumbel MuZero, Danihelka
et al., 2022, https://openreview.net/forum?id=bERaNdoegnO). For discrete actions and a model without chance.

Some actions are drawn without replacement and the root halves them by what they turn out to be worth; below
the root, visits follow the improved policy. What is learned from is that policy, not the visits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

VISIT_OFFSET = 50.0  # c_visit: how much values count beside the prior before there are visits (section 3.4)
LEAST_RANGE = 1e-2  # values that differ by less are taken as equal [reward]


class Leaf(NamedTuple):
    """B states and what is thought of them before any search.

    Attributes:
        state: [B, ...] opaque.
        logits: [B, A] of the policy; -inf where an action is not allowed.
        value: [B] for the one who is to act.
    """

    state: Tensor
    logits: Tensor
    value: Tensor


class Outcome(NamedTuple):
    """What comes of one action in each of B states.

    Attributes:
        leaf: the states after it.
        reward: [B] for the one who acted.
        discount: [B] of what comes after; 0 = it is over, negative = the other player is to act then.
    """

    leaf: Leaf
    reward: Tensor
    discount: Tensor


Expand = Callable[[Tensor, Tensor], Outcome]  # states [B, ...], chosen actions [B] -> Outcome


class Found(NamedTuple):
    """What a search says of B roots.

    Attributes:
        action: [B] what to do.
        policy: [B, A] the improved policy (equation 11).
        value: [B] mean over the root's simulations.
        visits: [B, A] simulations of each action.
    """

    action: Tensor
    policy: Tensor
    value: Tensor
    visits: Tensor


class GumbelSearch:
    """Sequential halving at the root, the improved policy below it.

    Args:
        simulations: a decision, each of which makes one call of the model.
        considered: most actions tried at the root.
        scale: c_scale, weight of values beside the prior once they are scaled to [0, 1].
    """

    def __init__(self, simulations: int, considered: int, scale: float) -> None:
        self.simulations, self.considered, self.scale = simulations, considered, scale

    @torch.no_grad()
    def run(self, root: Leaf, expand: Expand, noise: torch.Generator | None) -> Found:
        """Search from B roots; `noise` None = without Gumbel noise, the best action for certain."""
        tree = Tree(root, self.simulations, self.scale)
        gumbel = _gumbel(root.logits, noise)
        allowed = np.isfinite(tree.logits[:, 0]).sum(-1)
        plan = np.stack([halving(int(min(n, self.considered)), self.simulations) for n in allowed])
        device = root.logits.device
        for i in range(self.simulations):
            path = tree.descend(gumbel, plan[:, i])
            rows, nodes, actions = (torch.from_numpy(x).to(device) for x in path.end)
            tree.grow(path, expand(tree.states[nodes, rows], actions))
        visits, roots = tree.count[:, 0], np.arange(len(gumbel))
        best = tree.root_choice(gumbel, visits.max(-1))
        found = (best, tree.policy(roots, 0), tree.value(roots, 0), visits)
        return Found(*(torch.from_numpy(x).to(device, _kind(x)) for x in found))


@lru_cache
def halving(actions: int, simulations: int) -> Array:
    """How often an action must have been tried to be tried next, for each simulation [simulations].

    Sequential halving (Karnin et al., 2013) as a list: all `actions` are tried equally often, then the
    better half of them, and so on; the last two share what is left.
    """
    rounds = max(int(np.ceil(np.log2(max(actions, 2)))), 1)
    tried, left, order = [0] * actions, actions, list[int]()
    while len(order) < simulations:
        for _ in range(max(simulations // (rounds * left), 1)):
            order += tried[:left]
            tried[:left] = [n + 1 for n in tried[:left]]
        left = max(left // 2, min(2, actions))
    return np.array(order[:simulations])


class Path(NamedTuple):
    """A way down each of B trees.

    Attributes:
        steps: over depths, (trees that got so deep, nodes, actions).
        end: (all trees, the last node of each, the action [B] there that leads to no node yet).
    """

    steps: list[tuple[Array, Array, Array]]
    end: tuple[Array, Array, Array]


class Tree:
    """B trees of as many nodes, as arrays over [B, node, action]. Node 0 is the root; -1 is none."""

    def __init__(self, root: Leaf, simulations: int, scale: float) -> None:
        batch, actions = root.logits.shape
        shape = (batch, simulations + 1, actions)
        self.scale, self.nodes = scale, 0
        self.child = np.full(shape, -1)
        self.count, self.q = np.zeros(shape, np.int64), np.zeros(shape)
        self.reward, self.discount = np.zeros(shape), np.zeros(shape)
        self.logits, self.raw = np.zeros(shape), np.zeros(shape[:2])
        self.low, self.high = np.full(batch, np.inf), np.full(batch, -np.inf)  # of all values seen
        self.states = root.state.new_empty(simulations + 1, *root.state.shape)
        self._all = np.arange(batch)
        self._add(root)

    def _add(self, leaf: Leaf) -> None:
        logits = leaf.logits - torch.logsumexp(leaf.logits, -1, keepdim=True)
        self.states[self.nodes] = leaf.state
        self.logits[:, self.nodes] = logits.cpu().numpy()
        self.raw[:, self.nodes] = leaf.value.cpu().numpy()
        self._widen(self._all, self.raw[:, self.nodes])
        self.nodes += 1

    def _widen(self, rows: Array, values: Array) -> None:
        self.low[rows] = np.minimum(self.low[rows], values)
        self.high[rows] = np.maximum(self.high[rows], values)

    # What nodes say, for M pairs of a tree (`rows`) and one of its nodes ------------------------------------

    def completed(self, rows: Array, node: Any) -> Array:
        """Weight of each action's value in the policy, sigma(q) [M, A] (equations 8 and 10).

        Untried actions are given the node's mixed value (appendix D, equation 33), and values are scaled by
        the range of all that the tree has seen.
        """
        count, q, logits = self.count[rows, node], self.q[rows, node], self.logits[rows, node]
        tried = count > 0
        prior = np.where(tried, np.exp(logits), 0.0)
        total, mass = count.sum(-1), np.maximum(prior.sum(-1), 1e-12)
        mixed = (self.raw[rows, node] + total * (prior * q).sum(-1) / mass) / (1.0 + total)
        q = np.where(tried, q, mixed[:, None])
        low = self.low[rows, None]
        span = np.maximum(self.high[rows, None] - low, LEAST_RANGE)
        return (VISIT_OFFSET + count.max(-1, keepdims=True)) * self.scale * (q - low) / span

    def policy(self, rows: Array, node: Any) -> Array:
        """The improved policy [M, A] (equation 11)."""
        z = self.logits[rows, node] + self.completed(rows, node)
        z = np.exp(z - z.max(-1, keepdims=True))
        return z / z.sum(-1, keepdims=True)

    def value(self, rows: Array, node: Any) -> Array:
        """Mean of what was returned to a node [M], its own first value included."""
        count, q = self.count[rows, node], self.q[rows, node]
        return (self.raw[rows, node] + (count * q).sum(-1)) / (1.0 + count.sum(-1))

    # Simulations --------------------------------------------------------------------------------------------

    def root_choice(self, gumbel: Array, tried: Array) -> Array:
        """The best action [B] at the roots, of those tried so often [B] (equation 9)."""
        score = gumbel + self.logits[:, 0] + self.completed(self._all, 0)
        return np.where(self.count[:, 0] == tried[:, None], score, -np.inf).argmax(-1)

    def inner_choice(self, rows: Array, node: Array) -> Array:
        """The action [M] that brings visits nearest to the improved policy (equation 14)."""
        count = self.count[rows, node]
        return (self.policy(rows, node) - count / (1.0 + count.sum(-1, keepdims=True))).argmax(-1)

    def descend(self, gumbel: Array, tried: Array) -> Path:
        """Go down each tree to an edge without a node."""
        rows, node, steps = self._all, np.zeros_like(self._all), []
        last, chosen = np.empty_like(self._all), np.empty_like(self._all)
        action = self.root_choice(gumbel, tried)
        while len(rows):
            steps.append((rows, node, action))
            last[rows], chosen[rows] = node, action
            after = self.child[rows, node, action]
            deeper = after >= 0
            rows, node = rows[deeper], after[deeper]
            action = self.inner_choice(rows, node) if len(rows) else action
        return Path(steps, (self._all, last, chosen))

    def grow(self, path: Path, outcome: Outcome) -> None:
        """Put a node at the end of each path, and tell those above what was found."""
        self.child[path.end] = self.nodes
        self.reward[path.end] = outcome.reward.cpu().numpy()
        self.discount[path.end] = outcome.discount.cpu().numpy()
        self._add(outcome.leaf)
        worth = self.raw[:, self.nodes - 1].copy()
        for edge in reversed(path.steps):
            rows = edge[0]
            worth[rows] = self.reward[edge] + self.discount[edge] * worth[rows]
            self.count[edge] += 1
            self.q[edge] += (worth[rows] - self.q[edge]) / self.count[edge]
            self._widen(rows, self.q[edge])


def _gumbel(logits: Tensor, noise: torch.Generator | None) -> Array:
    """Standard Gumbel noise [B, A]; zeros without noise."""
    if noise is None:
        return np.zeros(tuple(logits.shape))
    uniform = torch.rand(logits.shape, generator=noise, device=noise.device).double().cpu()
    return -np.log(-np.log(uniform.clamp(1e-12, 1.0 - 1e-12).numpy()))


def _kind(array: Array) -> torch.dtype:
    return torch.int64 if array.dtype.kind == "i" else torch.float32
