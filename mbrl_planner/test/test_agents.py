"""Every agent that learns a policy keeps its contract; each one learns (see also the agents' own tests)."""

import subprocess
import sys

import pytest
import torch

from mbrl_dynamics import plugins
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import CONTINUOUS, Element, Spec
from mbrl_dynamics.testing import PointMass, record
from mbrl_planner.agents.base import PolicyAgent
from mbrl_planner.testing import check_agent

SMALL = {  # what makes an agent small enough for a test
    "sac": {"hidden": (16,), "batch_size": 8},
    "latent_sac": {
        "hidden": (16,),
        "memory": 8,
        "world_hidden": 8,
        "latents": (2, 2),
        "slices": 2,
        "length": 3,
        "batch_size": 8,
    },
    "mbpo": {"hidden": (16,), "batch_size": 16, "branches": 8, "replay_ratio": 1.0},
    "mbmf": {"hidden": (16,), "batch_size": 8, "clone_after": 60, "clone_steps": 2, "labels": 4},
    "mba": {"hidden": (16,), "batch_size": 16, "branches": 8, "replay_ratio": 1.0},
    "mve": {"hidden": (16,), "batch_size": 8, "replay_ratio": 1.0},
    "dreamer": {
        "deter": 16,
        "hidden": 16,
        "groups": 4,
        "classes": 4,
        "batch_size": 4,
        "length": 8,
        "starts": 8,
    },
    "pg": {"hidden": (16,), "paths": 8, "horizon": 3},
    "tdmpc": {"latent": 16, "hidden": (16,), "critic_hidden": (16,), "batch_size": 8, "candidates": 16},
    "svg": {"hidden": (16,), "batch_size": 8, "look_ahead": 3, "replay_ratio": 1.0},
}

ELSEWHERE = {"bco"}  # held to the contract in its own tests: it needs demonstrations


def agents() -> list[str]:
    """All but those of discrete worlds, which the point mass is not; they have tests of their own."""
    found = {name: plugins.find("agents", name) for name in plugins.names("agents")}
    return [n for n, kind in found.items() if issubclass(kind, PolicyAgent) and CONTINUOUS in kind.kinds]


@pytest.mark.parametrize("name", sorted(set(agents()) - ELSEWHERE))
def test_contract(name: str) -> None:
    kind = plugins.find("agents", name)

    def make(spec: Spec, seed: int) -> PolicyAgent:
        return kind(spec, kind.Config(random_steps=60, **SMALL.get(name, {})), seed=seed)

    check_agent(make, PointMass() if kind.model else None)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["sac", "dreamer", "tdmpc"])
def test_compiled_gradient_steps_are_the_plain_ones(name: str) -> None:
    """What is compiled on CUDA, compiled for the CPU."""
    kind, world = plugins.find("agents", name), PointMass()
    buffer = record(lambda o, a: world.A @ o + world.B @ a, world.spec, 3, 30, reward=world.reward)
    weights = []
    for compiled in (False, True):
        agent = kind(world.spec, kind.Config(random_steps=60, **SMALL[name]))
        if compiled:
            agent.compile_update()
        agent.advance(buffer, None, 3)
        weights.append(agent.state_dict())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_an_agent_that_only_acts_makes_no_optimizer() -> None:
    """The first of a process loads PyTorch's compiler: two seconds of a node's start."""
    code = """if True:
        import sys, torch
        from mbrl_dynamics import plugins
        from mbrl_dynamics.testing import PointMass
        for name in sys.argv[1:]:
            agent = plugins.find("agents", name)(PointMass().spec)
            obs = {"vector": torch.zeros(1, agent.spec.observation_dim)}
            agent.act(obs, None, first=torch.ones(1, dtype=torch.bool), prev_action=None, explore=True)
        assert "torch._dynamo" not in sys.modules
        agent.optimizers
        assert "torch._dynamo" in sys.modules, "torch is quick now: make optimisers where agents are made"
    """
    done = subprocess.run([sys.executable, "-c", code, *agents()], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_an_action_space_that_does_not_fit_gets_one_sentence() -> None:
    spec = Spec("switch", (Element("x"),), (Element("side", count=2),), 0.1)
    with pytest.raises(
        UserError, match="agent 'sac' needs continuous actions, but those of task 'switch' are"
    ):
        plugins.find("agents", "sac")(spec)


def test_a_device_that_is_not_there_gets_one_sentence() -> None:
    spec = PointMass().spec
    with pytest.raises(UserError, match="device 'cuda:7' is not on this machine; valid: cpu"):
        plugins.find("agents", "sac")(spec, device="cuda:7")
    with pytest.raises(UserError, match="device 'gpu' is not on this machine; valid: cpu"):
        plugins.find("agents", "sac")(spec, device="gpu")
