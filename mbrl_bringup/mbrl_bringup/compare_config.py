"""The arguments of `mbrl compare`; apart from what they do, which loads SciPy."""

from __future__ import annotations

from typing import Annotated, Literal

from mbrl_dynamics.config import Field, config

Axis = Literal["frames", "steps", "wall", "updates"]


@config
class CompareConfig:
    """The arguments of `mbrl compare` beside the runs."""

    out: Annotated[str, Field(description="file of the picture (PNG, SVG, PDF)")] = "compare.png"
    x: Annotated[Axis, Field(description="the horizontal axis")] = "frames"
