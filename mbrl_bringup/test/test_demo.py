"""The whole stack as processes over DDS: it runs, survives, learns, and leaves nothing behind."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from mbrl_bringup.evidence import last_episode
from mbrl_bringup.result import read as read_result
from mbrl_bringup.stack import share
from mbrl_dynamics.episodes import read as read_dataset
from mbrl_dynamics.ros.testing import LATCHED_QOS, NodeProcess, eventually, isolated_domain, peer
from mbrl_msgs.msg import LearnerStatus, PolicyStatus, State, WorldStatus

SMALL = {  # quick to train and to plan with
    "/**/dynamics_node": {
        "ros__parameters": {
            "fit_steps": 400,
            "threads": 1,
            "ensemble": {"members": 3, "hidden": [64, 64]},
        }
    },
    "/**/planner_node": {"ros__parameters": {"icem": {"horizon": 15, "candidates": 40, "iterations": 2}}},
    "/**/policy_node": {
        "ros__parameters": {
            agent: {"hidden": [16], "batch_size": 16, "random_steps": 200, "replay_ratio": 0.25}
            for agent in ("sac", "mbpo")
        }
    },
}


@pytest.fixture
def mbrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., NodeProcess]]:
    """Runs the `mbrl` command on the pendulum in a domain of its own, and checks that all of it ends."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    started: list[NodeProcess] = []

    def start(command: str, *options: str) -> NodeProcess:
        given = ["--task", "pendulum", "--params-file", "small.yaml", *options]
        started.append(NodeProcess([sys.executable, "-m", "mbrl_bringup.cli", command, *given]))
        return started[-1]

    with isolated_domain():
        try:
            yield start
        finally:
            for process in started:
                print(process.output)  # shown if the test failed
                with process:
                    family = family_of(process)
                    print([(p.pid, p.status(), p.create_time(), p.cmdline()[1:3]) for p in alive(family)])
                eventually(lambda family=family: not alive(family), "a process was left behind")


