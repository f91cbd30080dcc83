"""Shows a training while it goes on: redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLUMNS = ("frames", "evaluation", "episode", "return", "updates", "minutes")
ROWS = 15  # newest evaluations that are shown
NOT_LOSSES = ("env_steps", "frames", "updates", "updates_per_s")


def show(title: str, out: TextIO | None = None) -> Narrator | Board:
    """What suits the output; None = the standard one."""
    out = out or sys.stdout
    return Board(title, out) if out.isatty() else Narrator(out)


class Narrator:
    """A line an episode, an evaluation and a fit of the model."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._began = out, time.monotonic()
        self._metrics: dict[str, float] = {}
        self._episode = 0

    def __call__(self, kind: str, values: Mapping[str, float]) -> None:
        """Something happened; see Training's `say`."""
        if kind == "episode":
            self._episode = int(values["episode"])
            self._print(
                f"frame {values['frames']:>8}  episode {self._episode:>5}  return {values['return']:9.1f}"
            )
        elif kind == "fit":
            errors = f"held-out error {values['holdout_error']:.4f}, training loss {values['train_loss']:.4g}"
            self._print(f"frame {values['frames']:>8}  model: {errors}, {values['fit_seconds']:.1f} s")
        elif kind == "update":
            self._metrics = dict(values)
        elif kind == "evaluation":
            score = f"EVALUATION {values['score']:7.1f} ± {values['spread']:.1f}"
            learned = f"updates {values['updates']:>7}  {losses(self._metrics)}"
            self._print(f"frame {values['frames']:>8}  {score}  {learned}")

    def close(self) -> None:
        """Nothing more will be told."""

    def _print(self, text: str) -> None:
        minutes = (time.monotonic() - self._began) / 60.0
        try:
            print(f"{minutes:6.1f} min  {text}", file=self._out, flush=True)
        except BrokenPipeError:  # nobody listens any more; the training goes on
            self._out = sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class Board:
    """A table of the evaluations, and below it the newest of everything."""

    def __init__(self, title: str, out: TextIO) -> None:
        self._title, self._began = title, time.monotonic()
        self._rows: list[tuple[str, ...]] = []
        self._newest: dict[str, Mapping[str, float]] = {}
        self._live = Live(console=Console(file=out), refresh_per_second=4, get_renderable=self._draw)
        self._live.start()

    def __call__(self, kind: str, values: Mapping[str, float]) -> None:
        """Something happened; see Training's `say`."""
        self._newest[kind] = dict(values)
        if kind == "evaluation":
            self._rows.append(self._row(f"{values['score']:.1f} ± {values['spread']:.1f}", values))

    def close(self) -> None:
        """Nothing more will be told: leave the table as it is."""
        self._live.stop()

    def _row(self, score: str, values: Mapping[str, float]) -> tuple[str, ...]:
        episode = self._newest.get("episode", {})
        return (
            str(int(values["frames"])),
            score,
            str(int(episode["episode"])) if episode else "",
            f"{episode['return']:.1f}" if episode else "",
            str(int(values["updates"])),
            f"{(time.monotonic() - self._began) / 60.0:.1f}",
        )

    def _draw(self) -> Group:
        table = Table(title=self._title)
        for heading in COLUMNS:
            table.add_column(heading, justify="right")
        for row in self._rows[-ROWS:]:
            table.add_row(*row)
        newest = max(
            self._newest.values(), key=lambda values: (values["frames"], values["updates"]), default=None
        )
        if newest is not None:
            table.add_row(*self._row("", newest), style="dim")
        return Group(table, *map(Text, self._notes()))

    def _notes(self) -> list[str]:
        update, fit = self._newest.get("update"), self._newest.get("fit")
        notes = [] if update is None else [losses(update)]
        if fit is not None:
            errors = f"held-out error {fit['holdout_error']:.4f}, training loss {fit['train_loss']:.4g}"
            notes.append(f"model: {errors}, {fit['fit_seconds']:.1f} s")
        return notes


def losses(metrics: Mapping[str, float]) -> str:
    """The agent's metrics in one line, with its speed."""
    parts = [f"{name} {value:.3g}" for name, value in metrics.items() if name not in NOT_LOSSES]
    if "updates_per_s" in metrics:
        parts.append(f"{metrics['updates_per_s']:.0f} updates/s")
    return ", ".join(parts)
