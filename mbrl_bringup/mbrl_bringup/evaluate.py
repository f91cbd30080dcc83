"""`mbrl evaluate`: how far a model can be trusted, on recorded data that it has not seen."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl_bringup.evaluate_config import EvaluateConfig
from mbrl_bringup.evidence import MODEL
from mbrl_bringup.measures import measure
from mbrl_bringup.result import atomic_write, command_line, commit_id, machine_name
from mbrl_bringup.trust_section import RESULT, insert, show
from mbrl_dynamics import plugins, snapshot
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.episodes import files, newest_spec, read
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.forecasts import Recorded
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.with_task import WithTask, knows_reward
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agent_trainer import DATASET, check_dataset

EVERY = 5  # of a fit anew: the newest episode and every fifth before it are not trained on


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Attributes:
        name: what it is, for people.
        model: with rewards, where they can be had.
        unseen: [N] steps that it was not trained on.
        whole: [N] those of them whose whole episodes it was not trained on.
        notes: sentences about it.
    """

    name: str
    model: Any
    unseen: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def run_evaluate(path: str, options: EvaluateConfig) -> int:
    """Evaluate, print the tables, write evaluation.json, a picture and the report's section; the exit code.

    Raises:
        UserError: there are no data, or the model does not fit them; nothing has been written.
    """
    from mbrl_bringup.trust_picture import draw  # matplotlib takes a while to load

    torch.set_num_threads(1)
    folder = Path(path)
    out = Path(options.out) if options.out else folder
    dataset = dataset_of(folder)
    data = recorded(dataset)
    subject = (stored if _is_stored(folder, options) else fitted)(folder, dataset, data, options)
    found = {
        "model": subject.name,
        **measure(subject.model, data, subject.unseen, subject.whole, options),
        "commit": commit_id(),
        "machine": machine_name(),
        "command": command_line(sys.argv[1:]),
    }
    found["notes"] = [*subject.notes, *found["notes"]]
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / RESULT, json.dumps(plain(found), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"nothing can be written to '{out}': {error.strerror}") from None
    draw(out)
    insert(out)
    show(out)
    return 0


# Data -------------------------------------------------------------------------------------------------------


def dataset_of(folder: Path) -> Path:
    """The dataset's folder: the run's, or the folder itself.

    Raises:
        UserError: there is none.
    """
    dataset = folder / DATASET if (folder / DATASET).is_dir() else folder
    if not dataset.is_dir() or not files(dataset):
        raise UserError(
            f"'{folder}' is neither a dataset nor the folder of a run: it holds no recording (.mcap)"
        )
    return dataset


def recorded(dataset: Path) -> Recorded:
    """What a dataset's folder holds.

    Raises:
        UserError: no steps, steps of several dynamics, or observations that are numbers of cells.
    """
    spec = newest_spec(dataset)
    data = None if spec is None else Recorded(spec)
    if spec is not None and data is not None:
        for state in _states(dataset, spec):
            data.add(state)
    if spec is None or data is None or not len(data):
        raise UserError(f"the dataset '{dataset}' holds no steps to evaluate a model on")
    if any(element.count for element in spec.observation):
        raise UserError(
            f"the observations of task '{spec.task}' are numbers of cells, between which there is no "
            "distance: compare tables with mbrl_dynamics.bounds"
        )
    return data


def _states(dataset: Path, spec: Spec) -> Iterator[Transition]:
    for record in read(dataset, ("state", "spec")):
        if isinstance(record, Spec):
            check_dataset(dataset, record, spec)
        if isinstance(record, Transition) and not record.fault(spec):
            yield record


# Models -----------------------------------------------------------------------------------------------------


def _is_stored(folder: Path, options: EvaluateConfig) -> bool:
    if options.model:
        return options.model.endswith(".safetensors")
    if not (folder / MODEL).is_file():
        raise UserError(f"'{folder}' holds no {MODEL}: name a model to be fitted, as in --model ensemble")
    return True


def stored(folder: Path, dataset: Path, data: Recorded, options: EvaluateConfig) -> Subject:
    """The model of a file.

    Unseen are the transitions that no fit sees, and the episodes that are newer than its training.

    Raises:
        UserError: there is none, it is damaged, for other dynamics, or does not foretell observations.
    """
    path, spec = Path(options.model) if options.model else folder / MODEL, data.buffer.spec
    if not path.is_file():
        raise UserError(f"there is no model '{path}'")
    try:
        found = snapshot.unpack(path.read_bytes())
        if found.dynamics_hash != spec.dynamics_hash:
            raise UserError(
                f"the model in '{path}' is for dynamics hash {found.dynamics_hash[:12]}, but the data in "
                f"'{dataset}' are of {spec.dynamics_hash[:12]}, {spec.observation_dim} observations and "
                f"{spec.action_dim} actions"
            )
        model = snapshot.restore(found, spec)
    except ValueError as error:
        raise UserError(f"the model in '{path}' cannot be used: {error}") from None
    _check(model, found.model_id)
    usable, notes = with_rewards(model, spec)
    whole = np.zeros(len(data), np.bool_)
    if found.trained_world_id:
        whole = data.after(bytes.fromhex(found.trained_world_id), found.trained_episode)
    if not whole.any():
        notes += (
            "The model was trained on every episode. The first step of each forecast was held out, but most "
            "of those after it were not: errors further on are too small.",
        )
    return Subject(f"{found.model_id} of '{path}'", usable, whole | data.held_out(), whole, notes)


def fitted(folder: Path, dataset: Path, data: Recorded, options: EvaluateConfig) -> Subject:
    """A new model of a kind, fitted to all but the newest episode and every fifth before it.

    Raises:
        UserError: there is no such kind, there is one episode only, or it does not foretell observations.
    """
    kind, spec, episodes = plugins.find("models", options.model), data.buffer.spec, data.episodes
    number = int(episodes.max()) + 1
    if number < 2:
        raise UserError(
            f"the dataset '{dataset}' holds one episode: a model is fitted to some, and judged on others"
        )
    judged = np.arange(number)[::-1][::EVERY]
    unseen = np.isin(episodes, judged)
    model = kind(spec, kind.Config(), seed=options.seed)
    _check(model, options.model)
    keys = data.keys_of(judged)
    buffer = ReplayBuffer(spec)
    for state in _states(dataset, spec):
        if (state.world_id, state.episode) not in keys:
            buffer.add(state)
    model.fit(buffer, Budget(options.fit_steps))
    usable, notes = with_rewards(model, spec)
    name = f"{options.model} fitted to {len(buffer)} steps of {number - len(judged)} episodes"
    return Subject(f"{name}, seed {options.seed}", usable, unseen, unseen, notes)


def _check(model: Any, name: str) -> None:
    if not model.capabilities.decodes:
        raise UserError(f"model '{name}' does not foretell observations, so that there is nothing to compare")


def with_rewards(model: Any, spec: Spec) -> tuple[Any, tuple[str, ...]]:
    """The model with rewards, its own or those that the task tells; and why it has none, in a sentence."""
    if model.capabilities.rewards:
        return model, ()
    try:
        task = plugins.make_task(spec.task)
        if not knows_reward(task):
            return model, (
                f"Only the world knows the rewards of task '{spec.task}'; returns are not judged.",
            )
        frame = getattr(task, "frame", spec.control_period)
        return WithTask(model, plugins.make_task(spec.task, round(spec.control_period / frame))), ()
    except (UserError, ValueError) as error:
        return model, (f"Returns are not judged: {error}.",)


def plain(value: Any) -> Any:
    """A value as JSON has it: six digits, null for what is not finite."""
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(x) for x in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
