"""The live table of a run: redrawn in place on a terminal, one line an episode elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mbrl_bringup.result import Episode

COLUMNS = (  # heading, width
    ("episode", 7),
    ("return", 9),
    ("steps", 5),
    ("held-out error", 14),
    ("planning ms, median", 19),
    ("p99", 6),
    ("data", 7),
    ("model", 5),
    ("training s", 10),
)
_SIGNS = {"random": " *", "explore": " ~"}  # after the number


def columns(agent: str = "mpc") -> tuple[tuple[str, int], ...]:
    """Heading and width of each column: a policy is known by its updates, not by its model's version."""
    return tuple(("updates", 7) if c == ("model", 5) and agent != "mpc" else c for c in COLUMNS)


def cells(number: int, episode: Episode, agent: str = "mpc") -> tuple[str, ...]:
    """One row of the table; an empty cell is not known (yet)."""
    return (
        f"{number}{_SIGNS.get(episode.mode, '')}",
        _text(episode.ret, ".1f"),
        str(episode.steps),
        _text(episode.holdout_error, ".4f"),
        _text(episode.planning_ms_median, ".1f"),
        _text(episode.planning_ms_p99, ".1f"),
        str(episode.transitions or ""),
        str((episode.model_version if agent == "mpc" else episode.updates) or ""),
        _text(episode.fit_seconds, ".1f"),
    )


def line(row: Sequence[str], agent: str = "mpc") -> str:
    """A row, or the headings, as one line of text."""
    return "  ".join(text.rjust(width) for text, (_, width) in zip(row, columns(agent), strict=True))


class RunTable:
    """Shows the episodes of a run while they happen; a context manager.

    Args:
        title: above the table.
        out: where to; None = the standard output.
        agent: what acts.
    """

    def __init__(self, title: str, out: TextIO | None = None, agent: str = "mpc") -> None:
        self._title, self._out, self._agent = title, out or sys.stdout, agent
        live = Live(console=Console(file=self._out), refresh_per_second=4)
        self._live = live if self._out.isatty() else None
        self._printed = 0

    def __enter__(self) -> RunTable:
        if self._live is not None:
            self._live.start()
        else:
            self._print(self._title)
            self._print(line([heading for heading, _ in columns(self._agent)], self._agent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, episodes: Sequence[Episode], now: str = "") -> None:
        """Show the episodes so far; `now` says what is happening."""
        if self._live is not None:
            self._live.update(self._table(episodes, now))
            return
        while self._printed < len(episodes):
            episode = episodes[self._printed]
            if not episode.transitions and self._printed == len(episodes) - 1:
                return  # nothing has learned from it yet
            self._printed += 1
            self._print_episode(self._printed, episode)

    def finish(self, episodes: Sequence[Episode]) -> None:
        """Show all there is: nothing more will be known."""
        if self._live is not None:
            self._live.update(self._table(episodes, ""))
            return
        while self._printed < len(episodes):
            self._printed += 1
            self._print_episode(self._printed, episodes[self._printed - 1])

    def _table(self, episodes: Sequence[Episode], now: str) -> Table:
        table = Table(title=self._title, caption=now or None, caption_justify="left")
        for heading, _ in columns(self._agent):
            table.add_column(heading, justify="right")
        for number, episode in enumerate(episodes, 1):
            table.add_row(*cells(number, episode, self._agent))
        return table

    def _print_episode(self, number: int, episode: Episode) -> None:
        self._print(line(cells(number, episode, self._agent), self._agent))

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def _text(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""
