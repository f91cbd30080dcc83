"""Every installed dynamics model of this package keeps its contract."""

from importlib.metadata import entry_points

import pytest

from mbrl_dynamics.config import build
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.testing import check_model

OURS = {
    entry.name: entry
    for entry in entry_points(group="mbrl.models")
    if entry.value.startswith("mbrl_dynamics.")
}
# Held to it in a file of their own: they need another world, or more than their defaults.
ELSEWHERE = {"latent", "residual", "rssm", "tabular", "tdmpc"}
SMALL = {  # configuration and gradient steps; others as they are by default
    "ensemble": ({"members": 3, "hidden": (32, 32), "batch_size": 64}, 600),
    "gp": ({"points": 100, "features": 32}, 60),
    "network": ({"hidden": (32, 32), "batch_size": 64}, 600),
}


@pytest.mark.parametrize("name", sorted(OURS.keys() - ELSEWHERE))
def test_contract(name: str) -> None:
    model_class = OURS[name].load()
    values, steps = SMALL.get(name, ({}, 1500))
    config = build(model_class.Config, values)
    check_model(lambda spec: model_class(spec, config), budget=Budget(steps))


def test_none_is_left_out() -> None:
    assert OURS.keys() >= ELSEWHERE
