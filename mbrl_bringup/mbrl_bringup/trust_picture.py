"""The picture of what `mbrl evaluate` found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from mbrl_bringup.trust_section import PICTURE, load

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def draw(folder: Path) -> None:
    """The picture: errors by horizon, reliability, errors by element, and the horizon that balances."""
    found = load(folder)
    figure, axes = plt.subplots(2, 2, figsize=(10.0, 7.0), layout="constrained")
    _draw_horizon(axes[0, 0], found)
    _draw_reliability(axes[0, 1], found)
    _draw_elements(axes[1, 0], found)
    _draw_lookahead(axes[1, 1], found)
    figure.suptitle(f"{found['task']}: {found['model']}", fontsize=10)
    figure.savefig(folder / PICTURE, dpi=120)
    plt.close(figure)


def _draw_horizon(axes: Axes, found: dict[str, Any]) -> None:
    one = found["horizon"]
    axes.plot(_floats(one["error"]), color="black", label="error")
    axes.plot(_floats(one["spread"]), color="tab:blue", ls="--", label="spread that the model says")
    axes.plot(_floats(one["nothing_changes"]), color="gray", lw=0.8, label="nothing changes")
    axes.set(xlabel="steps ahead", ylabel="RMS [std of the data]", title="Open loop", ylim=(0.0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_reliability(axes: Axes, found: dict[str, Any]) -> None:
    axes.set(title="Intervals, one step", xlabel="level", ylabel="share of outcomes inside")
    if found["intervals"] is None:
        _say(axes, "the model says nothing of its uncertainty")
        return
    curve = found["intervals"]["curve"]
    axes.plot([0, 1], [0, 1], color="gray", lw=0.8)
    axes.plot(curve["levels"], _floats(curve["raw"]), "o-", ms=3, label="raw")
    axes.plot(curve["levels"], _floats(curve["fitted"]), "o-", ms=3, label="with temperature")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_elements(axes: Axes, found: dict[str, Any]) -> None:
    names = list(found["elements"])
    axes.barh(names, _floats([one["relative"] for one in found["elements"].values()]), color="tab:blue")
    axes.axvline(1.0, color="gray", lw=0.8)
    axes.invert_yaxis()
    axes.set(title="One step", xlabel="error, that of saying that nothing changes = 1")
    axes.grid(alpha=0.3)


def _draw_lookahead(axes: Axes, found: dict[str, Any]) -> None:
    axes.set(title="Error of the return", xlabel="steps ahead")
    one = found["lookahead"]
    if one is None:
        _say(axes, "rewards are not known")
        return
    errors = _floats(one["return_error"])
    fading = one["discount"] ** np.arange(len(errors))
    axes.plot(errors, color="black", label="model's error of the return")
    for share, best in zip(one["value_error_shares"], one["horizons"], strict=True):
        sum_of_both = errors + share * one["value_spread"] * fading
        (line,) = axes.plot(sum_of_both, label=f"with a value function's, {share:.0%} of knowing nothing")
        axes.plot(best, sum_of_both[best], "o", color=line.get_color())
    axes.set_ylabel("RMS error of the return")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])
