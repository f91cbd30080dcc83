"""Snapshot <-> ModelUpdate. Apart from `convert`, since it loads torch, which a world never does."""

from __future__ import annotations

from mbrl_dynamics.ros.convert import octets
from mbrl_dynamics.snapshot import Snapshot
from mbrl_msgs.msg import ModelUpdate


def snapshot_to_msg(snapshot: Snapshot) -> ModelUpdate:
    """A snapshot as an update; the stamp is left to the caller."""
    return ModelUpdate(
        model_id=snapshot.model_id,
        run_id=snapshot.run_id,
        version=snapshot.version,
        architecture=snapshot.architecture,
        dynamics_hash=snapshot.dynamics_hash,
        sha256=snapshot.sha256,
        trained_world_id=snapshot.trained_world_id,
        trained_episode=snapshot.trained_episode,
        metric_names=list(snapshot.metrics),
        metric_values=[float(value) for value in snapshot.metrics.values()],
        weights=octets(snapshot.weights),
    )


def snapshot_from_msg(msg: ModelUpdate) -> Snapshot:
    """An update as a snapshot; `snapshot.check` says whether it can be used."""
    return Snapshot(
        model_id=msg.model_id,
        run_id=msg.run_id,
        version=msg.version,
        architecture=msg.architecture,
        dynamics_hash=msg.dynamics_hash,
        sha256=msg.sha256,
        trained_world_id=msg.trained_world_id,
        trained_episode=msg.trained_episode,
        metrics=dict(zip(msg.metric_names, msg.metric_values, strict=False)),
        weights=bytes(msg.weights),
    )
