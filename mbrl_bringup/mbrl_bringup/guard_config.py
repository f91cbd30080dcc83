"""What the guard of a robot is told: its joints, their limits, and when motion ends."""

from __future__ import annotations

from typing import Annotated, Literal

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import repeated


@config
class Actuator:
    """One element of the command: the joint that it moves, what is allowed and what is safe."""

    joint: str
    kind: Annotated[
        Literal["position", "velocity", "effort"],
        Field(description="safe is to hold the last command, to ramp to zero, or to damp"),
    ]
    low: Annotated[float, Field(description="least command [unit]")]
    high: Annotated[float, Field(description="greatest command [unit]")]
    rate: Annotated[float, Field(gt=0, description="largest change of the command [unit/s]")]
    damping: Annotated[float, Field(ge=0, description="safe effort = -damping x velocity [unit s/rad]")] = 0.0


@config
class Bound:
    """What the robot may report of itself, or motion ends."""

    name: str
    low: Annotated[float, Field(description="least value [unit]")]
    high: Annotated[float, Field(description="greatest value [unit]")]


@config
class GuardSettings:
    """When motion is slowed down, bridged or ended."""

    tail_steps: Annotated[
        int, Field(ge=2, description="a late plan's tail bridges at most this many periods [steps]")
    ] = 5
    trip_after: Annotated[float, Field(gt=0, description="a controller may be late for so long [s]")] = 0.5
    max_age: Annotated[float, Field(gt=0, description="an older reading says nothing [s]")] = 0.1
    healthy_for: Annotated[
        float, Field(ge=0, description="readings must have been good for so long before arming [s]")
    ] = 1.0
    heartbeat: Annotated[
        float, Field(ge=0, description="longest silence of the e-stop's heartbeat [s]; 0 = it has none")
    ] = 0.0
    driver_timeout: Annotated[
        float,
        Field(ge=0, description="the driver stops by itself after so long a silence [s]; 0 = it does not"),
    ] = 0.0
    slow_above: Annotated[float, Field(ge=0, description="disagreement from which motion slows down")] = 0.0
    trip_above: Annotated[
        float, Field(ge=0, description="disagreement at which motion ends; 0 = any is allowed")
    ] = 0.0


@config
class GuardConfig(GuardSettings):
    """And what moves, and what is watched."""

    joints: Annotated[tuple[Actuator, ...], Field(min_length=1, description="elements of the command")] = ()
    bounds: Annotated[tuple[Bound, ...], Field(description="what is watched")] = ()
    period: Annotated[float, Field(gt=0, description="between two commands [s]")] = 0.01


def check(c: GuardConfig) -> None:
    """Whether the fields of a configuration fit each other.

    Raises:
        UserError: they do not.
    """
    bridged = c.tail_steps * c.period
    if not bridged < c.trip_after:
        raise UserError(
            f"trip_after is {c.trip_after} s, but must be longer than the {c.tail_steps} periods that a late "
            f"plan bridges ({bridged:.3g} s)"
        )
    if c.trip_above and not c.slow_above < c.trip_above:
        raise UserError(f"slow_above is {c.slow_above}, but must be below trip_above, {c.trip_above}")
    twice = repeated(actuator.joint for actuator in c.joints)
    if twice:
        raise UserError(f"joint '{twice}' appears twice")
    limits = [(a.joint, a.low, a.high) for a in c.joints] + [(b.name, b.low, b.high) for b in c.bounds]
    for name, low, high in limits:
        if not low < high:
            raise UserError(f"'{name}' has low {low}, which must be below its high, {high}")
    for a in c.joints:
        if a.kind != "position" and not a.low <= 0.0 <= a.high:
            raise UserError(
                f"joint '{a.joint}' may command {a.low} to {a.high}, but zero must be among it: "
                f"that is what a {a.kind} is ended with"
            )
        if a.damping and a.kind != "effort":
            raise UserError(f"joint '{a.joint}' has damping, but is commanded by {a.kind}")
