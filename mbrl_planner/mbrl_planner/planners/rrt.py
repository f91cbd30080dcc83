"""Rapidly-exploring random tree under a model's dynamics (LaValle and Kuffner, 2001,
https://doi.org/10.1177/02783640122067453), grown by OMPL (Sucan et al., 2012,
https://doi.org/10.1109/MRA.2012.2205651): for where every small change of a plan makes it worse.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess
from mbrl_planner.planners.noise import colored_noise
from mbrl_planner.planners.options import SamplingConfig
from mbrl_planner.planners.sampling import SamplingPlanner, Scored, Search
from mbrl_planner.planners.scoring import Bound
from mbrl_planner.planners.shared import check_continuous, singles

MOST_DIMENSIONS = 12  # of an observation; in more, a tree of some hundred nodes fills nothing
PROBES = 64  # plans at random that tell how far elements of an observation move
EARLY = 0.5  # distance of a node from its aim for each horizon that it takes to get there
LEAST = 1e-6  # width of what an element reaches, of its size, below which it stands still
FAR = 1e9  # beyond any place
MARGIN = 0.25  # how far beyond what was reached the tree is drawn, of its width

Array = NDArray[np.float64]


@config
class RRTConfig(SamplingConfig):
    """Configuration of RRT."""

    candidates: Annotated[
        int, Field(ge=2, description="expansions of the tree; a plan leads to each of its nodes [1]")
    ] = 300
    iterations: Annotated[
        int, Field(ge=1, description="one for the tree, and refinements of its best plan [1]")
    ] = 1
    hold: Annotated[
        int, Field(ge=1, description="most steps for which a branch keeps its action [steps]")
    ] = 4

    def __post_init__(self) -> None:
        """A tree is not warm-started by another."""
        super().__post_init__()
        if self.rrt_expansions:
            raise UserError("rrt_expansions is for other planners; rrt takes candidates instead")


@dataclass(frozen=True)
class Node:
    """A state that some plan leads to.

    Attributes:
        state: a ModelState [1].
        obs: [D] what is seen there, SI.
        plan: [d, A] what led there.
    """

    state: ModelState
    obs: Array
    plan: Tensor


class RRT(SamplingPlanner):
    """Grows a tree of what the model can reach, and follows the plan to one of its nodes that is worth most.

    The tree grows towards where it has not been, whatever that is worth; so it finds ways round that begin by
    getting worse. All its nodes within the horizon, and nothing done after them, are candidates like those of
    the other sampling planners, whose options hold here too. Where there are further iterations, they vary
    the best with noise of deviation `std`.

    Branches follow the model's mean, and end before a constraint is broken. Each is a call of the model of
    its own: a tree costs much more than as many candidates. For use as a warm start, see `rrt_expansions`.
    """

    Config = RRTConfig

    def check(self, spec: Spec, model: Any = None, task: Any = None) -> None:
        """Look whether the planner fits a world and can use a model; see `Planner.check`."""
        super().check(spec, model, task)
        check_tree("planner 'rrt'", spec, model)

    def propose(self, search: Search, iteration: int, noise: torch.Generator | None) -> Tensor:
        """The plan so far, and those that the tree found; later, variations of the best."""
        if search.elites is not None:
            return torch.cat([search.mean[:, None], search.elites], dim=1)
        shape = len(search.mean), self.config.candidates - 1, search.mean.shape[2]
        drawn = colored_noise(shape, search.mean.shape[1], 1.0, noise).mT
        varied = (search.mean[:, None] + search.std[:, None] * drawn).clamp(-1.0, 1.0)
        return torch.cat([search.mean[:, None], varied], dim=1)

    def refit(self, search: Search, scored: Scored) -> tuple[Tensor, Tensor, Tensor | None]:
        """The best; what the tree found is not tried again."""
        return scored.top(1)[:, 0], search.std, None

    def _begin(
        self,
        model: Model,
        state: ModelState,
        guess: Guess | None,
        shift: int,
        noise: torch.Generator,
        deadline: float | None,
    ) -> Search:
        """Grow the trees."""
        search = super()._begin(model, state, guess, shift, noise, deadline)
        plans, config = self._knots.plan(search.mean), self.config
        found = []
        for one, plan in zip(singles(state), plans, strict=True):
            tree = Tree(model, config, self._bounds, noise)
            found.append(tree.grow(one, plan, config.candidates, deadline))
        most = max(len(paths) for paths in found)
        paths = [
            torch.cat([p, plan.expand(most - len(p), -1, -1)]) for p, plan in zip(found, plans, strict=True)
        ]
        return replace(search, elites=self._knots.of(torch.stack(paths)))


def check_tree(who: str, spec: Spec, model: Any) -> None:
    """Look whether a tree can grow in a world and a model.

    Raises:
        UserError: it cannot; the sentence begins with who wants it.
    """
    check_continuous("rrt", spec)
    if find_spec("ompl") is None:
        raise UserError(f"{who} needs OMPL, which is not installed: pip install ompl (for Python up to 3.13)")
    if spec.observation_dim > MOST_DIMENSIONS:
        raise UserError(
            f"{who} takes at most {MOST_DIMENSIONS} observation elements, but task '{spec.task}' has "
            f"{spec.observation_dim}; plan without a random tree, such as planner:=icem"
        )
    if model is not None and not model.capabilities.decodes:
        kind = model.__name__ if isinstance(model, type) else type(getattr(model, "model", model)).__name__
        raise UserError(
            f"{who} needs a model that predicts observations, which {kind} does not; plan without a random "
            f"tree, such as planner:=icem"
        )


class Tree:
    """What can be reached from a state.

    OMPL keeps the tree and looks up its nodes; for it, a state is where a node is (in units of how far random
    plans get, within which it measures distances) and the node's number. Each expansion has an aim: a point
    of the box that has been reached, or a little beyond. OMPL knows aims only as drawn from a goal.

    Args:
        model: whose mean is followed.
        config: how many steps, branches, and for how long.
        bounds: what no branch may break.
        noise: of all random numbers.
    """

    def __init__(
        self, model: Model, config: RRTConfig, bounds: tuple[Bound, ...], noise: torch.Generator
    ) -> None:
        self.model, self.config, self.bounds, self.noise = model, config, bounds, noise
        self.nodes: list[Node] = []
        self.used = 0  # expansions
        self._low = self._high = self._unit = np.zeros(model.spec.observation_dim)
        elements = model.spec.observation
        self._range = np.array([e.low for e in elements]), np.array([e.high for e in elements])

    def grow(self, state: ModelState, plan: Tensor, expansions: int, deadline: float | None) -> Tensor:
        """Grow from a state and from along a plan, and tell the plans to all nodes [N, H, A].

        Args:
            state: a ModelState [1].
            plan: [H, A] of which the tree takes the beginning.
            expansions: at most.
            deadline: as a planner's.
        """
        self._measure(state)
        self.nodes, self.used = self._along(state, plan), 0
        if self.nodes and self._unit.any():
            self._explore(expansions, deadline)
        plans = plan.new_zeros(len(self.nodes), *plan.shape)
        for row, node in zip(plans, self.nodes, strict=True):
            row[: len(node.plan)] = node.plan
        return plans

    def _measure(self, state: ModelState) -> None:
        """Look how far random plans, which hold their actions as branches do, get within the horizon."""
        config, width = self.config, self.model.spec.inner_action_dim
        count = -(-config.horizon // config.hold)
        held = 2.0 * torch.rand(1, PROBES, count, width, generator=self.noise) - 1.0
        plans = held.repeat_interleave(config.hold, dim=2)[:, :, : config.horizon]
        obs = self.model.imagine(state, plans, keep=("obs",)).obs
        assert obs is not None
        rows = obs.flatten(0, -2).double().numpy()
        rows = rows[np.isfinite(rows).all(-1)]
        if len(rows):
            self._low, self._high = rows.min(0), rows.max(0)
            span, size = self._high - self._low, np.maximum(np.abs(self._low), np.abs(self._high))
            self._unit = np.where(span > LEAST * size, span, np.inf)

    def _along(self, state: ModelState, plan: Tensor) -> list[Node]:
        """The nodes of a plan, as far as it can be followed."""
        obs = self.model.decode(state)
        assert obs is not None
        nodes = [Node(state, obs[0].double().numpy(), plan[:0])]
        while plan.any() and len(nodes) < len(plan):
            node, done = nodes[-1], len(nodes)
            after = self._branch(node, plan[done - 1 : done], 1)
            if after is None:
                break
            nodes.append(after)
        return nodes

    def _branch(self, node: Node, action: Tensor, steps: int) -> Node | None:
        """Where an action [1, A] leads from a node if it is kept for so many steps; None where the task ends
        on the way, a constraint is broken, or no number is predicted.
        """
        state, obs = node.state, node.obs
        for _ in range(steps):
            ahead = self.model.step(state, action)
            assert ahead.obs is not None
            state, seen = ahead.state, ahead.obs
            obs = seen[0].double().numpy()
            alive = ahead.alive is None or bool(ahead.alive > 0.5)
            broken = any(bool(bound.excess(seen, self.model.spec) > 0) for bound in self.bounds)
            if broken or not alive or not np.isfinite(obs).all():
                return None
        return Node(state, obs, torch.cat([node.plan, action.expand(steps, -1)]))

    def _aim(self) -> list[float]:
        """Where the tree should grow next, in units of distance."""
        draw = torch.rand(len(self._unit), generator=self.noise, dtype=torch.float64).numpy()
        beyond, (least, most) = MARGIN * (self._high - self._low), self._range
        low, high = np.maximum(self._low - beyond, least), np.minimum(self._high + beyond, most)
        return ((low + draw * (high - low)) / self._unit).tolist()

    def _expand(self, number: int) -> int:
        """Grow from a node towards the aim: the number of the new node, or -1 where it cannot."""
        node, config = self.nodes[number], self.config
        self.used += 1
        left = config.horizon - len(node.plan)
        steps = min(int(torch.randint(config.hold, (), generator=self.noise)) + 1, left)
        # Half of the actions are at a limit, where the shortest ways are. The nearest to the aim of several
        # would fill free space sooner, but runs into each dead end that lies before its aim (measured).
        drawn = 4.0 * torch.rand(1, self.model.spec.inner_action_dim, generator=self.noise) - 2.0
        after = self._branch(node, drawn.clamp(-1.0, 1.0), steps)
        if after is None:
            return -1
        self.nodes.append(after)
        self._low, self._high = np.minimum(self._low, after.obs), np.maximum(self._high, after.obs)
        return len(self.nodes) - 1

    def _place(self, number: int, state: Any) -> None:
        """Write into a state of OMPL's where a node is, which one it is, and how late."""
        node = self.nodes[number]
        state[0][0 : len(self._unit)] = (node.obs / self._unit).tolist()
        state[1][0], state[2][0] = float(number), len(node.plan) / self.config.horizon

    def _explore(self, expansions: int, deadline: float | None) -> None:
        """Have OMPL grow the tree."""
        from ompl import base, control, util  # only where a tree is grown

        util.setLogLevel(util.LOG_NONE)
        tree, size = self, len(self._unit)

        class Anywhere(base.GoalSampleableRegion):
            """A goal that is never reached, and is elsewhere each time."""

            def sampleGoal(self, state: Any) -> None:
                state[0][0:size], state[2][0] = tree._aim(), 0.0

            def maxSampleCount(self) -> int:
                return 1

            def distanceGoal(self, state: Any) -> float:
                return 1.0

        def propagate(state: Any, action: Any, duration: float, result: Any) -> None:
            number = tree._expand(int(state[1][0]))
            result[1][0] = -1.0
            if number >= 0:
                tree._place(number, result)

        def open_end(state: Any) -> bool:
            number = int(state[1][0])
            return number >= 0 and len(tree.nodes[number].plan) < tree.config.horizon

        def over() -> bool:
            return tree.used >= expansions or (deadline is not None and time.perf_counter() > deadline)

        world = _world(size)
        world.setStatePropagator(propagate)
        world.setStateValidityChecker(open_end)
        world.setup()
        problem = base.ProblemDefinition(world)
        for number in range(len(self.nodes)):
            start = world.allocState()
            self._place(number, start)
            problem.addStartState(start)
        problem.setGoal(Anywhere(world))
        planner = control.RRT(world)
        planner.setGoalBias(1.0)
        planner.setProblemDefinition(problem)
        planner.setup()
        planner.solve(base.PlannerTerminationCondition(over))


def _world(size: int) -> Any:
    """OMPL's: places of so many dimensions, a node's number, which is no distance, and how late it is.

    A step of its is a branch. What it takes for actions is not read: a branch draws its own.
    """
    from ompl import base, control

    space = base.CompoundStateSpace()
    for dimensions, weight in ((size, 1.0), (1, 0.0), (1, EARLY)):
        part, edges = base.RealVectorStateSpace(dimensions), base.RealVectorBounds(dimensions)
        edges.setLow(-FAR)
        edges.setHigh(FAR)
        part.setBounds(edges)
        space.addSubspace(part, weight)
    actions, edges = control.RealVectorControlSpace(space, 1), base.RealVectorBounds(1)
    edges.setLow(0.0)
    edges.setHigh(1.0)
    actions.setBounds(edges)
    world = control.SpaceInformation(space, actions)
    world.setMinMaxControlDuration(1, 1)
    world.setPropagationStepSize(1.0)
    return world
