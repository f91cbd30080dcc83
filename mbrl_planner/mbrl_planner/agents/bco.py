"""Imitation of what was seen, without being told what was done: behavioural cloning from observation, BCO(α)
(Torabi et al., 2018, https://arxiv.org/abs/1805.01954, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget, Model
from mbrl_dynamics.models.inverse import Inverse, InverseConfig
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.spec import CONTINUOUS, DISCRETE, Spec
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.actors import Actor
from mbrl_planner.agents.base import Observation, PolicyAgent, PolicyConfig
from mbrl_planner.agents.networks import adam, descend
from mbrl_planner.demonstrations import demonstrated


@config
class BCOConfig(PolicyConfig):
    """Configuration of BCO."""

    demonstrations: Annotated[
        str,
        Field(description="folder of a dataset that shows what is to be imitated; its actions do not count"),
    ] = ""
    alpha: Annotated[
        float,
        Field(
            ge=0,
            description="steps between two fits of the inverse model, in `random_steps`; 0 = one fit [1]",
        ),
    ] = 1.0
    fit_steps: Annotated[int, Field(ge=1, description="gradient steps of such a fit at most [1]")] = 1500
    hidden: Annotated[tuple[int, ...], Field(min_length=1, description="units of each hidden layer [1]")] = (
        128,
        128,
    )
    batch_size: Annotated[int, Field(ge=1, description="demonstrated steps a gradient step [1]")] = 128
    learning_rate: Annotated[float, Field(gt=0, description="Adam's step size of the policy [1]")] = 1e-3


class BCO(PolicyAgent):
    """Infers the actions of demonstrations by an inverse model of its own experience, and clones a policy.

    The demonstrations may be anybody's who is seen as the robot sees itself: a person who moves it by hand,
    another controller, the same robot with other motors. At first the inverse model knows random steps; what
    the policy does then brings it to where the demonstrations are, and it is fitted again (α). No reward is
    looked at.

    Args:
        spec: the interface between the world and the agent.
        config: see BCOConfig.
        seed: of weights and all random numbers.
        device: "cpu", "cuda", ...
        shown: [M, 2, D] demonstrated observations and those that followed them, SI; None = those of the
            folder that the configuration names.

    Raises:
        UserError: the folder holds no demonstrations, or they are not seen as this world is.
    """

    Config = BCOConfig
    kinds = (CONTINUOUS, DISCRETE)

    def __init__(
        self,
        spec: Spec,
        config: Any = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        shown: Tensor | None = None,
    ) -> None:
        super().__init__(spec, config, seed=seed, device=device)
        c = self.config
        self.normalizer = Normalizer(spec.observation_dim)
        self.policy = Actor(spec.observation_dim, spec.inner_action_dim, c.hidden, discrete=spec.discrete)
        self.inverse = Inverse(spec, InverseConfig(hidden=c.hidden), seed=seed)
        self.to(self.device)
        if shown is None and c.demonstrations:
            shown = demonstrated(Path(c.demonstrations).expanduser(), spec)
        self._shown = None if shown is None else shown.float().to(self.device)
        if self._shown is not None:
            self.normalizer.measure(self._shown[:, 0])
        self._inferred: Tensor | None = None  # [M, A] actions of the demonstrations
        self._fitted = 0  # steps that the inverse model was fitted to

    # Acting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(
        self, carry: Observation, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Observation]:
        """The policy's mode, or a draw from it, [B, 1, A]."""
        belief = self.policy(self.normalizer(carry["vector"].to(self.device)))
        action = belief.sample(self.noise) if explore else belief.mode()
        return action.clamp(-1.0, 1.0).unsqueeze(1), carry

    def acting_state(self) -> dict[str, Tensor]:
        """Policy and normaliser."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(("policy.", "normalizer."))}

    # Learning -----------------------------------------------------------------------------------------------

    def check_learning(self) -> None:
        """Look whether there is anything to imitate.

        Raises:
            UserError: there is not.
        """
        if self._shown is None:
            raise UserError(
                "agent 'bco' has nothing to imitate: name the folder of a dataset by its parameter "
                "'demonstrations'"
            )

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The policy's; the inverse model has its own."""
        return {"policy": adam(self.policy, self.config.learning_rate)}

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Infer the actions, if that is due, and make `count` gradient steps of the cloning.

        Raises:
            UserError: there is no experience to learn an inverse model from, or nothing to imitate.
        """
        self.check_learning()
        assert self._shown is not None
        metrics: Metrics = {}
        if self.due(len(buffer)):
            metrics = self.fit(buffer)
        if self._inferred is None:
            self._inferred = self.infer(self._shown)
        total = torch.zeros((), device=self.device)
        size = (min(self.config.batch_size, len(self._shown)),)
        for _ in range(count):
            index = torch.randint(len(self._shown), size, generator=self.generator, device=self.device)
            belief = self.policy(self.normalizer(self._shown[index, 0]))
            loss = -belief.log_prob(self._inferred[index]).mean()
            descend(loss, self.optimizers["policy"])
            total += loss.detach()
        return {**metrics, "clone_loss": float(total) / count}

    def due(self, steps: int) -> bool:
        """Whether the inverse model is to be fitted to so many steps of experience."""
        again = self.config.alpha * self.config.random_steps
        return not self._fitted or (again > 0 and steps >= self._fitted + again)

    def fit(self, buffer: ReplayBuffer) -> Metrics:
        """Fit the inverse model to the robot's own experience.

        Raises:
            UserError: there is none.
        """
        if not len(buffer):
            raise UserError(
                "there is no experience to infer actions from: let the robot move first, if only at random"
            )
        told = self.inverse.fit(buffer, Budget(self.config.fit_steps))
        self._fitted, self._inferred = len(buffer), None
        return {f"inverse_{name}": told[name] for name in ("train_loss", "holdout_error")}

    @torch.no_grad()
    def infer(self, shown: Tensor) -> Tensor:
        """The actions [M, A] between observations and the next ones [M, 2, D]; probabilities of choices."""
        return self.inverse.infer({"vector": shown[:, 0]}, {"vector": shown[:, 1]}).expected()

    # Keeping ------------------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """And how far the inverse model has come."""
        inverse = {f"inverse.{name}": value for name, value in self.inverse.training_state().items()}
        return {**super().training_state(), **inverse, "fitted": torch.tensor(self._fitted)}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        super().load_training_state(state)
        begin = "inverse."
        self.inverse.load_training_state(
            {name.removeprefix(begin): value for name, value in state.items() if name.startswith(begin)}
        )
        self._fitted, self._inferred = int(state["fitted"]), None
