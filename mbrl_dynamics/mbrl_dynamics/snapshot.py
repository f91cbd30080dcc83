"""A trained model as bytes: safetensors with a manifest. Nothing that is received is ever unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mbrl_dynamics.allowance import Allowance
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import find
from mbrl_dynamics.spec import Spec

MAX_BYTES = 1 << 28  # larger updates are refused [bytes]
_SPARE = 16 << 20  # what a model may take beside its weights while it is built [bytes]
_MANIFEST = "manifest"  # key of the safetensors metadata


@dataclass(frozen=True)
class Snapshot:
    """An immutable model, as in mbrl_msgs/ModelUpdate.

    Attributes:
        model_id: name of the model's kind, as the learner's parameter `model` gives it.
        run_id: UUID of the learner's run; a new run starts over with version 1.
        version: ordered within a run, from 1.
        architecture: canonical JSON of the model's configuration.
        dynamics_hash: of the Spec that the model was trained on.
        sha256: hex digest of `weights`.
        trained_world_id: UUID (hex) of the world of the last transition trained on.
        trained_episode: last episode of that world that is in the training data; -1 = none.
        metrics: for example "holdout_error".
        weights: a safetensors file; its metadata repeat all of the above but the digest.
    """

    model_id: str
    run_id: str
    version: int
    architecture: str
    dynamics_hash: str
    sha256: str
    trained_world_id: str
    trained_episode: int
    metrics: Mapping[str, float]
    weights: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return f"update {self.version} of run {self.run_id[:8]}"


def pack(
    model: Any,
    *,
    model_id: str,
    run_id: str,
    version: int,
    trained_world_id: str = "",
    trained_episode: int = -1,
    metrics: Mapping[str, float] | None = None,
) -> Snapshot:
    """A model as it is now."""
    manifest = {
        "model_id": model_id,
        "run_id": run_id,
        "version": version,
        "architecture": architecture(model.config),
        "dynamics_hash": model.spec.dynamics_hash,
        "trained_world_id": trained_world_id,
        "trained_episode": trained_episode,
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
    }
    weights = to_bytes(model.state_dict(), manifest)
    return Snapshot(**manifest, sha256=hashlib.sha256(weights).hexdigest(), weights=weights)


def unpack(weights: bytes) -> Snapshot:
    """A snapshot from its weights alone, whose metadata repeat all the rest.

    Raises:
        ValueError: the bytes are no such file.
    """
    if len(weights) > MAX_BYTES:
        raise ValueError(f"the model has more than {MAX_BYTES} bytes, which are the limit")
    try:
        _, manifest = from_bytes(weights)
        return Snapshot(**manifest, sha256=hashlib.sha256(weights).hexdigest(), weights=weights)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the model cannot be read: {error}") from None


def check(snapshot: Snapshot, spec: Spec, *, model_id: str, current: Snapshot | None = None) -> str:
    """Why a snapshot cannot replace the one in use, in one sentence; empty if it can.

    Everything but the tensors' names and shapes, which `restore` compares.
    """
    name, wanted = snapshot.name, spec.dynamics_hash
    if snapshot.model_id != model_id:
        return f"{name} is a model '{snapshot.model_id}', but '{model_id}' is wanted"
    if snapshot.dynamics_hash != wanted:
        return f"{name} is for dynamics hash {snapshot.dynamics_hash[:12]}, but the world's is {wanted[:12]}"
    if current is not None and current.run_id == snapshot.run_id and snapshot.version <= current.version:
        return f"{name} is not newer than version {current.version}, which is in use"
    try:
        _verified(snapshot)
    except ValueError as error:
        return str(error)
    return ""


def restore(snapshot: Snapshot, spec: Spec, model_class: type | None = None, *, seed: int = 0) -> Any:
    """The model of a snapshot.

    Args:
        snapshot: from whom ever; what is wrong with it is found out.
        spec: whose dynamics the model must be for.
        model_class: what `snapshot.model_id` names; None = the installed plugin of that name. The caller has
            compared the name with the one that its own parameters ask for.
        seed: of the model.

    Raises:
        ValueError: it is truncated, altered, too large, for other dynamics or not finite, or its tensors are
            not those of its architecture.
    """
    if snapshot.dynamics_hash != spec.dynamics_hash:
        raise ValueError(f"{snapshot.name} is for another dynamics hash")
    tensors = _verified(snapshot)
    kind: Any = model_class or find("models", snapshot.model_id)
    try:
        config = build(kind.Config, json.loads(snapshot.architecture))
        with Allowance(_SPARE + 4 * len(snapshot.weights)):  # a few words can describe a model of any size
            model = kind(spec, config, seed=seed)
    except (UserError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{snapshot.name} has an architecture that cannot be built: {error}") from None
    load(model, tensors, snapshot.name)
    return model


def load(model: Any, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load weights into a model.

    Raises:
        ValueError: they are not those of the model's architecture; `name` is what the sentence calls them.
    """
    expected = model.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in tensors:
            raise ValueError(f"{name} lacks the tensor '{key}'")
        if key not in expected:
            raise ValueError(f"{name} has a tensor '{key}' that its architecture does not have")
        have, want = tensors[key], expected[key]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise ValueError(
                f"{name} has a tensor '{key}' of {have.dtype} {list(have.shape)} "
                f"where its architecture wants {want.dtype} {list(want.shape)}"
            )
    model.load_state_dict(tensors)


def architecture(config: Any) -> str:
    """A configuration as canonical JSON."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name of a tensor that holds a NaN or an infinity; empty = there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return ""


def to_bytes(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> bytes:
    """A safetensors file with a manifest as its metadata."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={_MANIFEST: json.dumps(manifest, sort_keys=True)})


def from_bytes(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `to_bytes`.

    Raises:
        ValueError: the bytes are not such a file.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        manifest = json.loads(header["__metadata__"][_MANIFEST])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a safetensors file with a manifest ({error})") from None
    if not isinstance(manifest, dict):
        raise ValueError("the manifest is not an object")
    return tensors, manifest


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file: at any moment, and after a failure, it is either the old one or the new one.

    Raises:
        OSError: there is no room; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _verified(snapshot: Snapshot) -> dict[str, Tensor]:
    """The tensors of a snapshot whose bytes are what its manifest says.

    Raises:
        ValueError: they are not; one sentence.
    """
    if len(snapshot.weights) > MAX_BYTES:
        raise ValueError(f"{snapshot.name} has {len(snapshot.weights)} bytes, but {MAX_BYTES} are the limit")
    if hashlib.sha256(snapshot.weights).hexdigest() != snapshot.sha256:
        raise ValueError(f"{snapshot.name} is truncated or altered: its SHA-256 is another")
    try:
        tensors, manifest = from_bytes(snapshot.weights)
    except ValueError as error:
        raise ValueError(f"{snapshot.name} is {error}") from None
    for key, value in manifest.items():
        said = getattr(snapshot, key, None)
        if key != "metrics" and said != value:
            raise ValueError(f"{snapshot.name} contradicts itself: {key} is {said!r}, but {value!r} inside")
    bad = not_finite(tensors)
    if bad:
        raise ValueError(f"{snapshot.name} has weights that are not finite: '{bad}'")
    return tensors
