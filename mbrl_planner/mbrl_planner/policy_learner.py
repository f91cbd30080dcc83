"""What learns a policy while another process acts with it: hears States and models, sends weights. No ROS.

It runs in a process of its own, see learner_child.py; learner_process.py is the other end.
"""

from __future__ import annotations

import dataclasses
import fcntl
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbrl_dynamics import plugins, wire
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.with_task import WithTask, knows_reward
from mbrl_dynamics.snapshot import Snapshot
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner import policy_weights
from mbrl_planner.agent_trainer import AgentTrainer
from mbrl_planner.model_gate import ModelGate, build_with
from mbrl_planner.pipe import Message, snapshot_of

BEGIN, STATE, MODEL = "begin", "state", "model"  # to this process
WEIGHTS, STATUS, REFUSED = "weights", "status", "refused"  # from it
WEIGHTS_PERIOD = 1.0  # between two hand-overs of weights while it learns [s]
STATUS_PERIOD = 1.0  # [s]
WATCH_PERIOD = 5.0  # between two looks at how good the dynamics model is; they take time from learning [s]
SAVE_PAUSE = 5.0  # least time between two checkpoints [s]
IDLE = 20.0  # an episode that nobody goes on with for so long is learned from [s]
LOCK_PATIENCE = 12.0  # for a former process that is about to end [s]
MODEL_PATIENCE = 30.0  # for a model that has seen the newest episode, before learning with an older one [s]
SLOW = 1.0  # a portion of gradient steps that takes longer is too large [s]


@dataclass(frozen=True)
class Order:
    """What is to be learned, and with what; the values of the first message, whose data is the Spec."""

    agent: str
    config: dict[str, Any]
    task: str
    action_repeat: int = 0
    model: str = ""  # kind of dynamics model that will come; empty = none
    dataset: str = ""  # folder; empty = none
    record: bool = True
    checkpoint: str = ""  # folder; empty = none
    checkpoint_period: float = 30.0  # [s]
    device: str = "cpu"
    seed: int = 0
    threads: int = 1
    nice: int = 5
    updates_at_once: int = 4  # gradient steps between two looks at what came
    hold: bool = False  # reads and records, but does not learn


