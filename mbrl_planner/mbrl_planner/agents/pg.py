"""Policy gradient in a model: REINFORCE on imagined, on-policy paths, with the reward to go and a learned
baseline (Williams, 1992; Sutton et al., 2000, https://papers.nips.cc/paper/1713).

The plain counterpart of `svg`, which differentiates the model; see gradients.py.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Model
from mbrl_dynamics.models.normalizer import Normalizer
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics
from mbrl_planner.agents.base import Observation, PolicyAgent, PolicyConfig
from mbrl_planner.agents.gradients import Paths, likelihood_ratio, log_density, reward_to_go, roll
from mbrl_planner.agents.networks import GaussianPolicy, Stack, adam, descend


@config
class PGConfig(PolicyConfig):
    """Configuration of PG."""

    replay_ratio: Annotated[
        float, Field(gt=0, description="policy steps a step of experience, the first ones included [1]")
    ] = 0.5
    hidden: Annotated[tuple[int, ...], Field(min_length=1, description="units of each hidden layer [1]")] = (
        64,
        64,
    )
    paths: Annotated[int, Field(ge=2, description="imagined paths a policy step [1]")] = 256
    horizon: Annotated[int, Field(ge=1, description="length of a path [steps]")] = 20
    discount: Annotated[float, Field(ge=0, le=1, description="of rewards a step later [1]")] = 0.99
    learning_rate: Annotated[float, Field(gt=0, description="Adam's step size of the policy [1]")] = 1e-3
    baseline_rate: Annotated[float, Field(gt=0, description="Adam's step size of the baseline [1]")] = 1e-2
    baseline_steps: Annotated[int, Field(ge=1, description="baseline steps a policy step [1]")] = 10
    clip: Annotated[float, Field(gt=0, description="largest norm of the policy's gradient [1]")] = 1.0


class PG(PolicyAgent):
    """Each policy step follows fresh paths of the present policy, from where the robot has been.

    The policy becomes the best one for `horizon` steps: nothing is promised for what comes after, since a
    value that learns from itself diverges where paths end that the robot never went. Each step of a path
    draws another member of the ensemble and an outcome. Advantages are in units of their own deviation.
    """

    Config = PGConfig
    model = "ensemble"
    unit: Tensor

    def __init__(self, spec: Spec, config: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(spec, config, seed=seed, device=device)
        c, features = self.config, spec.observation_dim
        self.normalizer = Normalizer(features)
        self.policy = GaussianPolicy(features, spec.inner_action_dim, c.hidden)
        self.baseline = Stack(1, features + 1, c.hidden, 1, zero=True)  # and the share of a path to come
        self.register_buffer("unit", torch.tensor(1.0))  # of the baseline's values [reward]
        self.to(self.device)

    # Acting -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(
        self, carry: Observation, *, pending: Tensor | None = None, explore: bool = False
    ) -> tuple[Tensor, Observation]:
        """The policy's mode, or a draw from it, [B, 1, A]."""
        feature = self.normalizer(carry["vector"].to(self.device))
        action = self.policy.draw(feature, self.noise) if explore else self.policy.mode(feature)
        return action.unsqueeze(1), carry

    def acting_state(self) -> dict[str, Tensor]:
        """Policy and normaliser."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(("policy.", "normalizer."))}

    # Learning -----------------------------------------------------------------------------------------------

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One each for policy and baseline."""
        return {
            "policy": adam(self.policy, self.config.learning_rate),
            "baseline": adam(self.baseline, self.config.baseline_rate),
        }

    def learn(self, buffer: ReplayBuffer, model: Model | None, count: int) -> Metrics:
        """Make `count` policy steps, each on paths of its own."""
        assert model is not None
        if not self.updates:
            self.begin(buffer)
        sums: dict[str, float] = {}
        for _ in range(count):
            for name, value in self.step(buffer, model).items():
                sums[name] = sums.get(name, 0.0) + float(value) / count
        return sums

    def begin(self, buffer: ReplayBuffer) -> None:
        """Measure observations and rewards, before the first step."""
        data = buffer.all()
        self.normalizer.measure(data.obs["vector"][:, 0].to(self.device))
        reward = float(data.reward.abs().nanmean().nan_to_num(1.0))
        self.unit.fill_(max(1e-6, self.config.horizon * reward))

    def step(self, buffer: ReplayBuffer, model: Model) -> dict[str, Tensor]:
        """Imagine, follow the likelihood ratio, and fit the baseline."""
        paths, gain, advantage = self.imagine(buffer, model)
        scaled = advantage / (advantage.std() + 1e-6 * self.unit)
        loss = -likelihood_ratio(paths, self.gaussian, scaled, self.config.discount).mean()
        descend(loss, self.optimizers["policy"], self.config.clip)
        with torch.no_grad():
            entropy = -log_density(self.gaussian, paths.obs[:-1], paths.raw).mean()
        return {
            "baseline_loss": self.fit_baseline(paths, gain),
            "value": gain[0].mean(),
            "advantage": advantage.abs().mean(),
            "entropy": entropy,  # of actions before they are squashed
        }

    @torch.no_grad()
    def imagine(self, buffer: ReplayBuffer, model: Model) -> tuple[Paths, Tensor, Tensor]:
        """Paths of the policy from replayed states; their rewards to go and advantages, both [H, M]."""
        index = torch.randint(len(buffer), (self.config.paths,), generator=self.generator, device=self.device)
        start = {k: v[:, 0].to(self.device) for k, v in buffer.slices(index.cpu().numpy()).obs.items()}
        state = model.observe(None, None, start)
        paths = roll(model, state, self.gaussian, self.config.horizon, self.generator)
        gain = reward_to_go(paths.reward, self.config.discount)
        # What is still to come is zero after the end, and the baseline's value must be, too.
        return paths, gain, gain - paths.alive[:-1] * self.value(paths.obs[:-1])

    def fit_baseline(self, paths: Paths, gain: Tensor) -> Tensor:
        """Regress the value of a state that is alive on the reward to go; the last loss."""
        loss = gain.new_zeros(())
        alive = paths.alive[:-1]
        target = gain / alive.clamp(min=1e-3)
        for _ in range(self.config.baseline_steps):
            loss = (alive * ((self.value(paths.obs[:-1]) - target) / self.unit).square()).mean()
            descend(loss, self.optimizers["baseline"])
        return loss.detach()

    def gaussian(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The policy on observations [..., D]: mean and log deviation before squashing, [..., A]."""
        mean_and_log_std: tuple[Tensor, Tensor] = self.policy(self.normalizer(obs))
        return mean_and_log_std

    def value(self, obs: Tensor) -> Tensor:
        """The baseline [H, ...]: what observations [H, ..., D] along paths promise until the paths' end."""
        feature = self.normalizer(obs)
        left = torch.linspace(1.0, 1.0 / len(obs), len(obs), device=obs.device)
        left = left.reshape(-1, *[1] * (obs.ndim - 1)).expand(*obs.shape[:-1], 1)
        inputs = torch.cat([feature, left], dim=-1)
        out: Tensor = self.baseline(inputs.flatten(0, -2))
        return self.unit * out.reshape(obs.shape[:-1])
