"""An agent with its experience: what `mbrl train` and the policy node's learning process share. No ROS."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.episodes import EpisodeStore, read
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.base import PolicyAgent

_log = logging.getLogger(__name__)

DATASET, CHECKPOINT = "dataset", "checkpoint"  # folders of a run
_FILE = "agent.safetensors"
_WEIGHTS, _TRAINING = "weights.", "training."
GUARD_PERIOD = 5.0  # least time between two copies of the last good weights [s]


@dataclass(frozen=True)
class Mark:
    """How far an agent has come, as its checkpoint says.

    Attributes:
        env_steps: steps of experience [steps].
        episodes: episodes begun.
        extra: what the caller wants to find again.
    """

    env_steps: int = 0
    episodes: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


class AgentTrainer:
    """Hears States, keeps them in memory and on disk, lets the agent learn, and guards it against NaN.

    A run's folder holds `dataset/` and `checkpoint/`; both are resumed, so that a run that was killed goes on
    where its last checkpoint was, with all data that came after.

    Args:
        agent: the agent; nobody else may change it.
        agent_id: what the checkpoint calls it.
        folder: of the run; None = nothing is kept on disk.
        record: whether States are written to the dataset.
        dataset, checkpoint: folders that are not the run's own; None = as `folder` says.

    Attributes:
        events: what went wrong and was put right, newest last; for status and log.
        env_steps: steps of experience so far.

    Raises:
        UserError: the dataset or the checkpoint is not of this agent, task or dynamics, or the agent lacks
            what it learns from.
    """

    def __init__(
        self,
        agent: PolicyAgent,
        agent_id: str,
        folder: Path | None = None,
        *,
        record: bool = True,
        dataset: Path | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        agent.check_learning()
        self.agent, self.agent_id = agent, agent_id
        self.dataset = dataset or (folder / DATASET if folder else None)
        self.checkpoint = checkpoint or (folder / CHECKPOINT if folder else None)
        self.spec: Spec = agent.spec
        if agent.device.type == "cuda":
            agent.compile_update()
        self.buffer = ReplayBuffer(self.spec)
        self.events: list[str] = []
        self.mark = Mark()
        self._store: EpisodeStore | None = None
        if self.checkpoint is not None:
            self.mark = load(self.checkpoint, agent, agent_id) or Mark()
        if self.dataset is not None:
            remember(self.buffer, self.dataset)
            if record:
                self._store = EpisodeStore(self.dataset, self.spec)
        self._good = _copy(agent)
        self._good_at = time.monotonic()

    @property
    def env_steps(self) -> int:
        """Steps of experience so far."""
        return len(self.buffer)

    @property
    def recording_error(self) -> str:
        """Why nothing is recorded any more; empty = all is well."""
        return "" if self._store is None else self._store.error

    def hear(self, transition: Transition) -> bool:
        """Keep a State; returns whether it completed a step.

        Raises:
            ValueError: it does not fit the spec.
        """
        joined = self.buffer.add(transition)
        if self._store is not None:
            self._store.add(transition)
        return joined

    def update(self, model: Model | None = None, *, limit: int = 1_000_000) -> Metrics:
        """Let the agent make the gradient steps that it owes, at most `limit`.

        If a loss or a weight is not finite after that, the last good weights come back, and `events` tells.

        Returns:
            The agent's metrics; empty if nothing was owed or it was undone.
        """
        return self._checked(self.agent.update(self.buffer, model, env_steps=self.env_steps, limit=limit))

    def advance(self, model: Model | None, count: int) -> Metrics:
        """As `update`, but `count` gradient steps whether owed or not: learning offline.

        Raises:
            UserError: there is nothing to learn from.
        """
        if not self.env_steps:
            raise UserError("the dataset is empty: there are no steps to learn from")
        return self._checked(self.agent.advance(self.buffer, model, count))

    def _checked(self, metrics: Metrics) -> Metrics:
        bad = next((name for name, value in metrics.items() if not math.isfinite(value)), "")
        if not bad and metrics and time.monotonic() - self._good_at > GUARD_PERIOD:
            bad = self.keep_good()
        if bad:
            self.undo(bad)
            return {}
        return metrics

    def keep_good(self) -> str:
        """Take the weights of now as good ones; returns the name of one that is not finite, then undo."""
        bad = snapshots.not_finite(self.agent.state_dict())
        if not bad:
            self._good, self._good_at = _copy(self.agent), time.monotonic()
        return bad

    def undo(self, bad: str) -> None:
        """Go back to the last good weights."""
        updates = self.agent.updates
        self.agent.load_state_dict(self._good[0])
        self.agent.load_training_state(self._good[1])
        self.agent.updates = updates  # the steps were made, though in vain: they are not owed again
        self.agent.generator.manual_seed(updates)  # the same draws would lead to the same end
        self.note(f"'{bad}' was not finite after {updates} updates: the last good weights are back")

    def note(self, event: str) -> None:
        """Keep what went wrong for the status, and tell it to the log, once."""
        if event not in self.events:
            self.events.append(event)
            _log.warning(event)

    def save(self, **extra: Any) -> None:
        """Write a checkpoint; until it is complete, the one before stays.

        Raises:
            OSError: it could not be written.
        """
        assert self.checkpoint is not None
        if self.keep_good():
            self.undo("a weight")
        save(self.checkpoint, self.agent, self.agent_id, self.env_steps, self.buffer.episodes, extra)

    def close(self) -> None:
        """Finish the recording."""
        if self._store is not None:
            self._store.close()


def save(
    folder: Path, agent: PolicyAgent, agent_id: str, env_steps: int, episodes: int, extra: Mapping[str, Any]
) -> None:
    """Write an agent's checkpoint: weights, optimisers, random numbers and counters, in one file."""
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in agent.state_dict().items()}
    tensors |= {f"{_TRAINING}{name}": tensor for name, tensor in agent.training_state().items()}
    manifest = {
        "agent": agent_id,
        "architecture": snapshots.architecture(agent.config),
        "task": agent.spec.task,
        "dynamics_hash": agent.spec.dynamics_hash,
        "env_steps": env_steps,
        "episodes": episodes,
        "extra": dict(extra),
    }
    snapshots.write_atomically(folder / _FILE, snapshots.to_bytes(tensors, manifest))


