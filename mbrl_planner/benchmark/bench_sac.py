"""Gradient steps a second of SAC, beside one that is written as CleanRL writes it, in the same run.

python tools/bench.py --only bench_sac
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.sac import SAC, SACConfig

THREADS = 1
BATCH, HIDDEN = 256, 256
SPEC = Spec(  # the size of HalfCheetah
    "bench",
    tuple(Element(f"o{i}") for i in range(17)),
    tuple(Element(f"a{i}", "1", -1, 1) for i in range(6)),
    0.05,
)


class Plain:
    """SAC of separate networks, one tensor operation after the other, as CleanRL's sac_continuous_action.py:
    a policy step every other critic step, but then two, each followed by one of the temperature.
    """

    def __init__(self) -> None:
        inputs, actions = SPEC.observation_dim, SPEC.action_dim
        self.trunk = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.mean, self.log_std = nn.Linear(HIDDEN, actions), nn.Linear(HIDDEN, actions)
        self.critics = [self._critic(inputs + actions) for _ in range(2)]
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha, self.alpha = torch.zeros(1, requires_grad=True), 1.0
        actor = [*self.trunk.parameters(), *self.mean.parameters(), *self.log_std.parameters()]
        self.actor_optimizer = torch.optim.Adam(actor, lr=3e-4)
        self.critic_optimizer = torch.optim.Adam([p for q in self.critics for p in q.parameters()], lr=1e-3)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=1e-3)

    @staticmethod
    def _critic(inputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """A drawn action and its log density."""
        x = self.trunk(obs)
        log_std = -5.0 + 0.5 * 7.0 * (torch.tanh(self.log_std(x)) + 1.0)
        normal = torch.distributions.Normal(self.mean(x), log_std.exp())
        raw = normal.rsample()
        action = torch.tanh(raw)
        density = normal.log_prob(raw) - torch.log(1.0 - action.pow(2) + 1e-6)
        return action, density.sum(1, keepdim=True)

    def values(self, critics: list[nn.Sequential], obs: Tensor, action: Tensor) -> list[Tensor]:
        """Of each critic."""
        return [critic(torch.cat([obs, action], 1)) for critic in critics]

    def step(self, i: int, obs: Tensor, action: Tensor, reward: Tensor, after: Tensor, done: Tensor) -> None:
        """One gradient step of everything."""
        with torch.no_grad():
            ahead, density = self.act(after)
            least = torch.min(*self.values(self.targets, after, ahead)) - self.alpha * density
            target = reward + (1.0 - done) * 0.99 * least.view(-1)
        loss = sum(nn.functional.mse_loss(q.view(-1), target) for q in self.values(self.critics, obs, action))
        _minimise(loss, self.critic_optimizer)
        for _ in range(2 if i % 2 == 0 else 0):
            drawn, density = self.act(obs)
            least = torch.min(*self.values(self.critics, obs, drawn))
            _minimise((self.alpha * density - least).mean(), self.actor_optimizer)
            with torch.no_grad():
                _, density = self.act(obs)
            excess = density - SPEC.action_dim
            _minimise((-self.log_alpha.exp() * excess).mean(), self.alpha_optimizer)
            self.alpha = self.log_alpha.exp().item()
        for critic, slow in zip(self.critics, self.targets, strict=True):
            for parameter, old in zip(critic.parameters(), slow.parameters(), strict=True):
                old.data.copy_(0.005 * parameter.data + 0.995 * old.data)


def _minimise(loss: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Gradient steps a second, the same network and batch."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    buffer, steps = _buffer(), 40 if quick else 200
    config = SACConfig(hidden=(HIDDEN, HIDDEN), batch_size=BATCH, layer_norm=False, random_steps=1)
    ours, plain = SAC(SPEC, config), Plain()
    draw = np.random.default_rng(0)

    def run_plain(count: int) -> None:
        for i in range(count):
            data = buffer.slices(draw.integers(len(buffer), size=BATCH))
            obs = data.obs["vector"]
            plain.step(
                i, obs[:, 0], data.action[:, 0], data.reward[:, 0], obs[:, 1], data.terminated[:, 0].float()
            )

    rates = _alternate([lambda n: ours.advance(buffer, None, n), run_plain], steps, 3 if quick else 7)
    return [
        {
            "name": "sac_gradient_steps",
            "value": round(rates[0], 1),
            "unit": "steps/s",
            "reference": "written as CleanRL's, same run",
            "reference_value": round(rates[1], 1),
        }
    ]


def _alternate(runs: list[Callable[[int], Any]], steps: int, rounds: int) -> list[float]:
    """The best rate of each [1/s], in turns, so that a busy machine is busy for all."""
    best = [0.0] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            begin = time.perf_counter()
            run(steps)
            best[i] = max(best[i], steps / (time.perf_counter() - begin))
    return best


def _buffer() -> ReplayBuffer:
    rng, buffer = np.random.default_rng(0), ReplayBuffer(SPEC)
    for step in range(2000):
        obs, action = rng.standard_normal(17), rng.uniform(-1, 1, 6)
        buffer.add(Transition(bytes(16), 0, step, obs, action, float(rng.standard_normal()), first=step == 0))
    return buffer


if __name__ == "__main__":
    for figure in figures():
        print(figure)
