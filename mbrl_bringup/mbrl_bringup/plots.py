"""The pictures of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from numpy.typing import NDArray

from mbrl_bringup.curves import Group
from mbrl_bringup.evidence import Forecast
from mbrl_bringup.iqm import interval, iqm
from mbrl_bringup.result import Result
from mbrl_dynamics.spec import Spec

if TYPE_CHECKING:  # these load torch
    from mbrl_bringup.imagination import Strip
    from mbrl_bringup.training_result import TrainingResult

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TRUTH, PREDICTED = "black", "tab:blue"


def learning_curve(result: Result, path: Path) -> None:
    """Return against episode, and the held-out error below it."""
    episodes = np.arange(1, len(result.episodes) + 1)
    errors = [episode.holdout_error for episode in result.episodes]
    figure, (upper, lower) = plt.subplots(
        2, sharex=True, figsize=(7.0, 5.0), height_ratios=(2, 1), layout="constrained"
    )
    upper.plot(episodes, result.returns, "o-", color="tab:blue")
    upper.set_ylabel("return")
    upper.set_title(f"{result.task}, seed {result.seed}: {result.chooser}")
    lower.plot(episodes, errors, "o-", color="tab:orange")
    lower.set_ylabel("held-out error\n[std of targets]")
    lower.set_xlabel("episode (the first one with random actions)")
    if np.isfinite(errors).any():
        lower.set_yscale("log")
    lower.set_xticks(episodes)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def training_curve(result: TrainingResult, path: Path) -> None:
    """Evaluations with their spread; behind them the returns of the episodes that were learned from."""
    figure, axes = plt.subplots(figsize=(7.0, 4.5), layout="constrained")
    if result.episodes:
        returns, steps = np.transpose(result.episodes)
        x = np.cumsum(steps) * result.action_repeat
        axes.plot(x, returns, ".", color="tab:gray", ms=3, alpha=0.5, label="episodes while learning")
    marks = result.evaluations
    axis = "frames" if not marks or marks[-1].frames > marks[0].frames or len(marks) == 1 else "updates"
    if marks:
        x = np.array([getattr(mark, axis) for mark in marks])
        score, spread = np.array([(mark.score, mark.spread) for mark in marks]).T
        axes.plot(x, score, "o-", color="tab:blue", ms=4, label="evaluation, deterministic: mean")
        axes.fill_between(
            x, score - spread, score + spread, color="tab:blue", alpha=0.2, lw=0, label="± 1 std"
        )
    axes.set_title(f"{result.task}, seed {result.seed}: {result.agent}")
    axes.set_xlabel(axis)
    axes.set_ylabel("return")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def imagined_strip(strips: Sequence[Strip], period: float, path: Path) -> None:
    """Two rows of frames a camera: what happened, and below it what was imagined."""
    columns = len(strips[0].times)
    figure, panels = plt.subplots(
        2 * len(strips),
        columns,
        figsize=(1.1 * columns, 2.5 * len(strips)),
        layout="constrained",
        squeeze=False,
    )
    for i, one in enumerate(strips):
        for row, (name, frames) in enumerate((("happened", one.happened), ("imagined", one.imagined))):
            for k, (time, frame) in enumerate(zip(one.times, frames, strict=True)):
                panel = panels[2 * i + row, k]
                panel.imshow(frame)
                panel.set_xticks([])
                panel.set_yticks([])
                if not row:
                    panel.set_title(f"+{time * period:.2g} s", fontsize=8)
            panels[2 * i + row, 0].set_ylabel(f"{name}\n({one.camera})", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def predicted_against_happened(
    spec: Spec,
    happened: NDArray[np.float64],
    forecasts: Sequence[Forecast],
    path: Path,
    over: str = "the ensemble",
) -> None:
    """Each observation element over time: what happened [T, D], and the forecasts."""
    rows = spec.observation_dim
    figure, axes = plt.subplots(
        rows, sharex=True, figsize=(9.0, 0.6 + 1.5 * rows), layout="constrained", squeeze=False
    )
    for d, (element, panel) in enumerate(zip(spec.observation, axes[:, 0], strict=True)):
        panel.plot(
            np.arange(len(happened)) * spec.control_period,
            happened[:, d],
            color=TRUTH,
            lw=1.2,
            label="happened",
        )
        for i, forecast in enumerate(forecasts):
            time = (forecast.start + np.arange(len(forecast.mean))) * spec.control_period
            mean, spread = forecast.mean[:, d], 2.0 * forecast.spread[:, d]
            first = i == 0
            panel.plot(time, mean, "--", color=PREDICTED, lw=1.2, label="predicted" if first else None)
            panel.plot(time[0], mean[0], ".", color=PREDICTED)
            panel.fill_between(
                time,
                mean - spread,
                mean + spread,
                color=PREDICTED,
                alpha=0.25,
                lw=0,
                label=f"± 2 std of {over}" if first else None,
            )
        low, high = float(happened[:, d].min()), float(happened[:, d].max())
        margin = 0.25 * (high - low) or 1.0  # a forecast that runs away must not squash the rest
        panel.set_ylim(low - margin, high + margin)
        unit = "" if element.unit == "1" else f" [{element.unit}]"
        panel.set_ylabel(f"{element.name.replace('_', ' ')}{unit}", fontsize=8)
        panel.grid(alpha=0.3)
    axes[0, 0].legend(loc="upper right", ncols=3, fontsize=8)
    axes[-1, 0].set_xlabel("time in the episode [s]")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def comparison(groups: Mapping[str, Sequence[Group]], axis: str, path: Path) -> None:
    """Interquartile mean of each group with its 95 % interval, one panel a task; the runs behind it."""
    columns = min(len(groups), 3)
    figure, panels = plt.subplots(
        math.ceil(len(groups) / columns),
        columns,
        figsize=(1.0 + 6.0 * columns, 4.5 * math.ceil(len(groups) / columns)),
        layout="constrained",
        squeeze=False,
    )
    for panel in panels.flat[len(groups) :]:
        panel.set_visible(False)
    for (task, found), panel in zip(groups.items(), panels.flat, strict=False):
        for i, one in enumerate(found):
            color = f"C{i % 10}"
            for curve in one.curves:
                panel.plot(curve.x, curve.score, color=color, lw=0.6, alpha=0.35)
            seeds = f"{len(one.curves)} seed{'s' if len(one.curves) > 1 else ''}"
            marker = "." if len(one.x) < 40 else None
            panel.plot(one.x, iqm(one.scores), color=color, marker=marker, label=f"{one.label}, {seeds}")
            panel.fill_between(one.x, *interval([one.scores]), color=color, alpha=0.2, lw=0)
        panel.set_title(f"{task}: interquartile mean, 95 % interval")
        panel.set_xlabel(axis)
        panel.set_ylabel("return")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def error_by_horizon(happened: NDArray[np.float64], forecasts: Sequence[Forecast]) -> NDArray[np.float64]:
    """RMS error [H+1] over forecasts and elements, in standard deviations of what happened."""
    scale = happened.std(axis=0) + 1e-9
    horizon = min((len(forecast.mean) for forecast in forecasts), default=0)
    errors = [
        (f.mean[:horizon] - happened[f.start : f.start + horizon]) / scale
        for f in forecasts
        if f.start + horizon <= len(happened)
    ]
    if not errors:
        return np.full(horizon, math.nan)
    return np.sqrt(np.mean(np.square(errors), axis=(0, 2)))
