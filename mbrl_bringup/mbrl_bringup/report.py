"""The report of a run: what is in its folder, in words, tables and pictures.

A report can be written at any time, also of a run that was interrupted, and written again.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mbrl_bringup.evidence import Evidence, gather
from mbrl_bringup.goals import EVERY_RUN, Goal, demo_of
from mbrl_bringup.result import Result, atomic_write, read
from mbrl_bringup.table import cells, columns
from mbrl_bringup.trust_section import markdown_table, trust_section
from mbrl_bringup.video import film

CURVE, FORECAST, VIDEO = "learning_curve.png", "predicted_against_happened.png", "last_episode.webm"

LEGEND = (
    "`*` = random actions, `~` = exploring. Held-out error: mean absolute error of one-step predictions on "
    "transitions that were not trained on, in standard deviations of the targets, after training on the "
    "episode."
)
FILES = (
    "`config.yaml` holds all parameters, `dataset/` what happened (MCAP), `checkpoint/` the learner to go on "
    "with, `model.safetensors` the model that planned the last episode, `log.txt` what the nodes said."
)


def write_report(folder: Path, *, video: bool = True) -> str:
    """Write report.md with its pictures and the video into a run's folder.

    A part that cannot be made is left out, and the report says why.

    Returns:
        The essence, for the terminal.
    """
    from mbrl_bringup import plots  # matplotlib takes a while to load

    result = read(folder)
    evidence = gather(folder, result)
    notes = list(evidence.notes)
    if result.episodes:
        attempt(lambda: plots.learning_curve(result, folder / CURVE), "the learning curve", notes)
    errors = ""
    if evidence.spec is not None and evidence.forecasts:
        plots.predicted_against_happened(
            evidence.spec, evidence.observations, evidence.forecasts, folder / FORECAST
        )
        errors = _errors_text(evidence)
    if video and len(evidence.observations) > 1 and evidence.spec is not None:
        why = _film(result, evidence, folder / VIDEO)
        if why:
            notes.append(f"There is no video: {why}.")
    text = "\n".join(_lines(result, folder, errors, notes)) + "\n"
    atomic_write(folder / "report.md", text)
    return _essence(result, folder, notes)


def goal_rows(result: Result) -> list[tuple[str, str, str, str]]:
    """Figure, measured, wanted, reached: the run against what was aimed at."""
    return [_goal_row(goal, result) for goal in (*demo_of(result.task, result.agent).goals, *EVERY_RUN)]


def _goal_row(goal: Goal, result: Result) -> tuple[str, str, str, str]:
    unit = "" if goal.unit == "1" else f" {goal.unit}"
    value, reached = goal.measure(result), goal.reached(result)
    measured = "-" if math.isnan(value) else f"{value:.4g}{unit}"
    sign = "at most" if goal.at_most else "at least"
    return (
        goal.text,
        measured,
        f"{sign} {goal.wanted:g}{unit}",
        {True: "yes", False: "no", None: "-"}[reached],
    )


def _lines(result: Result, folder: Path, errors: str, notes: list[str]) -> list[str]:
    lines = [
        f"# {result.task}: {'learned from nothing' if result.finished else 'an interrupted run'}",
        "",
        _what_acted(result),
        "",
        *markdown_table(("figure", "measured", "wanted", "reached"), goal_rows(result)),
        "",
    ]
    if (folder / CURVE).exists():
        lines += [f"![Return and held-out error by episode]({CURVE})", ""]
    headings = tuple(heading for heading, _ in columns(result.agent))
    rows = [cells(i, e, result.agent) for i, e in enumerate(result.episodes, 1)]
    lines += [*markdown_table(headings, rows), ""]
    lines += [LEGEND, ""]
    if errors:
        picture = f"![By element of the observation]({FORECAST})"
        lines += ["## Predicted against happened", "", errors, "", picture, ""]
    if (folder / VIDEO).exists():
        lines += [f"[Video of the last episode]({VIDEO})", ""]
    lines += [f"{note}\n" for note in notes]
    lines += trust_section(folder)
    where = f"Commit {result.commit or 'unknown'}, on {result.machine or 'an unknown machine'}."
    return [*lines, "## How it was made", "", "```", result.command, "```", "", where, "", FILES]


def _what_acted(result: Result) -> str:
    length = f"seed {result.seed}; {len(result.episodes)} episodes in {minutes(result.wall_s)}"
    if not result.learns_policy:
        return (
            f"Model `{result.model}`, planner `{result.planner}`, {length}, "
            "the first one with random actions."
        )
    model = f", model `{result.model}`" if result.model else ""
    return f"Agent `{result.agent}`{model}, {length}, random until there is enough to learn from."


def _essence(result: Result, folder: Path, notes: list[str]) -> str:
    rows = [("figure", "measured", "wanted", "reached"), *goal_rows(result)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(["", *lines, *notes, f"report: {folder / 'report.md'}"])


def _errors_text(evidence: Evidence) -> str:
    from mbrl_bringup.plots import error_by_horizon

    errors = error_by_horizon(evidence.observations, evidence.forecasts)
    assert evidence.spec is not None
    shown = [h for h in (1, 5, 10, len(errors) - 1) if 0 < h < len(errors)]
    period = evidence.spec.control_period
    figures = ", ".join(f"{errors[h]:.3f} after {h} steps ({h * period:.2g} s)" for h in sorted(set(shown)))
    return (
        "From recorded states of the last episode on, the model that planned it (and had not seen it) "
        "predicts what the executed actions lead to, without looking again. RMS error in standard "
        f"deviations of what happened: {figures}."
    )


def _film(result: Result, evidence: Evidence, out: Path) -> str:
    assert evidence.spec is not None
    with tempfile.TemporaryDirectory(prefix="mbrl-video-") as private:
        source = Path(private) / "observations.npy"
        np.save(source, evidence.observations)
        return film(result.task, source, evidence.spec.control_period, out)


def attempt(make: Callable[[], None], what: str, notes: list[str]) -> None:
    """Make a part of a report; where that fails, note why."""
    try:
        make()
    except (OSError, ValueError) as error:
        notes.append(f"{what[0].upper()}{what[1:]} is missing: {error}.")


def minutes(seconds: float) -> str:
    """A duration [s] for people."""
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s"
