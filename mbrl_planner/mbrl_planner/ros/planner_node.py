"""The node that plans: answers each State by a search through the newest model."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from visualization_msgs.msg import MarkerArray

from mbrl_dynamics import plugins
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.ros.node import run
from mbrl_dynamics.transition import Transition
from mbrl_msgs.msg import Plan as PlanMsg
from mbrl_msgs.srv import ComputePlan
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.gate_process import Order
from mbrl_planner.interfaces import Planner
from mbrl_planner.planners.graphed import on_device
from mbrl_planner.ros.controller_node import ControllerNode, ControllerNodeConfig
from mbrl_planner.ros.convert import PlanContext, plan_to_msg
from mbrl_planner.ros.markers import plan_markers
from mbrl_planner.ros.model_subscriber import ModelSubscriber

DRAW_PERIOD = 0.05  # least time between two drawings [s]


@config
class PlannerNodeConfig(ControllerNodeConfig):
    """Parameters of PlannerNode; a planner's own stand under its name, as in `icem.horizon`."""

    planner: Annotated[
        str, Field(description="what searches: an installed planner, or package.module:Class")
    ] = "icem"
    time_budget: Annotated[
        float,
        Field(ge=0, description="a decision ends after so long with the best plan so far; 0 = no limit [s]"),
    ] = 0.0
    device: Annotated[str, Field(description="where plans are computed: cpu, cuda, cuda:1 ...")] = "cpu"
    replan_every: Annotated[
        int,
        Field(ge=0, description="control steps from plan to plan; 0 = each is followed to its end [steps]"),
    ] = 1
    exploration_noise: Annotated[
        float,
        Field(ge=0, description="standard deviation of the noise on scaled actions in mode explore [1]"),
    ] = 0.1
    model_tolerance: Annotated[
        float,
        Field(
            ge=1, description="a model whose error is so many times that of another is not used for it [1]"
        ),
    ] = 1.5
    model_folder: Annotated[
        str,
        Field(description="folder of the model in use, read at the start; empty = it is not kept on disk"),
    ] = ""
    display_candidates: Annotated[
        int, Field(ge=1, description="candidates in `plan` and `plan_markers`, where anybody listens [1]")
    ] = 16


