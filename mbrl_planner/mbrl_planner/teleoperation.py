"""A person at a joystick as what decides, in the place of a planner or a policy. No ROS."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Spec


class Teleoperation:
    """Turns axes of a joystick into actions; see Decider in controller.py.

    It is `ready` while somebody holds the button and the joystick is heard, so that a controller does as its
    `no_model` says otherwise.

    Args:
        spec: of the world.
        axes: for each element of the action, which axis moves it; counted from 0.
        gains: of each, on the scaled action: 1 = the whole range; negative = the other way round.
        button: that must be held; negative = none.
        silence: after so long without a message nobody is there [s].

    Raises:
        UserError: actions are discrete, or there is not one axis and one gain for each.
    """

    def __init__(
        self, spec: Spec, axes: Sequence[int], gains: Sequence[float], button: int, silence: float
    ) -> None:
        if spec.discrete:
            raise UserError(f"the actions of task '{spec.task}' are discrete: a joystick cannot choose them")
        for name, values in (("axes", axes), ("gains", gains)):
            if len(values) != spec.action_dim:
                names = ", ".join(element.name for element in spec.action)
                raise UserError(
                    f"parameter '{name}' has {len(values)} values, "
                    f"but the action has {spec.action_dim}: {names}"
                )
        self.axes, self.button, self.silence = list(axes), button, silence
        self._gains = torch.tensor(list(gains), dtype=torch.float32)
        self._action: Tensor | None = None  # [A]; None = the button is up
        self._heard_at = 0.0
        self.fault = ""  # why the joystick cannot be used, in one sentence

    @property
    def ready(self) -> bool:
        """Whether a person acts."""
        return self._action is not None and time.monotonic() - self._heard_at < self.silence

    def hear(self, axes: Sequence[float], buttons: Sequence[int]) -> None:
        """What the joystick says: axes from -1 to 1, buttons 0 or 1."""
        self._action, self.fault = None, ""
        if max(self.axes) >= len(axes) or self.button >= len(buttons):
            self.fault = (
                f"the joystick has {len(axes)} axes and {len(buttons)} buttons, "
                f"but axis {max(self.axes)} and button {self.button} are wanted"
            )
            return
        moved = torch.tensor([axes[axis] for axis in self.axes], dtype=torch.float32)
        if not moved.isfinite().all():
            self.fault = "the joystick says what is not finite"
        elif self.button < 0 or buttons[self.button]:
            self._action = (moved * self._gains).clamp(-1.0, 1.0)
            self._heard_at = time.monotonic()

    def seed(self, seed: int) -> None:
        """People have none."""

    def observe(
        self,
        obs: dict[str, Tensor],
        carry: Any,
        *,
        first: Tensor,
        prev_action: Tensor | None,
        steps: int = 1,
    ) -> Any:
        """The person sees for themselves."""
        return ()

    def choose(
        self, carry: Any, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Any]:
        """What the joystick says, as a plan of one step [1, 1, A]."""
        assert self._action is not None
        return self._action[None, None], carry
