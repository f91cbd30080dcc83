"""What the folder of a run tells about its last episode: what happened, and what the model foretold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbrl_bringup.result import Result
from mbrl_dynamics.episodes import read
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition

MODEL = "model.safetensors"  # the model that planned the last episode
HORIZON = 25  # of the forecasts in a report [steps]


@dataclass(frozen=True)
class Forecast:
    """What a model foretold from one State on, the actions given. H horizon, D observation.

    Attributes:
        start: where in the episode it begins [steps].
        mean: [H+1, D] mean over the members, SI.
        spread: [H+1, D] standard deviation over the members, SI.
    """

    start: int
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """The last episode of a run. T States, D observation elements.

    Attributes:
        spec: None = nothing was recorded.
        observations: [T, D], SI.
        forecasts: what the model foretells from several of its States on.
        notes: sentences about what is missing.
    """

    spec: Spec | None = None
    observations: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    forecasts: tuple[Forecast, ...] = ()
    notes: tuple[str, ...] = ()


def gather(folder: Path, result: Result) -> Evidence:
    """Read a run's dataset and checkpoint."""
    try:
        spec, episode = last_episode(read(folder / "dataset", topics=("state", "spec")))
    except UserError as error:
        return Evidence(notes=(f"The dataset cannot be read: {error}.",))
    if spec is None or len(episode) < 2:
        return Evidence(notes=("No episode was recorded.",))
    observations = np.stack([state.observation for state in episode])
    actions = np.stack([state.action for state in episode[1:]])
    try:
        model = load_model(folder / MODEL, spec)
    except (OSError, ValueError) as error:
        return Evidence(spec, observations, notes=(f"There is no forecast: {error}.",))
    return Evidence(spec, observations, forecast(model, spec, observations, actions))


def load_model(path: Path, spec: Spec) -> Any:
    """The model of a file that repeats a ModelUpdate's weights.

    Raises:
        ValueError: there is none, or it is not for this spec.
    """
    from mbrl_dynamics.snapshot import Snapshot, from_bytes, restore  # loads torch

    if not path.is_file():
        raise ValueError("no episode was planned with a model yet")
    data = path.read_bytes()
    _, manifest = from_bytes(data)
    return restore(Snapshot(**manifest, sha256=hashlib.sha256(data).hexdigest(), weights=data), spec)


def last_episode(records: Iterable[Any]) -> tuple[Spec | None, list[Transition]]:
    """The last unbroken run of at least two States, with the spec of its world."""
    spec: Spec | None = None
    newest: Spec | None = None
    last: list[Transition] = []
    current: list[Transition] = []
    for record in records:
        if isinstance(record, Spec):
            newest = record
        if not isinstance(record, Transition):
            continue
        if current and record.key == current[-1].key:
            continue  # a repeated State
        if not record.follows(current[-1] if current else None):
            current = []
        current.append(record)
        if len(current) > 1:
            spec, last = newest, current
    return spec, last


def forecast(
    model: Any,
    spec: Spec,
    observations: NDArray[np.float64],
    actions: NDArray[np.float64],
    horizon: int = HORIZON,
) -> tuple[Forecast, ...]:
    """Open-loop predictions from every `horizon`-th State on, with the actions that were executed.

    Args:
        model: a Model that decodes observations.
        observations: [T, D], SI.
        actions: [T-1, A], SI; row t led from observation t to t+1.
    """
    import torch

    scaled = spec.scale_action(actions)
    forecasts = []
    for start in range(0, len(actions), horizon):
        rows = torch.as_tensor(scaled[start : start + horizon], dtype=torch.float32)
        seen = torch.as_tensor(observations[start], dtype=torch.float32)
        with torch.no_grad():
            state = model.observe(None, None, {"vector": seen[None]})
            rollout = model.imagine(state, rows[None, None], keep=("obs",))
        particles = rollout.obs[0, 0].double().numpy()  # [P, H+1, D]
        forecasts.append(Forecast(start, particles.mean(axis=0), particles.std(axis=0)))
    return tuple(forecasts)
