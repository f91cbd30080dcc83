"""An evaluation episode of a trained agent, played again from its checkpoint, and filmed."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mbrl_bringup.evaluation import FIRST_SEED, Driver
from mbrl_bringup.train_config import TrainConfig
from mbrl_bringup.train_setup import configurations
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agent_trainer import CHECKPOINT, load
from mbrl_planner.agents.base import PolicyAgent
from mbrl_sim.worlds import Worlds

MEMORY = "train.yaml"  # with what a training began
FILM_SIZE = 256  # height and width [px]
MAX_FPS = 60.0


@dataclass(frozen=True)
class Playback:
    """One episode with the deterministic policy.

    Attributes:
        agent: that played it.
        spec: of the agent; with cameras only if it sees images.
        states: [T+1], the first one included.
        frames: [T+1] uint8 images; none if nothing can be drawn.
        why_no_film: one sentence; empty = it was filmed.
    """

    agent: PolicyAgent
    spec: Spec
    states: Sequence[Transition]
    frames: Sequence[NDArray[np.uint8]]
    why_no_film: str = ""

    @property
    def ret(self) -> float:
        """Return of the episode."""
        return sum(state.reward for state in self.states[1:])


def remembered(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments and parameters that a training began with.

    Raises:
        UserError: the folder is not that of a training.
    """
    try:
        content = yaml.safe_load((folder / MEMORY).read_text())
        return dict(content["arguments"]), dict(content["parameters"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise UserError(f"'{folder}' is not the folder of a training: it holds no sound {MEMORY}") from None


def play(folder: Path, *, film: bool = True) -> Playback:
    """Play the first evaluation episode with the agent of a training's checkpoint, on the CPU.

    Raises:
        UserError: there is no checkpoint, or it does not fit.
    """
    arguments, parameters = remembered(folder)
    settings = build(TrainConfig, arguments)
    why = ""
    if film:
        try:
            return _play(folder, settings, parameters, settings.image_size or FILM_SIZE)
        except UserError as error:  # nothing can be drawn here, or it is the agent's fault: then it is below
            why = str(error)
    return dataclasses.replace(_play(folder, settings, parameters, settings.image_size), why_no_film=why)


def _play(folder: Path, settings: TrainConfig, parameters: Mapping[str, str], image_size: int) -> Playback:
    agent_class, agent_config, *_ = configurations(settings, parameters)
    options: dict[str, Any] = {"action_repeat": settings.action_repeat, "image_size": image_size}
    # Drawing happens in a process of its own: a graphics driver that crashes takes nothing with it.
    with Worlds(settings.task, seed=settings.seed, processes=bool(image_size), **options) as worlds:
        spec = worlds.spec if settings.image_size else dataclasses.replace(worlds.spec, cameras=())
        agent = agent_class(spec, agent_config, seed=settings.seed)
        if load(folder / CHECKPOINT, agent, settings.agent, learn=False) is None:
            raise UserError("there is no checkpoint yet")
        driver = Driver(agent, spec, 1)
        states = worlds.reset_all([FIRST_SEED])
        while not states[-1].last:
            states += worlds.step(driver.decide(states[-1:], explore=False))
    frames = [next(iter(state.images.values())) for state in states if state.images]
    if not settings.image_size:
        states = [dataclasses.replace(state, images={}) for state in states]
    return Playback(agent, spec, states, frames)


def write_film(playback: Playback, out: Path) -> str:
    """Write a VP9 video; returns why there is none, in one sentence, empty if there is one."""
    import cv2

    if not playback.frames:
        return playback.why_no_film or "it was not filmed"
    period = playback.spec.control_period
    stride = max(1, round(1.0 / (period * MAX_FPS)))
    height, width = playback.frames[0].shape[:2]
    scale = max(1, FILM_SIZE // height)
    size = (width * scale, height * scale)
    with _silenced():  # OpenCV finds fault with a tag that WebM does not even store
        code = cv2.VideoWriter.fourcc(*"VP90")
        writer = cv2.VideoWriter(str(out), code, 1.0 / (period * stride), size)
    try:
        if not writer.isOpened():
            return "this build of OpenCV cannot write VP9 video"
        for frame in playback.frames[::stride]:
            large = cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST)
            writer.write(cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()
    return ""


@contextmanager
def _silenced() -> Iterator[None]:
    """Nothing that is written to standard error from here to the end of the block is seen."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
