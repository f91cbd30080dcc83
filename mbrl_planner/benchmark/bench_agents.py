"""How long agents that learn a world model take: a decision and a gradient step, on one thread.

Each is measured beside its matrix products alone, in the same run, turn by turn. What remains is what the
elementwise operations, the optimisers and Python cost.

python tools/bench.py --only bench_agents
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agents.tdmpc import TDMPC

TASK, ACTION_REPEAT, EPISODE = "cartpole_swingup", 2, 500
BACKWARD = 3  # a product forward costs two more of its size backward
Product = tuple[int, int, int, int]  # batch of products, rows, inputs, outputs


def figures(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds a decision and a gradient step."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return tdmpc(5 if quick else 100)


def tdmpc(count: int) -> list[dict[str, Any]]:
    """TD-MPC2 at its defaults, as it learns the cart-pole."""
    spec = make_task(TASK, ACTION_REPEAT).spec
    agent, buffer = TDMPC(spec), experience(spec, 2000)
    agent.advance(buffer, None, 2)
    obs, memory = {"vector": torch.randn(1, spec.observation_dim)}, [None]

    def decide() -> None:
        carry = agent.observe(obs, memory[0], first=torch.tensor([False]), prev_action=None)
        _, memory[0] = agent.choose(carry, explore=True)

    plan, plan_bare = in_turn([decide, bare(plan_products(agent))], count)
    step, step_bare = in_turn([lambda: agent.advance(buffer, None, 1), bare(step_products(agent))], count)
    return [
        _figure("tdmpc_plan_median", plan, plan_bare),
        _figure("tdmpc_update_median", step, step_bare),
    ]


def plan_products(agent: TDMPC) -> list[Product]:
    """The matrix products of a decision."""
    c, world = agent.config, agent.world
    dynamics, reward = layers(world.dynamics), layers(world.reward_head)
    policy, critic = layers(agent.policy), layers(agent.critic)
    n, h = c.candidates, c.horizon
    own = [*repeat(dynamics, 1, c.policy_plans) * (h - 1), *repeat(policy, 1, c.policy_plans) * h]
    one = [*repeat(dynamics, 1, n) * h, *repeat(reward, 1, n * h), *repeat(policy, 1, n)]
    return own + (one + repeat(critic, c.critics, n)) * c.iterations


def step_products(agent: TDMPC) -> list[Product]:
    """The matrix products of a gradient step, forward and backward."""
    c, world = agent.config, agent.world
    b, h = c.batch_size, c.horizon
    policy, critic, encoder = layers(agent.policy), layers(agent.critic), layers(world.encoder)
    learned = [*repeat(encoder, 1, b), *repeat(layers(world.dynamics), 1, b) * h]
    learned += [*repeat(layers(world.reward_head), 1, b * h), *repeat(critic, c.critics, b * h)]
    learned += repeat(policy, 1, b * (h + 1))
    target = [*repeat(encoder, 1, b * h), *repeat(policy, 1, b * h), *repeat(critic, 2, b * h)]
    return learned * BACKWARD + target + repeat(critic, 2, b * (h + 1)) * (BACKWARD - 1)


def layers(net: torch.nn.Module) -> list[tuple[int, int]]:
    """Inputs and outputs of the layers of a network or a stack of networks."""
    stacked = [tuple(p.shape[1:]) for n, p in net.named_parameters() if p.ndim == 3 and "weights" in n]
    return stacked or [
        (m.in_features, m.out_features) for m in net.modules() if isinstance(m, torch.nn.Linear)
    ]


def repeat(sizes: list[tuple[int, int]], members: int, rows: int) -> list[Product]:
    """The products of a network's layers for so many rows."""
    return [(members, rows, inputs, outputs) for inputs, outputs in sizes]


def bare(products: list[Product]) -> Callable[[], None]:
    """Something that only multiplies."""
    pairs = [(torch.randn(e, m, i), torch.randn(e, i, o)) for e, m, i, o in products]

    def multiply() -> None:
        for a, b in pairs:
            torch.bmm(a, b)

    return multiply


def in_turn(calls: list[Callable[[], Any]], count: int) -> list[float]:
    """Median times of some calls, which take turns, so that a busy machine slows all alike [s]."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(count):
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def experience(spec: Spec, steps: int) -> ReplayBuffer:
    """Something to learn from."""
    buffer, rng = ReplayBuffer(spec), np.random.default_rng(0)
    for k in range(steps):
        obs, action = rng.normal(size=spec.observation_dim), rng.uniform(spec.action_low, spec.action_high)
        episode, step = divmod(k, EPISODE)
        buffer.add(Transition(bytes(16), episode, step, obs, action, rng.uniform(), first=step == 0))
    return buffer


def _figure(name: str, value: float, reference: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(1e3 * value, 2),
        "unit": "ms",
        "reference": "its matrix products alone",
        "reference_value": round(1e3 * reference, 2),
    }


if __name__ == "__main__":
    for figure in figures():
        print(figure)
