"""What happens when nobody says what is done: the next observation, and those between two others.

Experience tells it without any action, as a film does. Whoever acted is part of the world: it is as likely as
that behaviour made it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mbrl_dynamics.config import config
from mbrl_dynamics.interfaces import Noise
from mbrl_dynamics.models.between import Between, BetweenConfig
from mbrl_dynamics.models.mixture import Mixture
from mbrl_dynamics.models.observed import project
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Trajectory


@config
class ActionFreeConfig(BetweenConfig):
    """Configuration of ActionFree."""


class ActionFree(Between):
    """A network that predicts the change to the next observation, p(s' given s), whether or not it is known
    where one will be some steps later.

    To fill in what lies between two observations, it takes one step after the other, each given where it
    is and the end: the product of p(s[t+1] given s[t], s[t+n]) is the distribution of the whole path, if
    observations tell all of the state. What is predicted is how far a step leaves the straight way to the
    end, so that the path gets there. Where nothing is known of the end, it is the change itself.

    Args:
        spec: the interface whose observations are learned; its action does not matter.
        config: see ActionFreeConfig; `steps` is the length of the longest path.
        seed: of weights and batches.
    """

    Config = ActionFreeConfig

    def __init__(self, spec: Spec, config: ActionFreeConfig | None = None, *, seed: int = 0) -> None:
        c, size = config or ActionFreeConfig(), spec.observation_dim
        said = c.components * (2 * size + 1)
        super().__init__(spec, c, told=size, said=said, features=size, seed=seed)

    def represent(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Standard scores of the observation [..., D]."""
        return self.normalizer(obs["vector"].float())

    def forward(self, start: Tensor, later: Tensor, steps: Tensor) -> Tensor:
        """As it is there. One step apart the later one is the answer: it is hidden, which makes of n = 1 the
        prediction that knows of no end.
        """
        return super().forward(start, torch.where((steps == 1).unsqueeze(-1), start, later), steps)

    def predict(self, obs: Mapping[str, Tensor]) -> Mixture:
        """The next observation [..., D], SI: name -> [..., D] to a mixture of Gaussians."""
        return self._next(obs["vector"].float(), obs["vector"].float(), 1)

    def fill(
        self,
        obs: Mapping[str, Tensor],
        later: Mapping[str, Tensor],
        steps: int,
        noise: Noise = None,
    ) -> Tensor:
        """Observations [..., n+1, D] from `obs` [..., D] to `later`, both included, n = `steps` apart.

        Args:
            obs, later: name -> [..., D], SI.
            steps: n [steps].
            noise: draws a path; None = the mean at each step, given the mean before.

        Raises:
            UserError: `steps` is more than what was learned.
        """
        self.check(steps)
        at, end = obs["vector"].float(), later["vector"].float()
        path = [at]
        for left in range(steps, 1, -1):
            said = self._next(at, end, left)
            at = project(said.expected() if noise is None else said.draw(noise), self.spec)
            path.append(at)
        return torch.stack([*path, end], dim=-2)

    def _next(self, at: Tensor, end: Tensor, left: int) -> Mixture:
        """The observation after `at`, if it is `end` after `left` steps; 1 = nobody knows."""
        left_out = self.in_units(self.mixture(self.between({"vector": at}, {"vector": end}, left)), left)
        straight = at if left == 1 else at + (end - at) / left
        return left_out._replace(mean=left_out.mean + straight.unsqueeze(-2))

    # Learning -----------------------------------------------------------------------------------------------

    def wanted(self, batch: Trajectory) -> Tensor:
        """How far a step leaves the straight way to the end; one step before that, the change itself."""
        obs = batch.obs["vector"]
        start, many = obs[:, :-1], self.config.steps
        left = torch.arange(many, 0, -1, device=obs.device, dtype=obs.dtype).unsqueeze(-1)
        share = torch.where(left > 1, 1.0 / left, 0.0)
        return obs[:, 1:] - start - (obs[:, -1:] - start) * share

    def losses(self, said: Tensor, target: Tensor) -> Tensor:
        """Twice the negative log likelihoods of changes, an element."""
        return self.mixture(said).nll(target)

    def errors(self, said: Tensor, target: Tensor) -> Tensor:
        """Absolute errors, in standard deviations."""
        return self.mixture(said).miss(target).mean(-1)
