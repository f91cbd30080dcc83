"""What a model must show before anything is decided with it, and while it is in use. No ROS, no threads."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Model, Task
from mbrl_dynamics.models.with_task import WithTask
from mbrl_dynamics.snapshot import Snapshot, check
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Trajectory

Build = Callable[[Snapshot, Spec], Model]  # raises an exception whose text is the reason for a refusal
DryPlan = Callable[[Model, dict[str, Tensor]], Tensor]  # decides once; returns actions

RECENT = 512  # States that models are compared on [steps]
ENOUGH = 50  # fewer say nothing [steps]
CONTEXT = 16  # steps that a recurrent model is filtered through before its prediction counts
NO_CHANGE = 1.0  # error of predicting that nothing changes [standard deviations of a change]
FLOOR = 0.05  # an error below this is good, whatever the other model's is [standard deviations of a change]
ACCEPTED, BANNED = "accepted.safetensors", "banned.txt"  # files in the folder


@dataclass(frozen=True)
class Finding:
    """What the gate says.

    Attributes:
        reason: why a model is not to be used (any more), in one sentence; empty = it is good.
        error: of the model in use on the newest States [standard deviations of a change]; None = unknown.
        trouble: what went wrong in the gate itself, in one sentence; empty = nothing.
    """

    reason: str = ""
    error: float | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Kept:
    """A model that was found good."""

    snapshot: Snapshot
    model: Model


class ModelGate:
    """Judges updates, and goes on watching the one in use beside the one before.

    An update must be whole, of the right kind and dynamics, finite, on the newest States no worse than
    `tolerance` times the last two models in use, nor than predicting no change where these are better than
    that, and fast enough to plan with. The model in use goes back to the one
    before when that predicts better by the same factor what happened since; it is not taken again then.

    Args:
        spec: what a model must have been trained on.
        kind: model id that is accepted.
        build: makes the model of an update.
        tolerance: see above [1].
        plan: decides once, for the time that it takes; None = that does not matter.
        limit: a decision may take so long [s]; 0 = any time.
        folder: where the last good model is kept for the next start; None = nowhere.
    """

    def __init__(
        self,
        spec: Spec,
        kind: str,
        build: Build,
        *,
        tolerance: float = 1.5,
        plan: DryPlan | None = None,
        limit: float = 0.0,
        folder: Path | None = None,
    ) -> None:
        self.spec, self.kind, self.tolerance, self.limit = spec, kind, tolerance, limit
        self._build, self._plan, self._folder = build, plan, folder
        self._in_use: Kept | None = None
        self._before: Kept | None = None
        self._recent: deque[Transition] = deque(maxlen=RECENT)
        self._since = 0  # States heard since the last swap
        self._banned, self.trouble = _read_banned(folder)

    @property
    def in_use(self) -> Kept | None:
        """The last model found good."""
        return self._in_use

    def hear(self, state: Transition) -> None:
        """What happened, in order."""
        self._recent.append(state)
        self._since += 1

    def keep(self, snapshot: Snapshot) -> None:
        """Take a model that was found good before, by a gate that is gone.

        Raises:
            Exception: it cannot be built.
        """
        self._swap(Kept(snapshot, self._build(snapshot, self.spec)))

    def judge(self, new: Snapshot) -> Finding:
        """Whether an update is good; if so, it is in use from now on."""
        used = None if self._in_use is None else self._in_use.snapshot
        if new.sha256 in self._banned:
            return Finding(f"{new.name} was in use and did worse than the one before")
        try:
            reason = check(new, self.spec, model_id=self.kind, current=used)
            if reason:
                return Finding(reason)
            kept = Kept(new, self._build(new, self.spec))
            try_out(kept.model, new.name)
            error = self._compare(kept)
            self._time(kept)
        except ValueError as fault:
            return Finding(str(fault))
        except Exception as fault:  # whatever is wrong with a received model ends with it
            return Finding(f"{new.name} cannot be used: {fault}")
        self._swap(kept)
        return Finding("", error, self._store(new))

    def watch(self) -> Finding:
        """Whether the model in use is still good; if not, the one before is in use again."""
        used, before = self._in_use, self._before
        if used is None:
            return Finding()
        lately = list(self._recent)[-min(self._since, RECENT) :] if self._since else []
        error, former = self._errors(lately, used, before)
        if error is None or former is None or error <= self.tolerance * max(former, FLOOR):
            return Finding("", error)
        assert before is not None
        self._banned.append(used.snapshot.sha256)
        self._in_use, self._before, self._since = before, None, 0
        reason = (
            f"{used.snapshot.name} predicted what came after it with an error of {error:.3g}, "
            f"{before.snapshot.name} with {former:.3g}: that one is used again"
        )
        return Finding(reason, former, self._store(before.snapshot))

    # ------------------------------------------------------------------------------------------------------

    def _swap(self, kept: Kept) -> None:
        self._in_use, self._before, self._since = kept, self._in_use, 0

    def _compare(self, new: Kept) -> float | None:
        """The error of an update on the newest States; None = unknown.

        Raises:
            ValueError: it is too large beside that of the model in use.
        """
        error, *others = self._errors(list(self._recent), new, self._in_use, self._before)
        if error is None:
            return None
        if not np.isfinite(error):
            raise ValueError(f"{new.snapshot.name} predicts what is not finite")
        known = [other for other in others if other is not None]
        best = min(known, default=np.inf)  # not only the one in use: models could get worse step by step
        told = f"{new.snapshot.name} predicts the newest States with an error of {error:.3g}"
        if error > self.tolerance * max(best, FLOOR):
            raise ValueError(f"{told}, more than {self.tolerance:g} times the {best:.3g} of a model in use")
        if error > max(NO_CHANGE, best) and known:
            raise ValueError(f"{told}: that nothing changes would be a better guess")
        return error

    def _errors(self, states: list[Transition], *models: Kept | None) -> list[float | None]:
        """Errors of models on the same States; None where there is no model or not enough to say."""
        buffer = ReplayBuffer(self.spec)
        for state in states if not self.spec.cameras else ():
            buffer.add(state)
        if len(buffer) < ENOUGH:
            return [None for _ in models]
        return [None if kept is None else prediction_error(kept.model, buffer) for kept in models]

    def _time(self, new: Kept) -> None:
        """Decide once with an update.

        Raises:
            ValueError: the decision is not finite, or takes too long.
        """
        if self._plan is None:
            return
        obs = self._recent[-1].observation if self._recent else np.zeros(self.spec.observation_dim)
        vector = {"vector": torch.from_numpy(np.asarray(obs, np.float32))[None]}
        took = float("inf")
        for _ in range(2):  # the first time prepares
            begin = time.thread_time()  # of this thread alone, since the machine may be busy
            actions = self._plan(new.model, vector)
            took = min(took, time.thread_time() - begin)
        if not torch.isfinite(actions).all():
            raise ValueError(f"a plan with {new.snapshot.name} is not finite")
        if self.limit and took > self.limit:
            raise ValueError(
                f"a plan with {new.snapshot.name} takes {1e3 * took:.0f} ms of computing, "
                f"but there are {1e3 * self.limit:.0f} ms"
            )

    def _store(self, snapshot: Snapshot) -> str:
        """Keep what a restart needs; returns why that failed, empty if it did not."""
        if self._folder is None:
            return ""
        try:
            snapshots.write_atomically(self._folder / ACCEPTED, snapshot.weights)
            snapshots.write_atomically(self._folder / BANNED, "\n".join(self._banned).encode())
        except OSError as error:
            return f"the model in use could not be kept in '{self._folder}': {error.strerror or error}"
        return ""


@torch.no_grad()
def prediction_error(model: Model, buffer: ReplayBuffer) -> float | None:
    """Root of the mean squared error of one-step predictions of all steps of a buffer.

    Each observed element counts in units of the standard deviation of its change, so that 1 is about what
    predicting no change would do; elements that never change do not count. None where a model predicts no
    observations, or nothing changes.
    """
    recurrent = model.capabilities.recurrent
    batch = buffer.slices(np.arange(len(buffer)), CONTEXT if recurrent else 1)
    predicted = _predict(model, batch.to(_device(model)))
    if predicted is None:
        return None
    before, after = batch.obs["vector"][:, -2], batch.obs["vector"][:, -1]
    scale = (after - before).std(0)
    moving = scale > 1e-6 * (1.0 + after.abs().amax(0))
    if not moving.any():
        return None
    miss = (predicted.cpu() - after)[:, moving] / scale[moving]
    return float(miss.square().mean().sqrt().nan_to_num(nan=float("inf")))


def _predict(model: Model, batch: Trajectory) -> Tensor | None:
    """The last observation of slices, from all before it: [B, D]."""
    state: Any = None
    for t in range(batch.action.shape[1]):
        action = batch.action[:, t - 1] if t else None
        obs = {name: value[:, t] for name, value in batch.obs.items()}
        state = model.observe(state, action, obs, batch.first[:, t] if t else None)
    return model.step(state, batch.action[:, -1]).obs


def _device(model: Model) -> torch.device:
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


@torch.no_grad()
def try_out(model: Model, name: str) -> None:
    """Predict one step, so that what a model prepares at first use is done before it decides.

    Raises:
        ValueError: the prediction is not finite.
    """
    spec, device = model.spec, _device(model)
    obs = {"vector": torch.zeros(1, spec.observation_dim, device=device)}
    for camera in spec.cameras:
        obs[camera.name] = torch.zeros(1, camera.height, camera.width, 3, dtype=torch.uint8, device=device)
    action = torch.zeros(1, spec.inner_action_dim, device=device)
    prediction = model.step(model.observe(None, None, obs), action)
    if prediction.obs is not None and not torch.isfinite(prediction.obs).all():
        raise ValueError(f"{name} predicts what is not finite")


def build_with(task: Task) -> Build:
    """Makes models of updates, with the task's reward where they predict none."""

    def build(snapshot: Snapshot, spec: Spec) -> Model:
        model: Model = snapshots.restore(snapshot, spec)
        if model.capabilities.rewards:
            return model
        own: Any = copy.copy(task)
        own.spec = spec  # a task knows nothing of the world's action delay
        return WithTask(model, own)

    return build


def stored(folder: Path) -> Snapshot | None:
    """The last good model of an earlier start; None = there is none.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with (folder / ACCEPTED).open("rb") as file:
            return snapshots.unpack(file.read(snapshots.MAX_BYTES + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"the model in '{folder}' cannot be read: {error.strerror or error}") from None


def _read_banned(folder: Path | None) -> tuple[list[str], str]:
    """Digests of models that are not taken again, and why they could not be read."""
    if folder is None:
        return [], ""
    try:
        return (folder / BANNED).read_text(encoding="ascii").split(), ""
    except FileNotFoundError:
        return [], ""
    except (OSError, UnicodeDecodeError) as error:
        return [], f"'{folder / BANNED}' cannot be read: {error}"
