"""What was seen of somebody who knows how: demonstrations as pairs of observations, without actions."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.episodes import newest_spec, read
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition


def demonstrated(folder: Path, spec: Spec) -> Tensor:
    """Observations of a dataset's folder and those that followed them [M, 2, D], SI, in the order of a world.

    What was done there, and by what actuators, does not matter; what is seen must be what the world shows.

    Raises:
        UserError: there is nothing, or something else is seen in it, or at another rate.
    """
    recorded = newest_spec(folder) if folder.is_dir() else None
    if recorded is None:
        raise UserError(f"parameter 'demonstrations' names '{folder}', which holds no episodes")
    theirs, ours = ([_meaning(element) for element in s.observation] for s in (recorded, spec))
    if theirs != ours:
        raise UserError(
            f"the demonstrations in '{folder}' show ({', '.join(theirs)}), but task '{spec.task}' shows "
            f"({', '.join(ours)}): record them with the same observation"
        )
    if abs(recorded.control_period / spec.control_period - 1.0) > 1e-6:
        raise UserError(
            f"the demonstrations in '{folder}' were recorded every {recorded.control_period} s, but task "
            f"'{spec.task}' acts every {spec.control_period} s: record them at the same rate"
        )
    seen = ReplayBuffer(recorded)
    for record in read(folder, ("state",)):
        if isinstance(record, Transition) and not record.fault(recorded):
            seen.add(record)
    if not len(seen):
        raise UserError(f"parameter 'demonstrations' names '{folder}', which holds no episodes")
    return seen.all().obs["vector"]


def _meaning(element: Element) -> str:
    """What an element of an observation is, in words; limits are for scaling only."""
    encoding = "" if element.encoding == "identity" else f"{element.encoding} of "
    return f"{encoding}{element.name} [{element.unit}]"