def load(folder: Path, agent: PolicyAgent, agent_id: str, *, learn: bool = True) -> Mark | None:
    """Bring a new agent to where a checkpoint was; None = there is no checkpoint.

    Args:
        learn: whether it is to go on learning; otherwise only weights and the number of updates are taken.

    Raises:
        UserError: it is damaged, or of another agent, task, dynamics or size; the agent is as before.
    """
    path = folder / _FILE
    try:
        tensors, manifest = snapshots.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"the checkpoint {path} is {error}") from None
    wanted = {"agent": agent_id, "task": agent.spec.task, "dynamics_hash": agent.spec.dynamics_hash}
    for key, value in wanted.items():
        if manifest.get(key) != value:
            name, found = key.replace("_", " "), str(manifest.get(key))
            raise UserError(
                f"the checkpoint {path} is of {name} '{found[:40]}', but '{value[:40]}' is wanted"
            )
    bad = snapshots.not_finite(tensors)
    if bad:
        raise UserError(f"the checkpoint {path} has values that are not finite: '{bad}'")
    weights = {k.removeprefix(_WEIGHTS): v for k, v in tensors.items() if k.startswith(_WEIGHTS)}
    training = {k.removeprefix(_TRAINING): v for k, v in tensors.items() if k.startswith(_TRAINING)}
    try:
        snapshots.load(agent, weights, f"the checkpoint {path}")
        if learn:
            agent.load_training_state(training)
        agent.updates = int(training["updates"])
        return Mark(int(manifest["env_steps"]), int(manifest["episodes"]), manifest["extra"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{error}".strip("'\"")) from None


def remember(buffer: ReplayBuffer, folder: Path) -> int:
    """Fill a buffer from a dataset's folder; returns how many steps came of it. An absent one is empty.

    Raises:
        UserError: the data are of other dynamics.
    """
    before = len(buffer)
    if not folder.is_dir():
        return 0
    for record in read(folder, ("state", "spec")):
        if isinstance(record, Spec):
            check_dataset(folder, record, buffer.spec)
        if isinstance(record, Transition) and not record.fault(buffer.spec):
            buffer.add(record)
    return len(buffer) - before


def check_dataset(folder: Path, recorded: Spec, wanted: Spec) -> None:
    """Look whether what was recorded in a folder can be learned from.

    Raises:
        UserError: it is of other dynamics.
    """
    if recorded.dynamics_hash != wanted.dynamics_hash:
        theirs, ours = _dimensions(recorded), _dimensions(wanted)
        raise UserError(f"the dataset '{folder}' is of {theirs}, but {ours} is wanted")


def _dimensions(spec: Spec) -> str:
    return (
        f"task '{spec.task}' ({spec.observation_dim} observations, {spec.action_dim} actions, "
        f"{spec.control_period} s, dynamics hash {spec.dynamics_hash[:8]})"
    )


def _copy(agent: PolicyAgent) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {name: tensor.detach().clone() for name, tensor in agent.state_dict().items()}
    return weights, agent.training_state()
