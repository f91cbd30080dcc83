"""A planner's decision as messages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics.ros.convert import doubles, finite_or_nan, time_msg, world_id_field
from mbrl_dynamics.spec import Spec
from mbrl_msgs.msg import Plan as PlanMsg
from mbrl_planner.interfaces import Plan


@dataclass(frozen=True)
class PlanContext:
    """What a Plan message says beside the plan itself.

    Attributes:
        key: (world id, episode, step) of the State that was planned from; None = none.
        stamp: of that State [s].
        planner: its name.
        run_id, model_version: of the model that was used.
        planning_ms: wall time of the decision [ms].
    """

    key: tuple[bytes, int, int] | None
    stamp: float
    planner: str
    run_id: str
    model_version: int
    planning_ms: float


def plan_to_msg(plan: Plan, spec: Spec, context: PlanContext) -> PlanMsg:
    """The first plan of the batch as a Plan."""
    actions = spec.unscale_action(_array(plan.actions[0]))
    msg = PlanMsg(
        planner=context.planner,
        run_id=context.run_id,
        model_version=context.model_version,
        horizon=len(actions),
        control_period=spec.control_period,
        actions=doubles(actions),
        value=finite_or_nan(float(plan.value[0])),
        disagreement=math.nan if plan.disagreement is None else finite_or_nan(float(plan.disagreement[0])),
        planning_time=1e-3 * context.planning_ms,
        deadline_met=plan.deadline_met,
    )
    msg.header.stamp = time_msg(context.stamp)
    if context.key is not None:
        world_id, msg.episode, msg.step = context.key
        msg.world_id = world_id_field(world_id)
    if plan.obs is not None and plan.spread is not None:
        msg.observations, msg.spread = doubles(_array(plan.obs[0])), doubles(_array(plan.spread[0]))
    if plan.candidate_obs is not None and plan.candidate_returns is not None:
        msg.candidates = plan.candidate_obs.shape[1]
        msg.candidate_observations = doubles(_array(plan.candidate_obs[0]))
        msg.candidate_returns = doubles(_array(plan.candidate_returns[0]))
    return msg


def _array(values: Tensor) -> NDArray[np.floating[Any]]:
    result: NDArray[np.floating[Any]] = values.detach().cpu().numpy()
    return result