class PlannerNode(ControllerNode):
    """Model-predictive control over ROS. Subscribes `spec`, `state`, `model_update`; see docs for the rest.

    Raises:
        UserError: a parameter is unknown, of the wrong type or out of range, or names nothing installed.
    """

    Config = PlannerNodeConfig
    models: ModelSubscriber

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("planner_node", **kwargs)
        self._plans = self.create_publisher(PlanMsg, "plan", 10)
        self._markers = self.create_publisher(MarkerArray, "plan_markers", 10)
        self.create_service(ComputePlan, "compute_plan", self._compute_plan)
        self._drawn = 0.0

    def parameter_groups(self) -> dict[str, type]:
        """Those of all installed planners, and of one named outright."""
        groups = planner_groups()
        named = self.get_parameter("planner").value if self.has_parameter("planner") else ""
        if isinstance(named, str) and ":" in named:
            groups[_prefix(named)] = plugins.find("planners", named).Config
        return groups

    def make_decider(self) -> MPC:
        """MPC with the planner that the parameters name."""
        own = self.params[""]
        self.mpc = MPC(
            self._make_planner(),
            exploration_noise=own.exploration_noise,
            time_budget=own.time_budget,
            replan_every=own.replan_every,
            seed=own.seed,
        )
        return self.mpc

    def make_models(self) -> ModelSubscriber:
        """From the learner, judged by a process of its own."""
        own, group = self.params[""], _prefix(self.params[""].planner)
        plugins.find("models", own.model)
        folder = str(Path(own.model_folder).expanduser()) if own.model_folder else ""
        order = Order(
            own.model,
            own.task,
            own.action_repeat,
            own.model_tolerance,
            folder,
            own.planner,
            dataclasses.asdict(self.params[group]),
            own.time_budget,
            limit=self.task.spec.control_period if own.time_budget else 0.0,
        )
        return ModelSubscriber(self, order, self.task, self.model_ready)

    def heard(self, state: Transition) -> None:
        """New models are tried out on what happened."""
        self.models.hear(state)

    def trouble(self) -> str:
        """What is wrong with judging models."""
        return self.models.trouble

    def use(self, model: Model | None) -> None:
        """Plan with this model."""
        self.mpc.swap(model)

    def parameters_changed(self, group: str) -> None:
        """Make the planner anew; it is stateless."""
        if group == _prefix(self.params[""].planner):
            self.mpc.planner = self._make_planner()
            self.models.use_planner(self.params[""].planner, dataclasses.asdict(self.params[group]))

    def show(self, state: Transition) -> None:
        """Publish `plan` and `plan_markers`, where somebody listens."""
        watched = self._plans.get_subscription_count(), self._markers.get_subscription_count()
        self.mpc.display = self.params[""].display_candidates if any(watched) else 0  # from the next plan on
        plan = self.controller.memory.plan if self.mpc.ready and self.controller.memory else None
        if plan is None or plan.obs is None or math.isnan(self.controller.planning_ms):
            return  # nothing was planned for this State
        if watched[0]:
            self._plans.publish(self._plan_msg(plan, state.key, state.stamp, self.controller.planning_ms))
        now = time.monotonic()
        if watched[1] and hasattr(self.task, "points") and now - self._drawn >= DRAW_PERIOD:
            self._drawn = now
            self._markers.publish(plan_markers(plan, self.task, state.stamp))

    def _compute_plan(
        self, request: ComputePlan.Request, response: ComputePlan.Response
    ) -> ComputePlan.Response:
        try:
            self._answer_service(request, response)
        except Exception as error:
            self.fault(error)
            response.error_code, response.error_msg = ComputePlan.Response.FAILED, f"planning failed: {error}"
        return response

    def _answer_service(self, request: ComputePlan.Request, response: ComputePlan.Response) -> None:
        spec = self.controller.spec
        obs, guess = np.asarray(request.observation), np.asarray(request.guess)
        fault = _fault(obs, guess, request.time_budget, spec.observation_dim, spec.action_dim)
        if fault or not self.mpc.ready:
            code = ComputePlan.Response.BAD_REQUEST if fault else ComputePlan.Response.NO_MODEL
            response.error_code, response.error_msg = code, fault or "no model has been accepted yet"
            return
        begin = time.perf_counter()
        vector = {"vector": torch.from_numpy(obs.astype(np.float32))[None]}
        rows = guess.reshape(1, -1, spec.action_dim)
        start = torch.from_numpy(spec.scale_action(rows).astype(np.float32)) if guess.size else None
        display, self.mpc.display = self.mpc.display, self.params[""].display_candidates
        try:
            plan = self.mpc.compute(vector, start, request.time_budget)
        except UserError as error:
            response.error_code, response.error_msg = ComputePlan.Response.BAD_REQUEST, str(error)
            return
        finally:
            self.mpc.display = display
        if plan.valid is not None and not plan.valid[0]:
            response.error_code = ComputePlan.Response.FAILED
            response.error_msg = "the model predicted nothing finite for any plan"
            return
        took = 1e3 * (time.perf_counter() - begin)
        stamp = 1e-9 * self.get_clock().now().nanoseconds
        response.plan = self._plan_msg(plan, None, stamp, took)

    def _plan_msg(self, plan: Any, key: Any, stamp: float, planning_ms: float) -> PlanMsg:
        used = self.models.in_use
        context = PlanContext(
            key, stamp, self.params[""].planner, used.run_id if used else "", self.models.version, planning_ms
        )
        return plan_to_msg(plan, self.controller.spec, context)

    def _make_planner(self) -> Planner:
        own, name = self.params[""], self.params[""].planner
        planner: Planner = plugins.find("planners", name)(self.params[_prefix(name)])
        planner = on_device(planner, own.device, self.task, own.time_budget)
        planner.check(self.task.spec, plugins.find("models", own.model), self.task)
        return planner


def planner_groups() -> dict[str, type]:
    """Parameter groups of all installed planners, so that one file can hold the settings of several."""
    groups: dict[str, type] = {}
    for name in plugins.names("planners"):
        try:
            groups[name] = plugins.find("planners", name).Config
        except UserError:
            continue  # one that cannot be imported; naming it as the planner tells why
    return groups


def _prefix(planner: str) -> str:
    """The prefix of a planner's parameters: its name, or the class of a package.module:Class."""
    return planner.rpartition(":")[2]


def _fault(obs: Any, guess: Any, time_budget: float, width: int, action: int) -> str:
    """What is wrong with a request, in one sentence; empty = nothing."""
    if obs.size != width:
        return f"observation has {obs.size} elements, but the spec has {width}"
    if not np.isfinite(obs).all():
        return "observation is not finite"
    if guess.size % action:
        return f"guess has {guess.size} values, which is no multiple of the {action} action elements"
    if not np.isfinite(guess).all():
        return "guess is not finite"
    if not (np.isfinite(time_budget) and time_budget >= 0):
        return f"time_budget is {time_budget} s, but must be at least 0"
    return ""


def main() -> int:
    """Run the node."""
    return run(PlannerNode)


if __name__ == "__main__":
    sys.exit(main())
