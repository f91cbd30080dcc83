import pytest

from mbrl_sim import simulator  # noqa: F401  (chooses how to draw before anything else imports MuJoCo)


@pytest.fixture(params=["pendulum", "pendulum_swingup", "cartpole_swingup", "cartpole_pets", "arm_reach"])
def task(request: pytest.FixtureRequest):
    """Each task of this package."""
    from mbrl_dynamics.plugins import find

    return find("tasks", request.param)()
