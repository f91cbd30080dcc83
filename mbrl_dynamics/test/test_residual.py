"""Residual: a model that is not quite right and an ensemble of what it misses beat either alone."""

import numpy as np
import pytest
import torch

from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget, Capabilities
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.models.residual import Residual, ResidualConfig
from mbrl_dynamics.snapshot import pack, restore
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.testing import PointMass, check_model, record
from mbrl_dynamics.types import Prediction

SPEC = Spec(
    "pendulum",
    (Element("cos", encoding="cos"), Element("sin", encoding="sin"), Element("velocity", "rad/s")),
    (Element("torque", "N m", -2.0, 2.0),),
    0.05,
)
SMALL = {"members": 3, "elites": 3, "hidden": (32, 32), "patience": 3}


def swing(obs, action, mass, friction, xp):
    """One step of a rod of 1 m, upright at angle 0."""
    radius = (obs[..., :2] ** 2).sum(-1) ** 0.5  # where an episode begins is drawn anywhere
    cos, sin, speed = obs[..., 0] / radius, obs[..., 1] / radius, obs[..., 2]
    push = 15.0 * sin + 6.0 * action[..., 0] / mass - friction * (speed + 2.0 * xp.tanh(5.0 * speed))
    speed = speed + 0.05 * push
    turn = 0.05 * speed
    c, s = xp.cos(turn), xp.sin(turn)
    return xp.stack([cos * c - sin * s, sin * c + cos * s, speed], -1)


class Frictionless(ObservationModel):
    """A pendulum that is thought to be lighter than it is, and to have no friction."""

    def step(self, state, action, noise=None):
        after = swing(state, action, 0.8, 0.0, torch)
        return Prediction(after, after)

    def fit(self, buffer, budget, progress=None):
        return {"train_loss": 0.0, "holdout_error": holdout_error(self, buffer)}


class Weak(PointMass):
    """A point mass that is thought to be pushed half as much as it is."""

    capabilities = Capabilities(differentiable=True)

    def step(self, state, action, noise=None):
        after = state @ self._a.T + 0.5 * action @ self._b.T
        return Prediction(after, after)

    def fit(self, buffer, budget, progress=None):
        return {"train_loss": 0.0, "holdout_error": holdout_error(self, buffer)}


def played(episodes, seed):
    return record(lambda obs, action: swing(obs, action, 1.0, 0.3, np), SPEC, episodes, 40, seed)


def test_contract():
    small = ResidualConfig(members=3, elites=3, hidden=(32, 32))
    check_model(lambda spec: Residual(spec, small, base=Weak()), budget=Budget(600))


@pytest.mark.learning
def test_it_beats_the_base_and_the_ensemble_on_little_data():
    """Two mutations that make it fail, both tried: the ensemble learns the whole change; and what it learned
    is added to the observation rather than to the base's prediction.
    """
    torch.set_num_threads(1)
    little, much = played(3, seed=0), played(30, seed=1)
    alone = Ensemble(SPEC, EnsembleConfig(**SMALL), seed=0)
    both = Residual(SPEC, ResidualConfig(**SMALL), seed=0, base=Frictionless(SPEC))
    alone.fit(little, Budget(600))
    told = both.fit(little, Budget(600))
    base, ensemble, residual = (holdout_error(model, much) for model in (both.base, alone, both))
    assert residual < 0.5 * min(base, ensemble), (
        f"base {base:.3f} ensemble {ensemble:.3f} both {residual:.3f}"
    )
    assert told["base.holdout_error"] > told["holdout_error"]


def test_a_base_that_is_right_is_hardly_touched():
    class Right(Frictionless):
        def step(self, state, action, noise=None):
            after = swing(state, action, 1.0, 0.3, torch)
            return Prediction(after, after)

    buffer = played(3, seed=0)
    model = Residual(SPEC, ResidualConfig(**SMALL), base=Right(SPEC))
    assert model.fit(buffer, Budget(200))["holdout_error"] < 0.05


def test_predictions_stay_on_the_circle():
    model = Residual(SPEC, ResidualConfig(**SMALL), base=Frictionless(SPEC))
    model.fit(played(1, seed=0), Budget(50))
    state = model.observe(None, None, {"vector": torch.tensor([[1.0, 0.0, 3.0]])})
    obs = model.imagine(state, torch.ones(1, 2, 5, 1), keep=("obs",)).obs
    assert torch.allclose(torch.linalg.vector_norm(obs[..., :2], dim=-1), torch.ones(1, 2, 3, 6), atol=1e-5)


def test_a_base_that_learns_goes_on_learning_and_travels_along():
    buffer = played(3, seed=0)
    config = ResidualConfig(base="ensemble", members=1, hidden=(16,))
    model = Residual(SPEC, config, seed=1)
    model.fit(buffer, Budget(100))
    told = model.fit(buffer, Budget(200))
    assert told["base.holdout_error"] < 0.5
    copy = restore(pack(model, model_id="residual", run_id="r", version=1), SPEC, Residual)
    obs = torch.tensor([[1.0, 0.0, 0.5]])
    ours, theirs = (
        m.step(m.observe(None, None, {"vector": obs}), torch.ones(1, 1)).obs for m in (model, copy)
    )
    assert torch.equal(ours, theirs)
    assert isinstance(copy.base, Ensemble)
    copy.load_training_state(model.training_state())
    copy.fit(buffer, Budget(1))


@pytest.mark.parametrize("base", ["rssm", "tdmpc", "residual"])
def test_what_cannot_be_corrected_is_told(base):
    with pytest.raises(UserError, match="cannot be"):
        Residual(SPEC, ResidualConfig(base=base))


def test_only_what_is_installed_can_be_named():
    with pytest.raises(UserError, match=r"residual\.base"):
        build(ResidualConfig, {"base": "os:getcwd"}, "residual")
    with pytest.raises(UserError, match="unknown model 'nothing'"):
        Residual(SPEC, ResidualConfig(base="nothing"))
