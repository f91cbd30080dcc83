"""Fits a private model in a thread of its own, and hands over immutable snapshots."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbrl_dynamics import checkpoint, snapshot
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.checkpoint import Progress
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Metrics

_log = logging.getLogger(__name__)


class Phase(Enum):
    """What a worker is doing."""

    IDLE = 0
    TRAINING = 1
    FAILED = 2  # the last fit failed


class TrainingWorker:
    """A model that nobody else sees, on a buffer that nobody else touches.

    A fit that fails, or is broken off by `close`, is undone: the model goes back to the last good one, and
    the data wait for the next fit. Versions count from 1 within a run; a checkpoint that is resumed is
    version 1 of a new run.

    Args:
        model: the untrained model, with `training_state` and `load_training_state` beside the Model protocol.
        buffer: empty; says what the model is fitted on.
        model_id: what the snapshots call it.
        budget: of each fit.
        folder: of the checkpoint; None = none.
        threads: CPU threads of the training.
        notify: called from the worker whenever there is news.

    Attributes:
        run_id: UUID of this run.
        newest: the newest model; None = nothing has been trained yet.
        progress: how far it has come.
        phase: what it is doing.
        error: why the last fit, or its checkpoint, failed; empty = it did not.
        fit_seconds: wall time of the last fit [s].
    """

    def __init__(
        self,
        model: Any,
        buffer: ReplayBuffer,
        model_id: str,
        budget: Budget,
        folder: Path | None = None,
        threads: int = 1,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_id = str(uuid.uuid4())
        self.newest: Snapshot | None = None
        self.progress = Progress()
        self.phase, self.error, self.fit_seconds = Phase.IDLE, "", math.nan
        self._model, self._model_id, self._budget, self._folder = model, model_id, budget, folder
        self._threads, self._notify = threads, notify
        self._buffer = buffer
        self._pending: list[Transition] = []  # told, but not in the buffer yet
        self._wanted: tuple[str, int] | None = None
        self._closing = False
        self._wake = threading.Condition()
        self._resume()
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)
        self._thread.start()

    def add(self, transition: Transition) -> None:
        """Let the next fit know a State."""
        with self._wake:
            self._pending.append(transition)

    def train(self, world_id: str, episode: int) -> None:
        """Fit soon; what was added so far reaches to the end of this episode of this world (hex)."""
        with self._wake:
            self._wanted = world_id, episode
            self._wake.notify()

    def close(self, timeout: float) -> bool:
        """Break off a fit that is under way. Returns whether the thread ended within `timeout` [s]."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _resume(self) -> None:
        if self._folder is None:
            return
        try:
            progress = checkpoint.load(self._folder, self._model, self._model_id)
        except ValueError as error:
            self.error = f"{error}; learning begins anew"
            return
        if progress is not None:
            self.newest = self._pack(1, progress)
            self.progress = progress

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._wanted is not None or self._closing)
                if self._closing or self._wanted is None:
                    return
                (world, episode), self._wanted = self._wanted, None
                states, self._pending = self._pending, []
                self.phase = Phase.TRAINING
            self._notify()
            for state in states:
                self._buffer.add(state)
            self.phase, self.error = self._train(world, episode)
            self._notify()

    def _train(self, world: str, episode: int) -> tuple[Phase, str]:
        """Fit and hand over; returns what became of it."""
        good = _clone(self._model.state_dict()), _clone(self._model.training_state())
        steps = len(self._buffer)
        try:
            metrics = self.progress.metrics
            if self.newest is None or steps != self.progress.steps:  # else only the episode's end is new
                metrics = self._fit()
            self._hand_over(Progress(world, episode, steps, metrics))
        except _BrokenOffError:
            self._undo(*good)
        except OSError as error:
            return Phase.IDLE, f"no checkpoint could be written: {error.strerror or error}"
        except Exception as error:  # whatever a user's model raises, recording goes on
            _log.exception("training failed")
            self._undo(*good)
            return Phase.FAILED, f"training failed: {error}"
        return Phase.IDLE, ""

    def _fit(self) -> Metrics:
        begin = time.monotonic()
        metrics = self._model.fit(self._buffer, self._budget, self._on_progress)
        self.fit_seconds = time.monotonic() - begin
        bad = snapshot.not_finite(self._model.state_dict())
        if bad:
            raise ValueError(f"the weights are not finite any more: '{bad}'")
        return {name: float(value) for name, value in metrics.items()}

    def _hand_over(self, progress: Progress) -> None:
        self.newest = self._pack(1 if self.newest is None else self.newest.version + 1, progress)
        self.progress = progress  # after the model: it never promises one that is yet to come
        if self._folder is not None:
            checkpoint.save(self._folder, self._model, self.newest, progress)

    def _pack(self, version: int, progress: Progress) -> Snapshot:
        return snapshot.pack(
            self._model,
            model_id=self._model_id,
            run_id=self.run_id,
            version=version,
            trained_world_id=progress.world_id,
            trained_episode=progress.episode,
            metrics=progress.metrics,
        )

    def _undo(self, weights: dict[str, Tensor], training: dict[str, Tensor]) -> None:
        self._model.load_state_dict(weights)
        self._model.load_training_state(training)

    def _on_progress(self, metrics: Metrics) -> None:
        if self._closing:
            raise _BrokenOffError


class _BrokenOffError(Exception):
    """Ends a fit that nobody waits for any more."""


def _clone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
