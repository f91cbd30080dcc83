"""Worlds that are not as their MJCF says, and noisy motion in them: for whatever should find that out."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.transition import Transition
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.base import MujocoTask

NOISE = (0.001, 0.01)  # of positions [m, rad] and velocities [m/s, rad/s], as the stand-in for a robot has it
STEPS = 200
_FINE = 1e-3  # steps of the physics where pushes take effect between those of the MJCF [s]


def stranger(kind: type[MujocoTask], truth: dict[str, float], folder: Path) -> MujocoTask:
    """A task whose world has other masses (of geoms or inertials) and damping than its MJCF.

    Args:
        kind: of the task.
        truth: what is otherwise, as `FittedPhysics` names its parameters: {"mass:pole": 0.14} [SI].
        folder: where its MJCF is written.
    """
    tree = ElementTree.parse(kind.mjcf)
    for name, value in truth.items():
        what, _, of = name.partition(":")
        if what == "mass":
            body = tree.find(f".//body[@name='{of}']")
            assert body is not None
            own = body.find("inertial")
            element, attribute = (body.find("geom") if own is None else own), "mass"
        else:
            element, attribute = tree.find(f".//joint[@name='{of}']"), what
        assert element is not None
        ratio = value / float(element.get("mass", "1"))
        if element.tag == "inertial":
            inertia = " ".join(str(ratio * float(x)) for x in element.get("diaginertia", "").split())
            element.set("diaginertia", inertia)
        element.set(attribute, str(value))
    path = folder / kind.mjcf.name
    tree.write(path)
    return type("Stranger", (kind,), {"mjcf": path})()


def play(
    task: MujocoTask,
    seed: int,
    *,
    episodes: int,
    hold: int = 3,
    noise: tuple[float, float] = NOISE,
    delay: float = 0.0,
) -> ReplayBuffer:
    """Random pushes, each for `hold` steps, and what is seen of what they do; `STEPS` an episode.

    Args:
        task: whose world it is.
        seed: of the world, the pushes and the noise.
        episodes: how many.
        hold: of a push [steps].
        noise: of positions and velocities.
        delay: after which a push takes effect, in whole milliseconds [s].
    """
    simulator, buffer, rng = Simulator(task, seed), ReplayBuffer(task.spec), np.random.default_rng(seed)
    fine = simulator.refine(_FINE) if delay else 0.0

    def see() -> Any:
        qpos, qvel = simulator.qpos, simulator.qvel
        qpos += noise[0] * rng.standard_normal(len(qpos))
        qvel += noise[1] * rng.standard_normal(len(qvel))
        return task.observe(qpos, qvel)

    def push(action: Any, before: Any) -> None:
        if not delay:
            simulator.step(action)
            return
        old, steps = (round(seconds / fine) for seconds in (delay, task.spec.control_period))
        for step in range(steps):
            simulator.substep(before if step < old else action)

    low, high = task.spec.action_low, task.spec.action_high
    for episode in range(episodes):
        simulator.reset()
        action = np.zeros(task.spec.action_dim)
        buffer.add(Transition(bytes(16), episode, 0, see(), action, first=True))
        for step in range(STEPS):
            before, action = action, rng.uniform(low, high) if step % hold == 0 else action
            push(action, before)
            buffer.add(Transition(bytes(16), episode, step + 1, see(), action))
    return buffer
