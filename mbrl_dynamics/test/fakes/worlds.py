"""Made-up worlds for tests: a point that drifts, with as many gaps and faults as a test wants."""

from collections.abc import Iterator

import numpy as np

from mbrl_dynamics.spec import Camera, Element, Spec
from mbrl_dynamics.transition import Transition

WORLD = bytes(range(16))
OTHER_WORLD = bytes(range(16, 32))
SPEC = Spec(
    task="drift",
    observation=(Element("position", "m"), Element("velocity", "m/s")),
    action=(Element("force", "N", -2.0, 2.0),),
    control_period=0.05,
)
OTHER_SPEC = Spec(SPEC.task, SPEC.observation, SPEC.action, control_period=0.1)
CAMERA_SPEC = Spec(
    SPEC.task, SPEC.observation, SPEC.action, SPEC.control_period, cameras=(Camera("eye", 3, 4),)
)


def transition(
    episode: int = 0, step: int = 0, *, world: bytes = WORLD, spec: Spec = SPEC, **changes
) -> Transition:
    """One State, a function of (episode, step) alone."""
    random = np.random.default_rng((episode, step))
    fields = {
        "world_id": world,
        "episode": episode,
        "step": step,
        "observation": random.normal(size=spec.observation_dim),
        "action": random.uniform(-1, 1, spec.action_dim),
        "reward": float(step),
        "first": step == 0,
        "controller_id": "test" if step else "",
        "stamp": 100.0 * episode + 0.05 * step,
        "images": {c.name: np.full((c.height, c.width, 3), step % 256, np.uint8) for c in spec.cameras},
    }
    return Transition(**(fields | changes))


def episode(
    number: int = 0, steps: int = 10, *, world: bytes = WORLD, spec: Spec = SPEC
) -> Iterator[Transition]:
    """`steps` + 1 States of x' = x + 0.1 v, v' = 0.9 v + 0.5 u, truncated at the end."""
    random = np.random.default_rng(number)
    obs = random.normal(size=2)
    yield transition(number, 0, world=world, spec=spec, observation=obs)
    for step in range(1, steps + 1):
        action = random.uniform(-2, 2, 1)
        obs = np.array([obs[0] + 0.1 * obs[1], 0.9 * obs[1] + 0.5 * action[0]])
        yield transition(
            number, step, world=world, spec=spec, observation=obs, action=action, truncated=step == steps
        )


def same(a: Transition, b: Transition) -> bool:
    """Whether two States are equal, but for a microsecond in their stamps."""
    return (
        a.key == b.key
        and (a.first, a.terminated, a.truncated, a.controller_id)
        == (b.first, b.terminated, b.truncated, b.controller_id)
        and np.array_equal(a.observation, b.observation)
        and np.array_equal(a.action, b.action)
        and np.array_equal(a.reward, b.reward, equal_nan=True)
        and abs(a.stamp - b.stamp) < 1e-6
        and a.images.keys() == b.images.keys()
        and all(np.array_equal(a.images[name], b.images[name]) for name in a.images)
    )
