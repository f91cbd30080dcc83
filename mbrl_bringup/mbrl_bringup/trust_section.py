"""What `mbrl evaluate` found, as tables for the terminal and a section of a run's report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mbrl_bringup.result import atomic_write

RESULT, PICTURE = "evaluation.json", "evaluation.png"
TITLE, AFTER = "## How far the model can be trusted", "## How it was made"
FAR = (1, 5, 10, 25, 50, 100)  # steps of the table of errors

Rows = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, headings, rows


def tables(found: dict[str, Any]) -> list[Rows]:
    """All that is known, table by table."""
    named = (_elements(found), _further(found), _intervals(found), _figures(found))
    return [(title, headings, rows) for title, headings, rows in named if rows]


def _elements(found: dict[str, Any]) -> Rows:
    rows: list[tuple[str, ...]] = [
        (name, _unit(one["unit"]), _text(one["rmse"]), _text(one["relative"]), _text(one["log_likelihood"]))
        for name, one in found["elements"].items()
    ]
    return "One step", ("element", "unit", "RMS error", "of no change", "log-likelihood [nat]"), rows


def _further(found: dict[str, Any]) -> Rows:
    curves = [found["horizon"][name] for name in ("error", "spread", "nothing_changes")]
    last = len(curves[0]) - 1
    rows = [
        (str(h), f"{h * found['control_period_s']:.3g}", *(_text(curve[h]) for curve in curves))
        for h in sorted({h for h in FAR if h <= last} | {last})
    ]
    return "Further ahead [std of the data]", ("steps", "s", "RMS error", "its spread", "no change"), rows


def _intervals(found: dict[str, Any]) -> Rows:
    levels, rows = [], []
    if found["intervals"] is not None:
        one = found["intervals"]
        levels = [f"{100 * level:g} %" for level in one["levels"]]
        for name, factor in one["temperature"].items():
            pairs = zip(one["raw"][name], one["fitted"][name], strict=True)
            rows.append((name, *(f"{_text(a, 2)} → {_text(b, 2)}" for a, b in pairs), _text(factor)))
    return "Covered by the intervals, raw → with temperature", ("element", *levels, "temperature"), rows


def _figures(found: dict[str, Any]) -> Rows:
    ranks, visits, gap, ahead = (found[n] for n in ("rank_correlation", "visits", "return_gap", "lookahead"))
    rows: list[tuple[str, ...]] = [
        (f"rank correlation of disagreement and error, {steps} step{'s' * (steps > 1)} ahead", _text(value))
        for steps, value in zip(ranks["steps"], ranks["values"], strict=True)
        if value is not None
    ]
    if visits is not None:
        rows += [
            ("distance of the newest episode from the known, that of the known = 1", _text(visits["ratio"])),
            ("share of it farther than 95 % of the known", _text(visits["beyond"])),
        ]
    if gap is not None:
        names = {
            "expert_error": "return gap: error on the expert",
            "planning_error": "return gap: planning error",
            "policy_error": "return gap: error on the policy (promised - got)",
            "total": "return gap: expert - policy",
        }
        rows += [(text, _text(gap[name])) for name, text in names.items() if name in gap]
    if ahead is not None:
        rows += [
            (f"horizon with a value function {share:.0%} as wrong as knowing nothing [steps]", str(steps))
            for share, steps in zip(ahead["value_error_shares"], ahead["horizons"], strict=True)
        ]
    return "What it is used for", ("figure", "value"), rows


def show(folder: Path) -> None:
    """Print the tables of a folder's evaluation."""
    found, console = load(folder), Console(markup=False)
    console.print(
        f"{found['model']}: {found['unseen_steps']} unseen of {found['steps']} steps", soft_wrap=True
    )
    for title, headings, rows in tables(found):
        table = Table(title=Text(title), title_justify="left")  # a Text, since "[m]" would be markup
        for i, heading in enumerate(headings):
            table.add_column(Text(heading), justify="right" if i else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for note in found["notes"]:
        console.print(note, soft_wrap=True)
    console.print(f"evaluation: {folder / RESULT}, {folder / PICTURE}", soft_wrap=True)


def trust_section(folder: Path) -> list[str]:
    """Lines of a report; none if the folder holds no evaluation."""
    if not (folder / RESULT).is_file():
        return []
    found = load(folder)
    lines = [
        TITLE,
        "",
        f"{found['model']}, judged on {found['unseen_steps']} steps that it has not seen.",
        "",
    ]
    for title, headings, rows in tables(found):
        lines += [f"**{title}**", "", *markdown_table(headings, rows), ""]
    lines += [f"{note}\n" for note in found["notes"]]
    return [*lines, f"![Errors, intervals, disagreement, horizon]({PICTURE})", ""]


def insert(folder: Path) -> None:
    """Put the section into the folder's report, in the place of an older one; nothing without a report."""
    path = folder / "report.md"
    if path.is_file():
        before, mark, after = path.read_text().partition(AFTER)
        text = "\n".join([before.partition(TITLE)[0].rstrip(), "", *trust_section(folder), ""]) + mark + after
        atomic_write(path, text)


def markdown_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table as lines of Markdown."""
    return [f"| {' | '.join(row)} |" for row in (headings, tuple("---" for _ in headings), *rows)]


def load(folder: Path) -> dict[str, Any]:
    """What evaluation.json holds."""
    return json.loads((folder / RESULT).read_text())


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _unit(unit: str) -> str:
    return "" if unit == "1" else unit
