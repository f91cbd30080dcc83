"""`mbrl compare`: the curves of many runs in one picture, and their scores in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mbrl_bringup.compare_config import CompareConfig
from mbrl_bringup.curves import Group, group, read_curves
from mbrl_bringup.iqm import interval, iqm
from mbrl_dynamics.errors import UserError

HEADINGS = ("task", "runs", "at {axis}", "seeds", "median", "IQM", "95 % interval")
UNITS = {
    "frames": "frames",
    "steps": "environment steps",
    "wall": "wall-clock time [s]",
    "updates": "updates",
}


def run_compare(paths: Sequence[str], options: CompareConfig) -> int:
    """Draw the curves and print the table; returns the exit code.

    Raises:
        UserError: something is no result, results have nothing in common, or the picture cannot be written.
    """
    curves = [curve for path in paths for curve in read_curves(Path(path), options.x)]
    groups = group(curves)
    marks = {task: common_mark(task, found) for task, found in groups.items()}
    rows = [row(task, found, marks[task]) for task, several in groups.items() for found in several]
    print(table([tuple(h.format(axis=options.x) for h in HEADINGS), *rows]))
    _draw(groups, options)
    print(f"picture: {options.out}")
    return 0


def common_mark(task: str, groups: Sequence[Group]) -> float:
    """The last place on the axis that all runs of a task have reached.

    Raises:
        UserError: there is none.
    """
    mark = min(found.x[-1] for found in groups)
    late = next((found for found in groups if found.x[0] > mark), None)
    if late is not None:
        raise UserError(
            f"the runs of {task} have no part of the axis in common: some end at {mark:g}, "
            f"before those of {late.label} begin at {late.x[0]:g}"
        )
    return float(mark)


def row(task: str, found: Group, mark: float) -> tuple[str, ...]:
    """One line of the table: how good the runs of a group are at a place on the axis."""
    scores = np.array([curve.at(np.array([mark]))[0] for curve in found.curves])
    low, high = interval([scores])
    seeds = ",".join(str(curve.seed) for curve in sorted(found.curves, key=lambda curve: curve.seed))
    return (
        task,
        found.label,
        f"{mark:g}",
        seeds,
        f"{np.median(scores):.1f}",
        f"{iqm(scores):.1f}",
        "-" if np.isnan(low) else f"{low:.1f} to {high:.1f}",
    )


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as aligned text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=True)) for cells in rows]
    return "\n".join(line.rstrip() for line in lines)


def _draw(groups: Mapping[str, Sequence[Group]], options: CompareConfig) -> None:
    from mbrl_bringup.plots import comparison  # matplotlib takes a while to load

    try:
        comparison(groups, UNITS[options.x], Path(options.out))
    except (OSError, ValueError) as error:
        raise UserError(f"the picture '{options.out}' cannot be written: {error}") from None
