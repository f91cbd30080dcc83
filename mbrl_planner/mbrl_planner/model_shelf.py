"""Which model updates are taken: checked and built beside the act path, the last good one kept. No ROS."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.snapshot import Snapshot, check
from mbrl_dynamics.spec import Spec

Build = Callable[[Snapshot, Spec], Model]  # raises an exception whose text is the reason for a refusal


@dataclass(frozen=True)
class Verdict:
    """What became of an update."""

    snapshot: Snapshot
    model: Model | None  # None = refused
    reason: str = ""  # why it was refused, in one sentence


class ModelShelf:
    """Judges and builds updates in a worker thread, in the order in which they come.

    Args:
        spec: what a model must have been trained on.
        kind: model id that is accepted.
        build: makes the model of an update.
        ready: called from the worker whenever `take` has something.
    """

    def __init__(self, spec: Spec, kind: str, build: Build, ready: Callable[[], None]) -> None:
        self.kind = kind
        self._spec, self._build, self._ready = spec, build, ready
        self._accepted: Snapshot | None = None  # newest one that was built
        self._last: Snapshot | None = None  # newest one that came
        self._offered: deque[Snapshot] = deque()
        self._verdicts: deque[Verdict] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="model-shelf", daemon=True)
        self._worker.start()

    def offer(self, snapshot: Snapshot) -> None:
        """Hand in an update; returns at once."""
        with self._wake:
            self._offered.append(snapshot)
            self._wake.notify()

    def take(self) -> list[Verdict]:
        """What was decided since the last call, oldest first."""
        verdicts = []
        while self._verdicts:
            verdicts.append(self._verdicts.popleft())
        return verdicts

    def use_spec(self, spec: Spec) -> None:
        """Another world: accept models of its dynamics only, and look at the newest update again."""
        with self._wake:
            self._spec, self._accepted = spec, None
            if self._last is not None and not self._offered:
                self._offered.append(self._last)
                self._wake.notify()

    def close(self) -> None:
        """End the worker."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._worker.join(timeout=5.0)

    def _work(self) -> None:
        # One thread: a second pool of OpenMP threads in a process makes both pools sleep between operations,
        # and planning twice as slow (measured: 34 instead of 19 ms).
        torch.set_num_threads(1)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._offered or self._closed)
                if self._closed:
                    return
                snapshot, spec, accepted = self._offered.popleft(), self._spec, self._accepted
                self._last = snapshot
            verdict = self._judge(snapshot, spec, accepted)
            if verdict is None:
                continue
            with self._wake:
                if spec is not self._spec:
                    continue  # the world changed meanwhile, and `use_spec` offered the newest update again
                if verdict.model is not None:
                    self._accepted = snapshot
                self._verdicts.append(verdict)
            self._ready()

    def _judge(self, new: Snapshot, spec: Spec, old: Snapshot | None) -> Verdict | None:
        """None where nothing is to be said: the update is the one in use."""
        if old is not None and (old.run_id, old.version, old.sha256) == (new.run_id, new.version, new.sha256):
            return None
        reason = check(new, spec, model_id=self.kind, current=old)
        if reason:
            return Verdict(new, None, reason)
        try:
            model = self._build(new, spec)
            _try_out(model, new.name)
        except ValueError as error:
            return Verdict(new, None, str(error))
        except Exception as error:  # whatever is wrong with a received model must not end the worker
            return Verdict(new, None, f"{new.name} cannot be used: {error}")
        return Verdict(new, model)


@torch.no_grad()
def _try_out(model: Model, name: str) -> None:
    """Predict one step, so that what a model prepares at first use is done before it decides.

    Raises:
        ValueError: the prediction is not finite.
    """
    spec = model.spec
    obs = {"vector": torch.zeros(1, spec.observation_dim)}
    for camera in spec.cameras:
        obs[camera.name] = torch.zeros(1, camera.height, camera.width, 3, dtype=torch.uint8)
    action = torch.zeros(1, spec.inner_action_dim)
    prediction = model.step(model.observe(None, None, obs), action)
    if prediction.obs is not None and not torch.isfinite(prediction.obs).all():
        raise ValueError(f"{name} predicts what is not finite")
