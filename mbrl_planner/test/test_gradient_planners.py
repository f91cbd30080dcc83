"""Planners that differentiate the model, on a point mass whose optimum is known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.testing import PointMass
from mbrl_planner.planners.gradient import Gradient
from mbrl_planner.planners.ilqr import ILQR, ILQRConfig, feedback
from mbrl_planner.planners.lqr import LQR
from mbrl_planner.testing import check_planner, closed_loop, lqr_return, stationary_gain

torch.set_num_threads(1)


class Blind(PointMass):
    """A model that cannot be differentiated."""

    capabilities = Capabilities(differentiable=False, rewards=True)


@pytest.mark.parametrize("planner", [Gradient, ILQR, LQR])
def test_contract(planner: type) -> None:
    check_planner(planner)


@pytest.mark.parametrize("planner", [LQR, ILQR])
def test_the_first_action_is_that_of_scipys_riccati_equation(planner: type) -> None:
    states = torch.tensor([[0.1, 0.0], [-0.05, 0.1], [0.02, -0.15]])
    made = planner(replace(planner.Config(), horizon=80))
    plan = made.plan(PointMass(), states)
    expected = -states.numpy() @ stationary_gain().T
    np.testing.assert_allclose(plan.actions[:, 0].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_ilqr_reaches_the_best_return_and_its_gains_correct_a_state_that_was_not_foreseen() -> None:
    start = torch.tensor([[0.2, -0.1]])
    plan = ILQR(ILQRConfig(horizon=30)).plan(PointMass(), start)
    assert float(plan.value) == pytest.approx(lqr_return(start[0].numpy(), 30), rel=1e-4)
    pushed = start + torch.tensor([[0.05, 0.05]])
    corrected = feedback(plan, 0, pushed)
    again = ILQR(ILQRConfig(horizon=30)).plan(PointMass(), pushed).actions[:, 0]
    torch.testing.assert_close(corrected, again, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("planner, worse", [(Gradient, 0.2), (ILQR, 0.05), (LQR, 0.05)])
def test_closed_loop_is_nearly_as_good_as_lqr(planner: type, worse: float) -> None:
    starts = torch.tensor([[0.2, 0.0], [-0.1, 0.1]])
    returns = closed_loop(planner(), starts, 30)
    best = [lqr_return(s, 30) for s in starts.numpy()]
    np.testing.assert_allclose(returns.numpy(), best, rtol=worse)


@pytest.mark.parametrize("planner", [Gradient, ILQR, LQR])
def test_a_model_without_gradients_gets_one_sentence(planner: type) -> None:
    with pytest.raises(UserError, match=r"gradient|differentia"):
        planner().plan(Blind(), torch.zeros(1, 2))
