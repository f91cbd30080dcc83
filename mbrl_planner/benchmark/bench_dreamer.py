"""How long Dreamer takes at the cart-pole's size: a decision, and a gradient step beside the plain one.

The plain one lets autograd add up each weight's gradient once a time step, and dreams from every replayed
state.
Both are measured in the same run, turn by turn, on one thread.

python tools/bench.py --only bench_dreamer
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.models.recurrent import RecurrentCore, RSSMState, draw
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.dreamer import Dreamer, DreamerConfig

TASK, ACTION_REPEAT = "cartpole_swingup", 2


class PlainCore(RecurrentCore):
    """The recurrent core, filtered step by step."""

    def filter(
        self, embedding: Tensor, action: Tensor, first: Tensor, noise: Tensor | None
    ) -> tuple[RSSMState, Tensor]:
        """As its parent, with every projection and every weight's gradient made at every step."""
        state, path, logs = self.initial(first.shape[1:]), [], []
        for t in range(len(first)):
            keep = (~first[t]).unsqueeze(-1).to(embedding.dtype)
            deter = self.remember(
                RSSMState(state.deter * keep, state.stoch * keep), self.action_in(action[t] * keep)
            )
            logs.append(self.posterior(deter, self.embed_post(embedding[t])))
            state = RSSMState(deter, draw(logs[-1], None if noise is None else noise[t]).flatten(-2))
            path.append(state)
        deter, stoch = (torch.stack(x) for x in zip(*path, strict=True))
        return RSSMState(deter, stoch), torch.stack(logs)


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds a gradient step and a decision."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    spec = make_task(TASK, ACTION_REPEAT).spec
    buffer, config = experience(spec), DreamerConfig()
    agent = Dreamer(spec, config)
    states = config.batch_size * (config.length + 1)
    plain = Dreamer(spec, DreamerConfig(starts=states))
    plain.world.core.__class__ = PlainCore
    for each in (agent, plain):
        each.advance(buffer, None, 1)
    count = 3 if quick else 20
    ours, theirs = in_turn(
        [lambda: agent.advance(buffer, None, 1), lambda: plain.advance(buffer, None, 1)], count
    )
    parts, plain_parts = Costs(agent), Costs(plain)
    in_turn([lambda: parts.step(buffer), lambda: plain_parts.step(buffer)], count)
    obs = {"vector": torch.randn(1, spec.observation_dim)}
    begun = agent.observe(obs, None, first=torch.tensor([True]), prev_action=None)
    action = torch.zeros(1, spec.inner_action_dim)

    def decide() -> None:
        agent.choose(agent.observe(obs, begun, first=torch.tensor([False]), prev_action=action), explore=True)

    (decision,) = in_turn([decide], 10 * count)
    return [
        _figure("dreamer_update_median", ours, "step by step, dreaming from all states", theirs),
        *(
            _figure(
                f"dreamer_update_{name}",
                statistics.median(parts.times[name]),
                "the same",
                statistics.median(plain),
            )
            for name, plain in plain_parts.times.items()
        ),
        _figure("dreamer_decision_median", decision, "the goal of a policy", 2.0),
    ]


class Costs:
    """Where the time of an agent's gradient steps goes [ms]."""

    def __init__(self, agent: Dreamer) -> None:
        self.agent = agent
        self.times: dict[str, list[float]] = {}
        for owner, method, name in (
            (agent, "slices", "replay"),
            (agent.world, "losses", "model_forward"),
            (agent, "dream", "dream"),
            (agent, "improve", "actor_and_critic"),
        ):
            setattr(owner, method, self.timed(getattr(owner, method), name))

    def timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The method, measured."""

        def measured(*args: Any) -> Any:
            begin = time.perf_counter()
            result = method(*args)
            self.times.setdefault(name, []).append(1e3 * (time.perf_counter() - begin))
            return result

        return measured

    def step(self, buffer: ReplayBuffer) -> None:
        """One gradient step."""
        begin = time.perf_counter()
        self.agent.advance(buffer, None, 1)
        parts = sum(times[-1] for name, times in self.times.items() if name != "model_gradient")
        rest = 1e3 * (time.perf_counter() - begin) - parts
        self.times.setdefault("model_gradient", []).append(rest)  # and Adam's step of the model


def experience(spec: Spec, steps: int = 1000) -> ReplayBuffer:
    """Random numbers in the shape of experience: how long learning takes does not depend on them."""
    rng, buffer = np.random.default_rng(0), ReplayBuffer(spec)
    for k in range(steps):
        action = spec.unscale_action(rng.uniform(-1.0, 1.0, spec.inner_action_dim))
        obs = rng.normal(size=spec.observation_dim)
        buffer.add(Transition(bytes(16), 0, k, obs, action, rng.uniform(), first=k == 0))
    return buffer


def in_turn(actions: list[Callable[[], Any]], count: int) -> list[float]:
    """Median time of each action [ms]."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(count):
        for action, own in zip(actions, times, strict=True):
            begin = time.perf_counter()
            action()
            own.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(own) for own in times]


def _figure(name: str, value: float, reference: str, reference_value: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": "ms",
        "reference": reference,
        "reference_value": round(reference_value, 2),
    }


if __name__ == "__main__":
    for figure in figures():
        print(figure)
