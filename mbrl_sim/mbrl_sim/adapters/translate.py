"""Arrays, modules and exceptions of other libraries in our words."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Element

HUGE = 1e9  # a limit beyond this is none


def elements(name: str, low: ArrayLike, high: ArrayLike) -> list[Element]:
    """One Element for each value of an array, `name[i]` in the order of its memory; `name` for a scalar.

    A limit that is infinite, or so large that nobody means it, is none.
    """
    lows, highs = (np.atleast_1d(np.asarray(limit, dtype=np.float64)) for limit in (low, high))
    single = np.ndim(low) == 0
    return [
        Element(
            name if single else f"{name}[{i}]",
            low=float(a) if abs(a) < HUGE else -np.inf,
            high=float(b) if abs(b) < HUGE else np.inf,
        )
        for i, (a, b) in enumerate(zip(lows.ravel(), highs.ravel(), strict=True))
    ]


def bounded(actions: list[Element]) -> tuple[Element, ...]:
    """Action elements, of which those without limits get [-1, 1]."""
    return tuple(
        element
        if np.isfinite([element.low, element.high]).all()
        else Element(element.name, low=-1.0, high=1.0)
        for element in actions
    )


def circled(raw: list[Element], angles: tuple[int, ...]) -> list[Element]:
    """Elements of which each angle [rad] has become its cosine and sine; see `on_circles`."""
    pairs = [
        [Element(f"{e.name}_{part}", "1", -1.0, 1.0, part) for part in ("cos", "sin")] if i in angles else [e]
        for i, e in enumerate(raw)
    ]
    return [element for pair in pairs for element in pair]


def on_circles(values: NDArray[np.float64], angles: tuple[int, ...]) -> NDArray[np.float64]:
    """Values [D] of which each angle [rad] is replaced by its cosine and sine, [D + number of angles]."""
    if not angles:
        return values
    return np.concatenate([(np.cos(v), np.sin(v)) if i in angles else (v,) for i, v in enumerate(values)])


def sentence(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def optional(module: str, family: str) -> Any:
    """Import a module of a package that need not be installed.

    Raises:
        UserError: it is not; the sentence names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the tasks {family}/... need a package that is not installed here ({error}): "
            f"install the extra mbrl_sim[{family}]"
        ) from error
