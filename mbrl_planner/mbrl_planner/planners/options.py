"""The options that all planners that search by sampling share."""

from __future__ import annotations

from typing import Annotated

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_planner.planners.knots import Interpolation
from mbrl_planner.planners.scoring import bounds_of

Expansions = Annotated[
    int,
    Field(
        ge=0,
        description="expansions of a random tree (see rrt), from whose best plan the first search of an "
        "episode sets out; 0 = none [1]",
    ),
]


@config
class SamplingConfig:
    """What every sampling planner has."""

    horizon: Annotated[int, Field(ge=1, description="how far a plan looks ahead [steps]")] = 25
    candidates: Annotated[int, Field(ge=2, description="plans tried in an iteration [1]")] = 64
    iterations: Annotated[int, Field(ge=1, description="refinements a decision [1]")] = 3
    particles: Annotated[
        int, Field(ge=0, description="imagined futures a candidate; 0 = one a model member [1]")
    ] = 0
    aleatoric: Annotated[
        bool, Field(description="draw the outcome noise that the model predicts, rather than follow its mean")
    ] = False
    common_noise: Annotated[
        bool, Field(description="what is drawn is the same for all candidates, so that luck does not decide")
    ] = True
    std: Annotated[float, Field(gt=0, description="initial spread of the scaled actions [1]")] = 0.5
    knots: Annotated[
        int, Field(ge=0, description="numbers an action element that tell a plan; 0 = one a step [1]")
    ] = 0
    interpolation: Annotated[
        Interpolation, Field(description="between knots: chunks (hold), lines, or a cubic spline")
    ] = "hold"
    worst_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of its worst imagined futures whose mean a candidate is worth (CVaR): "
            "1 = the mean of all, 0 = the worst alone [1]",
        ),
    ] = 1.0
    caution: Annotated[
        float,
        Field(description="cost of a unit of the model's disagreement a step; negative = a bonus [reward]"),
    ] = 0.0
    constraints: Annotated[
        tuple[str, ...],
        Field(description='what a prediction must keep, such as "cart_position<0.5" [SI]'),
    ] = ()
    discount: Annotated[
        float, Field(gt=0, le=1, description="of rewards a step later, and of a terminal value [1]")
    ] = 1.0
    policy_candidates: Annotated[
        int, Field(ge=0, description="further candidates, drawn from a learned policy where there is one [1]")
    ] = 0
    rrt_expansions: Expansions = 0

    def __post_init__(self) -> None:
        """Fields that must fit each other."""
        at_most("knots", self.knots, "horizon", self.horizon)
        bounds_of(self.constraints)


def at_most(name: str, value: int, other: str, limit: int) -> None:
    """Look whether one field is no larger than another.

    Raises:
        UserError: it is.
    """
    if value > limit:
        raise UserError(f"{name} is {value}, but must be at most {other}, which is {limit}")
