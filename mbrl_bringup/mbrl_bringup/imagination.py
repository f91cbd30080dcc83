"""What the model of an agent imagines, from several moments of an episode on, against what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_bringup.evidence import HORIZON, Forecast
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition

PARTICLES = 16  # draws of a model that is uncertain


@dataclass(frozen=True)
class Strip:
    """Images of one camera, what happened and what was imagined; frames of [height, width, 3] uint8.

    Attributes:
        camera: name.
        start: where in the episode it begins [steps].
        times: [K] of the frames, from the beginning of the strip [steps].
        happened: [K] frames.
        imagined: [K] frames; the first one is what the model made of what it saw.
    """

    camera: str
    start: int
    times: Sequence[int]
    happened: Sequence[NDArray[np.uint8]]
    imagined: Sequence[NDArray[np.uint8]]


@torch.no_grad()
def forecasts(
    model: Any, spec: Spec, states: Sequence[Transition], horizon: int = HORIZON
) -> tuple[Forecast, ...]:
    """Open-loop predictions from every `horizon`-th State on, with the actions that were executed.

    Until then the model sees all that happened, so that one with a memory knows where it is.

    Args:
        model: a Model that decodes observations.
        spec: of its world.
        states: [T+1] of one episode.
    """
    found = []
    actions = _actions(spec, states)
    for start, state in enumerate(_filtered(model, spec, states[:-1], actions)):
        if start % horizon:
            continue
        rows = actions[start : start + horizon]
        noise = torch.Generator().manual_seed(start) if model.capabilities.recurrent else None
        particles = PARTICLES if noise is not None else None
        rollout = model.imagine(state, rows[None, None], particles=particles, noise=noise, keep=("obs",))
        drawn = rollout.obs[0, 0].double().numpy()  # [P, H+1, D]
        found.append(Forecast(start, drawn.mean(axis=0), drawn.std(axis=0)))
    return tuple(found)


@torch.no_grad()
def strip(
    model: Any, spec: Spec, states: Sequence[Transition], start: int = 10, every: int = 4, count: int = 9
) -> list[Strip]:
    """Images that the model imagines from a State on, one strip a camera; none if it imagines no images."""
    actions = _actions(spec, states)
    start = max(0, min(start, len(actions) - every * (count - 1)))
    *_, state = _filtered(model, spec, states[: start + 1], actions)
    imagined = [_images(model, state)]
    for action in actions[start : start + every * (count - 1)]:
        state = model.step(state, action[None]).state
        imagined.append(_images(model, state))
    times = range(0, len(imagined), every)
    return [
        Strip(
            name,
            start,
            times,
            [states[start + t].images[name] for t in times],
            [imagined[t][name] for t in times],
        )
        for name in imagined[0]
    ]


def _images(model: Any, state: Any) -> dict[str, NDArray[np.uint8]]:
    decode = getattr(model, "images", None)
    return {} if decode is None else {name: image[0].numpy() for name, image in decode(state).items()}


def _actions(spec: Spec, states: Sequence[Transition]) -> Tensor:
    """The executed actions [T, A], scaled."""
    return torch.from_numpy(spec.scale_action(np.stack([state.action for state in states[1:]]))).float()


def _filtered(model: Any, spec: Spec, states: Sequence[Transition], actions: Tensor) -> Any:
    """The model's state after each State of an episode."""
    memory = None
    for t, seen in enumerate(states):
        obs = {"vector": torch.from_numpy(seen.observation).float()[None]}
        obs |= {c.name: torch.from_numpy(seen.images[c.name])[None] for c in spec.cameras}
        action = actions[t - 1][None] if t else None
        memory = model.observe(memory, action, obs, torch.tensor([not t]))
        yield memory
