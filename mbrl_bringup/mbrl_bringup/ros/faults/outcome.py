"""What a fault's trials came to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 5  # failures that are told in words
PROGRESS = 15.0  # between two lines about it [s]


@dataclass
class Outcome:
    """The verdict about one fault.

    Attributes:
        fault: its name.
        must_hold: in one sentence.
        trials: how often it was tried.
        failures: in how many of them that did not hold.
        figures: what was measured.
        examples: the first failures, in words.
        deadline: after which no trial begins [s, steady clock].
    """

    fault: str
    must_hold: str
    trials: int = 0
    failures: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    deadline: float = math.inf
    _told: float = field(default_factory=time.monotonic)

    def rounds(self, count: int) -> Iterator[int]:
        """Numbers of trials, as long as there is time."""
        for number in range(count):
            if time.monotonic() > self.deadline:
                return
            yield number

    def tried(self, *faults: str, trials: int = 1) -> None:
        """Count trials, and the sentences about those that failed."""
        self.trials += trials
        self.failures += len(faults)
        for fault in faults[: max(EXAMPLES - len(self.examples), 0)]:
            print(f"    {fault}", flush=True)
        self.examples += faults[: max(EXAMPLES - len(self.examples), 0)]
        if time.monotonic() - self._told > PROGRESS:
            self._told = time.monotonic()
            print(f"  {self.line()}", flush=True)

    def line(self) -> str:
        """For the terminal."""
        bound = f", below {self.bound:.2g}" if self.bound is not None else ""
        return f"{self.fault:<16} {self.trials:>7} trials  {self.failures} failures{bound}"

    @property
    def bound(self) -> float | None:
        """No failure in N trials: the rate is below 3/N with 95 % confidence. None where there was one."""
        return None if self.failures or not self.trials else 3.0 / self.trials

    def json(self) -> dict[str, Any]:
        """As it is written."""
        names = ("fault", "must_hold", "trials", "failures", "figures", "examples", "bound")
        return {name: getattr(self, name) for name in names}
