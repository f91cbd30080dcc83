"""The numbers that can be fitted to data, of an MJCF and its drives: which they are, and how a model gets
other ones.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl_dynamics.errors import UserError
from mbrl_sim.drawing import mujoco
from mbrl_sim.goal import robot_joints

_JOINT = int(mujoco.mjtTrn.mjTRN_JOINT)
_SECOND = 1.0  # after which a damping of 1 in natural units has taken most of a speed away [s]
_LATEST = 0.99  # delay, beyond which it is a whole step, Spec.action_delay_steps [control periods]


@dataclass(frozen=True)
class Parameter:
    """One number of an MJCF or its drives, in natural units x in which it is fitted.

    What must be positive is nominal * exp(x). What may be nothing (damping, friction, delay) is scale * x
    with x >= 0, since its logarithm could not begin there. The scale of a delay is the control period.

    Attributes:
        name: as in "mass:pole".
        nominal: what the MJCF says; of a delay, of which it says nothing, 0 [SI].
        scale: see above [SI]; 0 = it must be positive.
        at: its place in the MJCF's array.
    """

    name: str
    nominal: float
    scale: float
    at: int

    @property
    def kind(self) -> str:
        """What it is, as in "mass"."""
        return self.name.partition(":")[0]

    @property
    def start(self) -> float:
        """The nominal value, in natural units."""
        return self.nominal / self.scale if self.scale else 0.0

    @property
    def lowest(self) -> float:
        """The lowest value, in natural units."""
        return 0.0 if self.scale else -math.inf

    @property
    def highest(self) -> float:
        """The highest value, in natural units."""
        return _LATEST if self.kind == "delay" else math.inf

    def value(self, x: float) -> float:
        """From natural units to SI."""
        return self.scale * x if self.scale else self.nominal * float(np.exp(x))

    def error(self, x: float, deviation: float) -> float:
        """A standard deviation in SI, from one in natural units."""
        return deviation * (self.scale or self.value(x))

    def write(self, model: Any, x: float) -> None:
        """Give a model this value; the inertia of a body goes with its mass, and a delay is none of it."""
        kind, value = self.kind, self.value(x)
        if kind == "mass":
            model.body_inertia[self.at] *= value / model.body_mass[self.at]
            model.body_mass[self.at] = value
        elif kind == "damping":
            model.dof_damping[self.at] = value
        elif kind == "friction":
            model.dof_frictionloss[self.at] = value
        elif kind == "gear":
            model.actuator_gear[self.at, 0] = value


def changed(model: Any, parameters: Sequence[Parameter], x: NDArray[np.float64]) -> Any:
    """A copy of a model with other values, in natural units [n]."""
    model = copy.copy(model)
    for parameter, value in zip(parameters, x.tolist(), strict=True):
        parameter.write(model, value)
    mujoco.mj_setConst(model, mujoco.MjData(model))  # what MuJoCo derives from masses
    return model


def delays(
    parameters: Sequence[Parameter], x: NDArray[np.float64], actuators: int
) -> NDArray[np.float64] | None:
    """How late commands take effect [..., A], in control periods; None = no delay is a parameter.

    Args:
        parameters: n of them.
        x: [..., n] their values, in natural units.
        actuators: A.
    """
    late = [(i, parameter.at) for i, parameter in enumerate(parameters) if parameter.kind == "delay"]
    if not late:
        return None
    shares = np.zeros((*x.shape[:-1], actuators))
    for i, at in late:
        shares[..., at] = x[..., i]
    return shares


def choose(
    model: Any, patterns: Sequence[str], goal: str = "", *, period: float = 0.0
) -> tuple[Parameter, ...]:
    """The parameters that patterns such as "mass:pole" or "damping:*" name, each once.

    Args:
        model: mujoco.MjModel.
        patterns: kind:name, where the kind is mass (of a body), damping or friction (of a joint, its dry
            friction), gear or delay (of an actuator).
        goal: body that is not part of the robot; empty = there is none.
        period: of control, in which delays are counted; 0 = there are none [s].

    Raises:
        UserError: a pattern names nothing, or what is named cannot be told apart in how things move.
    """
    known = {parameter.name: parameter for parameter in _known(model, goal, period)}
    chosen: dict[str, Parameter] = {}
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise UserError(f"'{pattern}' is no parameter of this MJCF; valid: {', '.join(known)}")
        chosen |= {name: known[name] for name in found}
    _check_ratios(model, chosen, known)
    return tuple(chosen.values())


def _known(model: Any, goal: str, period: float) -> Iterator[Parameter]:
    """All parameters of what moves and has a name."""
    for body in range(1, model.nbody):
        name, mass = model.body(body).name, float(model.body_mass[body])
        if name and name != goal and mass > 0 and model.body_weldid[body]:
            yield Parameter(f"mass:{name}", mass, 0.0, body)
    for joint in robot_joints(model, goal):
        name, dof = model.joint(joint).name, int(model.jnt_dofadr[joint])
        scale = float(model.dof_M0[dof]) / _SECOND
        if name:
            yield Parameter(f"damping:{name}", float(model.dof_damping[dof]), scale, dof)
            yield Parameter(f"friction:{name}", float(model.dof_frictionloss[dof]), scale, dof)
    for actuator in range(model.nu):
        name, gear = model.actuator(actuator).name, float(model.actuator_gear[actuator, 0])
        if name and gear > 0 and model.actuator_trntype[actuator] == _JOINT:
            yield Parameter(f"gear:{name}", gear, 0.0, actuator)
        if name and period:
            yield Parameter(f"delay:{name}", 0.0, period, actuator)


def _check_ratios(model: Any, chosen: dict[str, Parameter], known: dict[str, Parameter]) -> None:
    """A motor's gear shows only beside a mass that is known: twice of both moves the same."""
    for name, parameter in chosen.items():
        if not name.startswith("gear:"):
            continue
        joint = int(model.actuator_trnid[parameter.at, 0])
        moved = [f"mass:{model.body(body).name}" for body in _carried(model, int(model.jnt_bodyid[joint]))]
        rotor = model.dof_armature[model.jnt_dofadr[joint]] > 0  # an inertia that is known
        if not rotor and all(mass in chosen for mass in moved if mass in known):
            raise UserError(
                f"'{name}' and the masses of all that it moves cannot be fitted together, since only their "
                f"ratio shows: leave out one of {', '.join([name, *(m for m in moved if m in known)])}"
            )


def _carried(model: Any, body: int) -> list[int]:
    """A body and all that hang on it."""
    carried = {body}
    for other in range(body + 1, model.nbody):  # parents come before their children
        if int(model.body_parentid[other]) in carried:
            carried.add(other)
    return sorted(carried)
