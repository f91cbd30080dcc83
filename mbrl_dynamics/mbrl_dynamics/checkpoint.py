"""What a learner needs to go on after a restart: weights, optimiser, and what they were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.snapshot import Snapshot

_FILE = "learner.safetensors"
_WEIGHTS, _TRAINING = "weights.", "training."


@dataclass(frozen=True)
class Progress:
    """How far a learner has come.

    Attributes:
        world_id: UUID (hex) of the world of the last transition trained on; empty = nothing yet.
        episode: last whole episode of that world that was trained on; -1 = none.
        steps: transitions trained on.
        metrics: of the last fit.
    """

    world_id: str = ""
    episode: int = -1
    steps: int = 0
    metrics: dict[str, float] | None = None


def save(folder: Path, model: Any, snapshot: Snapshot, progress: Progress) -> None:
    """Write a checkpoint; until it is complete, the one before stays.

    Raises:
        OSError: it could not be written.
    """
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{_TRAINING}{name}": tensor for name, tensor in model.training_state().items()}
    manifest = {
        "model_id": snapshot.model_id,
        "architecture": snapshot.architecture,
        "dynamics_hash": snapshot.dynamics_hash,
        "run_id": snapshot.run_id,
        "version": snapshot.version,
        "world_id": progress.world_id,
        "episode": progress.episode,
        "steps": progress.steps,
        "metrics": progress.metrics,
    }
    snapshots.write_atomically(folder / _FILE, snapshots.to_bytes(tensors, manifest))


def load(folder: Path, model: Any, model_id: str) -> Progress | None:
    """Bring a new model to where a checkpoint was; None = there is no checkpoint.

    Raises:
        ValueError: the checkpoint is damaged or of another model; one sentence. The model is as before.
    """
    path = folder / _FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error.strerror}") from None
    try:
        tensors, manifest = snapshots.from_bytes(data)
    except ValueError as error:
        raise ValueError(f"the checkpoint {path} is {error}") from None
    wanted = {
        "model_id": model_id,
        "architecture": snapshots.architecture(model.config),
        "dynamics_hash": model.spec.dynamics_hash,
    }
    for key, value in wanted.items():
        if manifest.get(key) != value:
            raise ValueError(f"the checkpoint {path} has another {key.replace('_', ' ')}")
    bad = snapshots.not_finite(tensors)
    if bad:
        raise ValueError(f"the checkpoint {path} has values that are not finite: '{bad}'")
    snapshots.load(model, _part(tensors, _WEIGHTS), f"the checkpoint {path}")
    model.load_training_state(_part(tensors, _TRAINING))
    return Progress(manifest["world_id"], manifest["episode"], manifest["steps"], manifest["metrics"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
