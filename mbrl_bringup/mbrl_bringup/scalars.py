"""What happens in a training, as event files that TensorBoard reads: `tensorboard --logdir runs`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GROUPS = {"episode": "episode", "evaluation": "evaluation", "fit": "model", "update": "agent"}
COUNTERS = ("env_steps", "frames", "updates", "episode")  # of no use as curves


class Scalars:
    """Listens to a training (see Training's `say`) and writes what it hears into the run's folder.

    A training that goes on writes another file; its first step tells TensorBoard to forget what the files
    before have from there on, so that the curve has no point twice.

    Args:
        folder: of the run.
        axis: of the curves: "frames", or "updates" where there are no frames, as when learning offline.
        period: least time between two points of the agent's metrics [s].
    """

    def __init__(self, folder: Path, axis: str = "frames", period: float = 1.0) -> None:
        self.folder, self.axis, self.period = folder, axis, period
        self._writer: Any = None
        self._updated = -math.inf

    def __call__(self, kind: str, values: Mapping[str, float]) -> None:
        """Something happened; kinds are those of GROUPS."""
        if kind == "update":
            if time.monotonic() < self._updated + self.period:
                return
            self._updated = time.monotonic()
        step = int(values[self.axis])
        if self._writer is None:
            self._writer = self._open(step)
        for name, value in values.items():
            if name not in COUNTERS and math.isfinite(value):
                self._writer.add_scalar(f"{GROUPS[kind]}/{name}", value, step)
        if kind == "evaluation":
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> Any:
        from tensorboardX import SummaryWriter  # takes a while to load

        return SummaryWriter(str(self.folder), purge_step=step, flush_secs=10)
