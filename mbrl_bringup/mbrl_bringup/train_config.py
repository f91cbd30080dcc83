"""The arguments of `mbrl train`; apart from what they do, which loads torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mbrl_dynamics.config import Field, config


@config
class TrainConfig:
    """The arguments of `mbrl train`."""

    agent: Annotated[str, Field(description="what learns: an installed agent, or package.module:Class")] = (
        "mbpo"
    )
    task: Annotated[str, Field(description="what to learn: an installed task, or package.module:Class")] = (
        "cartpole_swingup"
    )
    model: Annotated[
        str, Field(description="dynamics model of agents that learn with one; empty = the agent's choice")
    ] = ""
    reward: Annotated[
        Literal["auto", "known", "learned"],
        Field(description="whether the model is told the task's reward; auto = where the task knows it"),
    ] = "auto"
    frames: Annotated[int, Field(ge=1, description="frames of experience in all [1]")] = 50_000
    action_repeat: Annotated[
        int, Field(ge=0, description="frames a decision lasts; 0 = as the task says [1]")
    ] = 0
    seed: Annotated[int, Field(ge=0, description="of the worlds, the weights and all random numbers")] = 0
    worlds: Annotated[
        int, Field(ge=1, description="worlds at once, each in a process of its own if more than one [1]")
    ] = 1
    image_size: Annotated[int, Field(ge=0, description="height and width of images; 0 = none [px]")] = 0
    device: Annotated[str, Field(description="where the agent learns: cpu, cuda, cuda:1 ...")] = "cpu"
    threads: Annotated[int, Field(ge=1, description="CPU threads of the learning [1]")] = 1
    eval_every: Annotated[int, Field(ge=1, description="frames between two evaluations [1]")] = 5000
    eval_episodes: Annotated[int, Field(ge=1, description="episodes of an evaluation [1]")] = 10
    fit_every: Annotated[
        int, Field(ge=0, description="steps between two fits of the model; 0 = after each episode [steps]")
    ] = 0
    fit_steps: Annotated[int, Field(ge=1, description="gradient steps of such a fit at most [1]")] = 1500
    offline: Annotated[
        str, Field(description="learn from this dataset's folder alone, without acting; empty = by acting")
    ] = ""
    updates: Annotated[int, Field(ge=1, description="gradient steps when learning offline [1]")] = 20_000
    params_file: Annotated[
        str, Field(description="ROS parameters file (YAML) on top of the task's own; empty = none")
    ] = ""


def settings_given(settings: TrainConfig, parameters: Mapping[str, str]) -> dict[str, Any]:
    """What makes a training another one: arguments that are not the defaults, and the parameters."""
    known = ("agent", "task", "seed")  # every result tells these by themselves
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in known]
    values = {name: getattr(settings, name) for name in names}
    return {**{n: v for n, v in values.items() if v != getattr(TrainConfig, n)}, **parameters}


@config
class TrainOptions:
    """How `mbrl train` runs, beside what it trains."""

    runs: Annotated[str, Field(description="folder in which each run makes its own")] = "runs"
    resume: Annotated[
        str, Field(description="folder of a run that goes on; its arguments need not be repeated")
    ] = ""
    seeds: Annotated[
        str, Field(pattern=r"^(\d+(,\d+)*)?$", description="train several seeds, for example 0,1,2")
    ] = ""
    jobs: Annotated[int, Field(ge=1, description="seeds trained at the same time [1]")] = 1
    video: Annotated[bool, Field(description="whether to film an episode for the report")] = True
    out: Annotated[str, Field(description="file for the results of all seeds (JSON); empty = none")] = ""