class PolicyLearner:
    """An agent that learns from what it is told, in small portions, so that it stays responsive.

    Args:
        order: what is to be done.
        spec: of the world.
        say: sends a message.

    Raises:
        UserError: agent, dataset and checkpoint do not fit each other.
    """

    def __init__(self, order: Order, spec: Spec, say: Callable[[Message], None]) -> None:
        self.order, self.spec, self._say = order, spec, say
        self._folder = Path(order.checkpoint).expanduser() if order.checkpoint else None
        self._lock = _locked(self._folder)
        agent_class = plugins.find("agents", order.agent)
        config = build(agent_class.Config, order.config, order.agent.rpartition(":")[2])
        self.agent = agent_class(spec, config, seed=order.seed, device=order.device)
        self.task = plugins.make_task(order.task, order.action_repeat)
        self.trainer = AgentTrainer(
            self.agent,
            order.agent,
            record=order.record,
            dataset=Path(order.dataset).expanduser() if order.dataset else None,
            checkpoint=self._folder,
        )
        self.gate = ModelGate(spec, order.model, self._restored)
        self.swaps = self.models_refused = self.rollbacks = 0
        self.last_refusal = ""
        self._model_error: float | None = None
        self._watched_at = time.monotonic()
        self.error = ""  # of the last checkpoint
        self.metrics: dict[str, float] = {}
        self.heard = 0  # number of the newest State
        self.refused = 0  # States
        self.burst_seconds = math.nan  # the last time that it learned without a pause [s]
        self._newest: Transition | None = None
        self._between = False  # learn only between episodes
        self._heard_at = self._weights_at = self._saved_at = time.monotonic()
        self._burst_began: float | None = None
        self._portion = order.updates_at_once
        self._sent, self._saved = 0, (-1, -1)
        self._said: Any = None
        self._said_at = -math.inf

    # Hearing ------------------------------------------------------------------------------------------------

    def handle(self, message: Message) -> None:
        """Take what came."""
        if message.kind == STATE:
            self.heard, self._between = int(message.values["number"]), bool(message.values["between"])
            self._hear(wire.decode_transition(message.data))
        elif message.kind == MODEL:
            self._take(snapshot_of(message))

    def _hear(self, state: Transition) -> None:
        last = self.trainer.buffer.newest(state.world_id)
        self._newest, self._heard_at = state, time.monotonic()  # also tells where the episode stands
        if last is not None and state.key <= last.key:
            return  # known from the dataset, or from the process before this one
        try:
            self.trainer.hear(self._rewarded(state, last))
        except ValueError as error:
            self.refused += 1
            self.error = f"a State cannot be learned from: {error}"
            return
        self.gate.hear(state)

    def _rewarded(self, state: Transition, last: Transition | None) -> Transition:
        """A State whose world does not measure rewards, with the task's own."""
        if not math.isnan(state.reward) or state.first or not state.follows(last) or last is None:
            return state
        action = self.spec.scale_action(state.action)
        try:
            reward = float(np.asarray(self.task.reward(last.observation, action, state.observation)))
        except NotImplementedError:
            raise ValueError("neither its world nor the task tells the reward") from None
        return dataclasses.replace(state, reward=reward)

    @property
    def model(self) -> Model | None:
        """The dynamics model that is learned with."""
        return None if self.gate.in_use is None else self.gate.in_use.model

    @property
    def snapshot(self) -> Snapshot | None:
        """The same as it came."""
        return None if self.gate.in_use is None else self.gate.in_use.snapshot

    def _take(self, snapshot: Snapshot) -> None:
        """Learn with this model from now on, if it is fit for that."""
        old = self.snapshot
        if old is not None and (old.run_id, old.version) == (snapshot.run_id, snapshot.version):
            return
        finding = self.gate.judge(snapshot)
        self._model_error = finding.error
        if finding.reason:
            self.models_refused += 1
            self.last_refusal = finding.reason
        else:
            self.swaps += 1

    def _watch(self) -> None:
        """Go back to the model before, if that does better."""
        finding = self.gate.watch()
        self._model_error = finding.error
        if finding.reason:
            self.rollbacks += 1
            self.last_refusal = finding.reason

    def _restored(self, snapshot: Snapshot, spec: Spec) -> Model:
        model = build_with(self.task)(snapshot, spec)
        if isinstance(model, WithTask) and not knows_reward(self.task):
            raise ValueError(
                f"{snapshot.name} predicts no rewards, and the task '{self.order.task}' does not tell them: "
                f"set {snapshot.model_id}.rewards of the learner"
            )
        own = model.model if isinstance(model, WithTask) else model
        if isinstance(own, torch.nn.Module):
            own.to(self.agent.device)
        return model

    # Learning -----------------------------------------------------------------------------------------------

    @property
    def owed(self) -> int:
        """Gradient steps that are to be made for what was seen."""
        return 0 if self.order.hold else max(self.agent.owed(self.trainer.env_steps), 0)

    @property
    def may_learn(self) -> bool:
        """Whether it can, and it is the time for it."""
        if self.owed <= 0 or (self.agent.model and self.model is None):
            return False
        if not self._between:
            return True
        closed = self._closed
        patient = time.monotonic() - self._heard_at < MODEL_PATIENCE
        return closed is not None and (self._model_knows(*closed) or not patient)

    @property
    def _closed(self) -> tuple[str, int] | None:
        """The newest episode that is over; None = one is running."""
        state = self._newest
        if state is None:
            return "", -1
        world = state.world_id.hex()
        if state.last or time.monotonic() - self._heard_at > IDLE:
            return world, state.episode
        return (world, state.episode - 1) if state.first else None

    @property
    def covered(self) -> tuple[str, int] | None:
        """Up to which episode all is learned; None = not now."""
        closed = self._closed
        if closed is None or self.owed:
            return None
        return closed if self.order.hold or self._model_knows(*closed) else None

    def _model_knows(self, world: str, episode: int) -> bool:
        """Whether the model was trained on that episode, or there needs to be none."""
        used = self.snapshot
        if not self.agent.model:
            return True
        return (
            used is not None
            and used.trained_world_id.replace("-", "") == world
            and used.trained_episode >= episode
        )

    def learn(self) -> None:
        """Make a few of the gradient steps that are owed."""
        begin = time.monotonic()
        self._burst_began = self._burst_began or begin
        self.metrics |= self.trainer.update(self.model, limit=self._portion)
        now = time.monotonic()
        self.burst_seconds = now - self._burst_began
        if now - begin > SLOW:
            self._portion = 1

    # Telling ------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Send weights and status, and write a checkpoint, where it is time for that."""
        now, covered = time.monotonic(), self.covered
        if not self.may_learn:
            self._burst_began = None
        if now - self._watched_at >= WATCH_PERIOD:
            self._watched_at = now
            self._watch()
        if self.agent.updates != self._sent and (
            now - self._weights_at >= WEIGHTS_PERIOD or covered is not None
        ):
            self._send_weights()
        status = (
            covered,
            self.may_learn,
            len(self.trainer.events),
            self.swaps,
            self.models_refused,
            self.error,
        )
        if status != self._said or now - self._said_at >= STATUS_PERIOD:
            self._said, self._said_at = status, now
            self._say(Message(STATUS, self.status()))
        due = self.order.checkpoint_period if covered is None else SAVE_PAUSE
        if now - self._saved_at >= due:
            self.save()

    def _send_weights(self) -> None:
        data, bad = policy_weights.pack(self.agent, self.trainer.env_steps)
        if bad:
            self.trainer.undo(bad)
            data, _ = policy_weights.pack(self.agent, self.trainer.env_steps)
        self._weights_at, self._sent = time.monotonic(), self.agent.updates
        self._say(Message(WEIGHTS, {}, data))

    def status(self) -> dict[str, Any]:
        """How it goes."""
        trainer, used = self.trainer, self.snapshot
        return {
            "learning": self.may_learn,
            "updates": self.agent.updates,
            "owed": self.owed,
            "env_steps": trainer.env_steps,
            "episodes": trainer.buffer.episodes,
            "gaps": trainer.buffer.gaps,
            "heard": self.heard,
            "refused": self.refused,
            "covered": self.covered,
            "metrics": {k: v for k, v in self.metrics.items() if math.isfinite(v)},
            "burst_seconds": None if math.isnan(self.burst_seconds) else self.burst_seconds,
            "events": trainer.events[-10:],
            "recording": bool(self.order.record and self.order.dataset and not trainer.recording_error),
            "error": "; ".join(filter(None, (trainer.recording_error, self.error))),
            "model": None if used is None else [used.model_id, used.run_id, used.version],
            "swaps": self.swaps,
            "models_refused": self.models_refused,
            "rollbacks": self.rollbacks,
            "model_error": self._model_error,
            "last_refusal": self.last_refusal,
        }

    def save(self) -> None:
        """Write a checkpoint if there is news; a disk that is full ends nothing."""
        self._saved_at = time.monotonic()
        mark = self.agent.updates, self.trainer.env_steps
        if self._folder is None or mark == self._saved or self.order.hold:
            return
        try:
            self.trainer.save()
            self._saved, self.error = mark, ""
        except OSError as error:
            self.error = f"no checkpoint could be written: {error.strerror or error}"

    def close(self) -> None:
        """Write the last checkpoint and finish the recording."""
        self.save()
        self.trainer.close()


def _locked(folder: Path | None) -> Any:
    """A lock on a checkpoint's folder, held as long as the returned file is open.

    Raises:
        UserError: another process learns there, or the folder cannot be used.
    """
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"the checkpoint folder '{folder}' cannot be used: {error.strerror}") from None
    end = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(f"another process learns in '{folder}': choose another folder") from None
            time.sleep(0.1)
