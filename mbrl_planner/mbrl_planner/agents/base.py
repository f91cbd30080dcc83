"""What agents that learn a policy share: action spaces, the replay ratio, optimisers, random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.device import choose
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.spec import CONTINUOUS, DISCRETE, Spec
from mbrl_dynamics.training_state import load_optimizer, optimizer_tensors
from mbrl_dynamics.types import Metrics, Trajectory

Observation = Mapping[str, Tensor]


@config
class PolicyConfig:
    """What every agent that learns a policy has."""

    random_steps: Annotated[
        int, Field(ge=1, description="steps of random actions before learning begins [steps]")
    ] = 1000
    replay_ratio: Annotated[
        float, Field(gt=0, description="gradient steps a step of experience, the first ones included [1]")
    ] = 1.0


class PolicyAgent(nn.Module):
    """An Agent (see interfaces.py) that learns a policy; a subclass writes `observe`, `choose`, `learn`.

    Actions are scaled to [-1, 1], or one-hot. Experience comes as a ReplayBuffer that others fill.

    A subclass sets `Config`, `kinds` (of action that fit), `model` and `make_optimizers`.

    Args:
        spec: the interface between the world and the agent.
        config: of the class in `Config`.
        seed: of weights and all random numbers.
        device: "cpu", "cuda", ...

    Raises:
        UserError: the action space does not fit, or there is no such device.
    """

    Config: type = PolicyConfig
    kinds: ClassVar[tuple[str, ...]] = (CONTINUOUS,)
    model: ClassVar[str] = ""  # kind of dynamics model that `update` must be given; empty = none

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__()
        kind = DISCRETE if spec.discrete else CONTINUOUS
        if kind not in self.kinds:
            raise UserError(
                f"agent '{type(self).__name__.lower()}' needs {' or '.join(self.kinds)} actions, "
                f"but those of task '{spec.task}' are {kind}"
            )
        self.spec, self.config = spec, config or self.Config()
        self.device = choose(device)
        self.updates = 0  # gradient steps made
        self.generator = torch.Generator(self.device).manual_seed(seed)  # of learning
        self.noise = torch.Generator(self.device).manual_seed(seed + 1)  # of acting
        torch.manual_seed(seed)  # of the weights that the subclass is about to draw

    # Acting -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether it has learned anything; until then the caller acts at random."""
        return self.updates > 0

    def seed(self, seed: int) -> None:
        """Begin the random numbers of acting anew."""
        self.noise.manual_seed(seed)

    def observe(
        self, obs: Observation, carry: Any, *, first: Tensor, prev_action: Tensor | None, steps: int = 1
    ) -> Any:
        """Take in a State; returns the new memory. A policy without memory only keeps the observation.

        Args:
            obs: name -> [B, ...], SI.
            carry: memory; None = begin.
            first: [B] bool, an episode begins with this observation.
            prev_action: [B, A] executed to get here, scaled; None at the beginning.
            steps: control steps since the State before; more than one where States were lost.
        """
        return obs

    def choose(
        self, carry: Any, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Any]:
        """Decide on the State observed last: actions [B, H, A] (H = 1 for a policy) and the new memory.

        Args:
            carry: from `observe`.
            pending: [B, d, A] actions under way that take effect before this one does; None = none.
            explore: whether to draw from the policy rather than take its mode.
        """
        raise NotImplementedError

    @torch.no_grad()
    def act(
        self, obs: Observation, carry: Any, *, first: Tensor, prev_action: Tensor | None, explore: bool
    ) -> tuple[Tensor, Any]:
        """`observe`, then `choose` (see Agent)."""
        return self.choose(self.observe(obs, carry, first=first, prev_action=prev_action), explore=explore)

    # Learning -----------------------------------------------------------------------------------------------

    def check_learning(self) -> None:
        """Look whether there is all that it takes to learn; one that only acts is not asked.

        Raises:
            UserError: there is not, in one sentence.
        """

    def update(
        self, buffer: ReplayBuffer, model: Model | None = None, *, env_steps: int, limit: int = 1_000_000
    ) -> Metrics:
        """Make the gradient steps that are owed for `env_steps` steps of experience in all.

        Args:
            buffer: the experience so far.
            model: predicts, with rewards; for agents that name a kind in `model`.
            env_steps: steps of experience since the very beginning.
            limit: make no more gradient steps than this in one call.

        Returns:
            Means over the gradient steps; empty if none was owed, or there is no model yet.
        """
        count = min(self.owed(env_steps), limit)
        if count <= 0 or (self.model and model is None):
            return {}
        return self.advance(buffer, model, count)

    def advance(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps, owed or not (as when learning offline), and count them."""
        metrics = self.learn(buffer, model, count)
        self.updates += count
        return metrics

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` gradient steps."""
        raise NotImplementedError

    def owed(self, env_steps: int) -> int:
        """Gradient steps that are still to be made; the first ones come as a burst after the random steps."""
        if env_steps < self.config.random_steps:
            return 0
        return int(self.config.replay_ratio * env_steps) - self.updates

    def slices(self, buffer: ReplayBuffer, count: int, length: int) -> Trajectory:
        """Random slices, on the device, in which every step is about as likely as any other."""
        steps = torch.randint(len(buffer), (count,), generator=self.generator, device=self.device)
        shift = torch.randint(length, (count,), generator=self.generator, device=self.device)
        later = buffer.later(steps.cpu().numpy(), shift.cpu().numpy())
        return buffer.slices(later, length).to(self.device)

    @cached_property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name, made when they are first needed: an agent that only acts needs none, and PyTorch takes two
        seconds over the first one of a process.
        """
        return self.make_optimizers()

    def compile_update(self) -> None:
        """Let PyTorch compile what a gradient step computes. Called before learning on CUDA."""

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All optimisers, by name."""
        return {}

    # Keeping ------------------------------------------------------------------------------------------------

    def acting_state(self) -> dict[str, Tensor]:
        """What acting needs of `state_dict`, to hand to another process; by default all of it."""
        return self.state_dict()

    def load_acting_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `acting_state`; `updates` is set apart (it makes the agent `ready`)."""
        self.load_state_dict(state, strict=False)

    def training_state(self) -> dict[str, Tensor]:
        """What learning needs beside the weights: optimisers, random numbers, counters."""
        state = {
            "generator": self.generator.get_state(),
            "noise": self.noise.get_state(),
            "updates": torch.tensor(self.updates),
        }
        for name, optimizer in self.optimizers.items():
            state |= optimizer_tensors(optimizer, name)
        return state

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        self.updates = int(state["updates"])
        for name, generator in (("generator", self.generator), ("noise", self.noise)):
            if state[name].shape == generator.get_state().shape:
                generator.set_state(state[name])
            else:  # of another kind of device, whose numbers are others anyway
                generator.manual_seed(self.updates)
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state, name)
