"""The arguments of `mbrl evaluate`; apart from what they do, which loads torch."""

from __future__ import annotations

from typing import Annotated

from mbrl_dynamics.config import Field, config


@config
class EvaluateConfig:
    """The arguments of `mbrl evaluate` beside the data."""

    model: Annotated[
        str,
        Field(
            description="one that is fitted anew to a part of the data (installed, or package.module:Class), "
            "or the file of a stored one (.safetensors); empty = the run's own"
        ),
    ] = ""
    horizon: Annotated[int, Field(ge=1, le=1000, description="how far it foretells at most [steps]")] = 25
    discount: Annotated[float, Field(gt=0, lt=1, description="of rewards a step later [1]")] = 0.99
    expert: Annotated[
        str, Field(description="whose episodes the policy's are compared with, by its controller id")
    ] = "person"
    fit_steps: Annotated[int, Field(ge=1, description="gradient steps of a fit anew at most [1]")] = 1500
    seed: Annotated[int, Field(ge=0, description="of a fit anew and of drawn futures")] = 0
    out: Annotated[str, Field(description="folder to write into; empty = the one that is evaluated")] = ""
