"""What a fault's trials came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

EXAMPLES = 5  # failures that are told in words


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
    """

    fault: str
    must_hold: str
    trials: int = 0
    failures: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def tried(self, *faults: str, trials: int = 1) -> None:
        """Count trials, and the sentences about those that failed."""
        self.trials += trials
        self.failures += len(faults)
        self.examples += faults[: max(EXAMPLES - len(self.examples), 0)]

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
        return asdict(self) | {"bound": self.bound}
