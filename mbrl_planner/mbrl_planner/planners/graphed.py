"""Sampling planners on a GPU: one whole plan is one launch of a CUDA graph.

A search is some thousand small operations, and to tell a GPU of one takes longer than to do it. So the first
plan is captured, and later ones replay it: the same operations on the same memory. What changes from plan to
plan is copied into that memory before; all else is held fast by the capture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mbrl_dynamics.device import choose
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model, Task
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import ModelState
from mbrl_planner.interfaces import Guess, Heads, Plan, Planner

WARM_UPS = 3  # plans before the capture, in which libraries and caches get ready
KEPT = 8  # captures of different shapes at once

Work = Callable[[torch.Generator], Plan]  # plans, with that source of random numbers
Record = Callable[[Work, torch.device], Work]

for kind in (Guess, Plan):
    pytree.register_dataclass(kind)


def on_device(planner: Planner, device: str, task: Task, time_budget: float = 0.0) -> Planner:
    """The planner itself for the CPU, and for other devices one that plans there.

    Raises:
        UserError: there is no such device, or what the task wants cannot be planned for there.
    """
    if choose(device).type == "cpu":
        return planner
    check_task(task, device)
    return Graphed(planner, device, time_budget=time_budget)


def check_task(task: Task, device: str) -> None:
    """Look whether a task's reward is a function of what is on a device, by tensors that have no values.

    Raises:
        UserError: it is not.
    """
    obs = torch.zeros(1, task.spec.observation_dim, device="meta")
    action = torch.zeros(1, task.spec.inner_action_dim, device="meta")
    try:
        task.reward(obs, action, obs)
        task.terminated(obs)
    except NotImplementedError:
        return  # only the world knows it
    except RuntimeError as error:
        raise UserError(
            f"the reward of task '{task.spec.task}' needs numbers that are not on device '{device}', "
            f"so that no plan can be made there; set device to cpu"
        ) from error


class Graphed:
    """A Planner that searches as another one does, on a device. Models, states and plans stay outside of it.

    A new model whose weights alone are new is copied into the captured one; another architecture, task, batch
    or form of warm start is captured anew. The noise of a captured plan is seeded by a number drawn from the
    caller's generator. On the CPU nothing is captured: the same work on the same memory is done each time.

    Args:
        planner: searches by sampling.
        device: "cpu", "cuda", "cuda:1".
        time_budget: that the caller is going to plan with [s]; only 0 is possible.
        record: makes of work that is done in Python work that is replayed; None = as the device wants it.

    Raises:
        UserError: there is no such device, or the planner cannot plan there.
    """

    def __init__(
        self, planner: Any, device: str, *, time_budget: float = 0.0, record: Record | None = None
    ) -> None:
        self.planner, self.device, self.config = planner, choose(device), planner.config
        self._record = record or (captured if self.device.type == "cuda" else eager)
        self._model: Model | None = None  # on the device
        self._held: Any = None  # what `_model` is beside its weights
        self._source: Model | None = None  # which it is a copy of
        self._versions: list[int] = []  # of the source's weights, which count their changes
        self._captures: dict[Any, Capture] = {}
        if not getattr(planner, "capturable", False):
            raise UserError(
                f"planner '{type(planner).__name__.lower()}' cannot plan on device '{device}'; "
                f"set device to cpu, or planner to icem, cem, mppi, pddm or random_shooting"
            )
        if time_budget:
            raise UserError(
                f"time_budget is {time_budget} s, but a plan on device '{device}' cannot end early; "
                f"set time_budget to 0, or device to cpu"
            )
        if self.config.rrt_expansions:
            raise UserError(
                f"rrt_expansions is {self.config.rrt_expansions}, but no tree grows on device '{device}'; "
                f"set rrt_expansions to 0, or device to cpu"
            )

    def check(self, spec: Spec, model: Any = None, task: Any = None) -> None:
        """Look whether the planner fits a world and can use a model on the device; see `Planner.check`."""
        self.planner.check(spec, model, task)
        if model is not None and not model.capabilities.capturable:
            kind = model if isinstance(model, type) else type(_parts(model)[0])
            raise UserError(
                f"model {kind.__name__} cannot be captured, so no plan through it runs on device "
                f"'{self.device}'; set device to cpu, or model to ensemble or network"
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
        """Search; see `Planner.plan`. There can be neither heads nor a deadline.

        Raises:
            UserError: there is one of them, or the model does not fit the device.
        """
        if deadline is not None:
            raise UserError(f"a plan on device '{self.device}' cannot end early: it takes no time_budget")
        if heads is not None:
            raise UserError(f"a plan on device '{self.device}' takes no terminal value and no policy")
        self._use(model)
        inputs = state, None if guess is None else guess.shifted(shift)
        leaves, tree = pytree.tree_flatten(inputs)
        key = tree, display, *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        if key not in self._captures:
            if len(self._captures) == KEPT:
                self._captures.clear()
            self._captures[key] = Capture(self._work(display), inputs, self.device, self._record)
        return self._captures[key].run(inputs, torch.default_generator if noise is None else noise)

    def _work(self, display: int) -> Callable[[Any, torch.Generator], Plan]:
        model = self._model
        assert model is not None

        def work(inputs: Any, noise: torch.Generator) -> Plan:
            # What a model has derived from its weights it forgets now, and derives within the capture, where
            # weights that are copied in later have an effect on it.
            model.load_state_dict(model.state_dict())
            state, guess = inputs
            plan: Plan = self.planner.plan(model, state, guess, shift=0, noise=noise, display=display)
            return plan

        return work

    def _use(self, model: Model) -> None:
        """Have this model on the device, as it is now."""
        weights, held = model.state_dict(), _held(model)
        versions = [weight._version for weight in weights.values()]
        if model is self._source and versions == self._versions and held == self._held:
            return
        with torch.inference_mode(False), torch.no_grad():
            if self._model is not None and held == self._held:
                self._model.load_state_dict(weights)
            else:
                self.check(model.spec, model)
                self._captures.clear()
                self._model, self._held = _copy(model, self.device), held
        self._source, self._versions = model, versions


class Capture:
    """One shape of plan, with the memory that its inputs have on the device.

    Args:
        work: plans from those inputs.
        inputs: of that shape.
        device: where it plans.
        record: see `Graphed`.
    """

    def __init__(
        self, work: Callable[[Any, torch.Generator], Plan], inputs: Any, device: torch.device, record: Record
    ) -> None:
        def at(value: Tensor) -> Tensor:
            return torch.empty(value.shape, dtype=value.dtype, device=device).copy_(value)

        self._inputs = pytree.tree_map_only(Tensor, at, inputs)
        self._run = record(lambda noise: work(self._inputs, noise), device)

    def run(self, inputs: Any, noise: torch.Generator) -> Plan:
        """Plan from these inputs; the plan is where they are, in memory of its own."""
        tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
        held = [x for x in pytree.tree_leaves(self._inputs) if isinstance(x, Tensor)]
        for here, there in zip(tensors, held, strict=True):
            there.copy_(here)
        home = tensors[0].device
        plan: Plan = pytree.tree_map_only(Tensor, lambda x: x.to(home, copy=True), self._run(noise))
        return plan


def eager(work: Work, device: torch.device) -> Work:
    """The work itself."""
    return work


def captured(work: Work, device: torch.device, cuda: Any = torch.cuda) -> Work:
    """The work as a CUDA graph.

    Args:
        work: does the same operations on the same memory each time, and does not wait for any of them.
        device: a CUDA device.
        cuda: torch's module, or what behaves like it.

    Returns:
        Replays the graph; the plan is the same memory each time.
    """
    own = torch.Generator(device)
    with cuda.device(device):
        side = cuda.Stream()  # libraries must not get ready on the stream of the capture
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(WARM_UPS):
                work(own)
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        graph.register_generator_state(own)  # else each replay would draw the same numbers
        with cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
            plan = work(own)

    def replay(noise: torch.Generator) -> Plan:
        own.manual_seed(int(torch.randint(2**62, (), generator=noise, device=noise.device)))
        with cuda.device(device):
            graph.replay()
        return plan

    return replay


def _parts(model: Any) -> tuple[Any, Any]:
    """A model, and the task that was added to it; None = none was."""
    return (model.model, model.task) if isinstance(model, WithTask) else (model, None)


def _held(model: Any) -> Any:
    """What a capture holds fast of a model, and compares: all but the values of its weights."""
    own, task = _parts(model)
    shapes = [(name, weight.shape, weight.dtype) for name, weight in own.state_dict().items()]
    wanted = {name: value for name, value in getattr(task, "__dict__", {}).items() if name != "spec"}
    return type(own), own.spec, own.config, shapes, type(task), _frozen(wanted)


def _frozen(value: Any) -> Any:
    """Something that equals what it was made from as long as nothing in that changes."""
    if isinstance(value, Tensor):
        value = value.cpu().numpy()
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, dict):
        return tuple((name, _frozen(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(part) for part in value)
    parts = getattr(value, "__dict__", None)
    return value if parts is None or callable(value) else (type(value), _frozen(parts))


def _copy(model: Any, device: torch.device) -> Model:
    """The same model on a device."""
    own, task = _parts(model)
    own = copy.deepcopy(own).to(device)
    return own if task is None else WithTask(own, task)