def family_of(process: NodeProcess) -> list[psutil.Process]:
    """All that a process has started; they live in sessions of their own."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def episodes_done(tmp_path: Path) -> int:
    found = list((tmp_path / "runs").glob("*/result.json"))
    return len(json.loads(found[0].read_text())["episodes"]) if found else 0


def test_up_survives_the_death_of_each_node_and_ends_with_ctrl_c(
    mbrl: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    up = mbrl("up")
    with peer() as client:
        states = client.listen(State, "state")
        learners = client.listen(LearnerStatus, "learner_status", LATCHED_QOS)
        eventually(lambda: moved(states), "nothing moves")
        eventually(lambda: bool(learners) and learners[-1].transitions > 0, "nothing is recorded")
        for module in ("sim_node", "planner_node", "dynamics_node"):
            (victim,) = [p for p in family_of(up) if f".{module}" in " ".join(p.cmdline())]
            victim.kill()
            eventually(lambda m=module: f"{m} ended (signal 9)" in up.output, "nobody noticed")
            states.clear()
            eventually(lambda: moved(states), f"nothing moves after the death of {module}")
        learners.clear()
        eventually(lambda: bool(learners) and learners[-1].transitions > 0, "what was seen is forgotten")
    family = family_of(up)
    assert len(family) == 4  # the nodes, and what judges models for the planner
    assert up.stop(signal.SIGINT) == 0
    assert not alive(family)
    folder = run_folder(tmp_path)
    spec, episode = last_episode(read_dataset(folder / "dataset"))
    assert spec is not None and spec.task == "pendulum" and len(episode) > 1


def moved(states: list[State]) -> bool:
    """Whether the world has gone on by several States, repeated ones not counted."""
    return len({(bytes(state.world_id), state.episode, state.step) for state in states}) > 10


@pytest.mark.slow
def test_a_demo_that_is_interrupted_leaves_a_valid_folder(
    mbrl: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    demo = mbrl("demo", "--episodes", "50", "--no-early-stop", "--no-video")
    eventually(
        lambda: episodes_done(tmp_path) >= 2, f"no episode was finished:\n{demo.output}", timeout=120.0
    )
    family = family_of(demo)
    demo.kill(signal.SIGINT)
    demo.kill(signal.SIGINT)
    assert demo.wait() == 130
    assert not alive(family)
    folder = run_folder(tmp_path)
    result = read_result(folder)
    assert not result.finished
    assert len(result.episodes) >= 2
    assert all(math.isfinite(value) for value in result.returns)
    assert "an interrupted run" in (folder / "report.md").read_text()
    assert len(last_episode(read_dataset(folder / "dataset"))[1]) > 1
    assert "processes" in yaml.safe_load((folder / "config.yaml").read_text())
    assert "Traceback" not in demo.output


def test_a_demo_that_is_interrupted_at_once_leaves_a_valid_folder(
    mbrl: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    demo = mbrl("demo", "--no-video")
    eventually(lambda: bool(list(tmp_path.glob("runs/*/result.json"))), f"no run:\n{demo.output}")
    assert demo.stop(signal.SIGTERM) == 130
    assert read_result(run_folder(tmp_path)).episodes == ()
    assert (run_folder(tmp_path) / "report.md").is_file()


def test_a_killed_demo_leaves_no_process_behind(mbrl: Callable[..., NodeProcess], tmp_path: Path) -> None:
    demo = mbrl("demo", "--no-video")
    eventually(lambda: len(family_of(demo)) >= 4, f"the stack did not start:\n{demo.output}")
    family = family_of(demo)
    demo.stop(signal.SIGKILL)
    eventually(lambda: not alive(family), "orphans are left")
    assert read_result(run_folder(tmp_path)).episodes == ()


def test_a_stack_with_a_policy_survives_the_death_of_its_node_and_ends_with_ctrl_c(
    mbrl: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    up = mbrl("up", "--agent", "sac")
    with peer() as client:
        states = client.listen(State, "state")
        statuses = client.listen(PolicyStatus, "policy_status", LATCHED_QOS)
        eventually(lambda: bool(statuses) and statuses[-1].acting_updates > 0, "it does not learn", 120.0)
        known = statuses[-1].env_steps
        (victim,) = [p for p in family_of(up) if ".policy_node" in " ".join(p.cmdline())]
        orphans = victim.children()
        victim.kill()
        eventually(lambda: "policy_node ended (signal 9)" in up.output, "nobody noticed")
        eventually(lambda: not alive(orphans), "the learning process outlives its node")
        states.clear()
        statuses.clear()
        eventually(lambda: moved(states), "nothing moves after the death of policy_node")
        eventually(lambda: bool(statuses) and statuses[-1].env_steps >= known, "what was seen is forgotten")
    family = family_of(up)
    assert up.stop(signal.SIGINT) == 0
    eventually(lambda: not alive(family), "a process is left")
    folder = run_folder(tmp_path)
    assert (folder / "checkpoint" / "agent.safetensors").is_file()
    assert len(last_episode(read_dataset(folder / "dataset"))[1]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["sac", "mbpo"])
def test_a_demo_of_a_policy_leaves_what_a_demo_leaves(
    mbrl: Callable[..., NodeProcess], tmp_path: Path, agent: str
) -> None:
    demo = mbrl("demo", "--agent", agent, "--episodes", "5", "--no-video", "--out", "out.json")
    assert demo.wait(timeout=170.0) == 0, demo.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["agent"] == agent and written["model"] == ("ensemble" if agent == "mbpo" else "")
    result = read_result(run_folder(tmp_path))
    assert [episode.mode for episode in result.episodes] == [
        "random",
        "explore",
        "exploit",
        "exploit",
        "exploit",
    ]
    assert [episode.updates for episode in result.episodes[:-1]] == [50, 100, 150, 200]
    assert [episode.transitions for episode in result.episodes[:-1]] == [200, 400, 600, 800]
    assert result.missed_steps == 0 and result.planning_ms_median > 0
    assert f"Agent `{agent}`" in (run_folder(tmp_path) / "report.md").read_text()
    assert "updates" in demo.output


@pytest.mark.learning
def test_the_whole_stack_learns_the_pendulum(mbrl: Callable[..., NodeProcess], tmp_path: Path) -> None:
    demo = mbrl("demo", "--episodes", "5", "--no-early-stop", "--no-video", "--out", "out.json")
    assert demo.wait(timeout=170.0) == 0, demo.output
    result = json.loads((tmp_path / "out.json").read_text())
    returns = [episode["return"] for episode in result["episodes"]]
    assert [episode["steps"] for episode in result["episodes"]] == [200] * 5
    assert max(returns[2:]) > returns[0] + 300.0, returns
    assert result["missed_steps"] == 0
    folder = run_folder(tmp_path)
    assert result == json.loads((folder / "result.json").read_text())
    errors = [episode.holdout_error for episode in read_result(folder).episodes[:-1]]
    assert errors[-1] < errors[0], errors
    assert (folder / "predicted_against_happened.png").is_file()
    with NodeProcess([sys.executable, "-m", "mbrl_bringup.cli", "evaluate", str(folder)]) as evaluation:
        assert evaluation.wait() == 0, evaluation.output
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["steps"] == 1000 and found["unseen_steps"] >= 200, "the last episode is seen by no model"


def test_a_demo_on_a_robot_arms_its_stand_in_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(share("config/robots/cartpole.yaml").read_text())
    content |= {"max_steps": 40}
    content["guard"] |= {"trip_after": 10.0, "max_age": 5.0}  # the machine that tests may be busy
    content["sources"]["joints"]["max_age"] = 5.0
    (tmp_path / "cart.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    command = ["demo", "--robot", "cart.yaml", "--params-file", "small.yaml", "--episodes", "2", "--no-video"]
    with isolated_domain(), NodeProcess([sys.executable, "-m", "mbrl_bringup.cli", *command]) as demo:
        assert demo.wait(timeout=170.0) == 0, demo.output
    result = read_result(run_folder(tmp_path))
    assert result.task == "cartpole_swingup"
    assert [(episode.mode, episode.steps) for episode in result.episodes] == [("random", 40), ("exploit", 40)]


def test_a_demo_does_not_begin_where_another_stack_runs(
    mbrl: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    with peer() as other:
        other.publisher(WorldStatus, "world_status", LATCHED_QOS, wait_for=0)
        demo = mbrl("demo", "--no-video")
        assert demo.wait(timeout=120.0) == 1
    assert "another stack runs in the same place (namespace none, ROS domain" in demo.output
    assert read_result(run_folder(tmp_path)).episodes == ()
