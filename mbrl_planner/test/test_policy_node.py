"""policy_node as a process, with the real simulator as another and its learning as a third, over DDS."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray

from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.ros.convert import snapshot_to_msg, spec_from_msg
from mbrl_dynamics.ros.testing import (
    LATCHED_QOS,
    NodeProcess,
    Peer,
    eventually,
    isolated_domain,
    peer,
    start_node,
)
from mbrl_msgs.action import RunEpisodes
from mbrl_msgs.msg import Action, ModelStatus, ModelUpdate, PolicyStatus, State
from mbrl_msgs.msg import Spec as SpecMsg
from mbrl_planner.agent_trainer import save
from mbrl_planner.agents.sac import SAC, SACConfig

POLICY, SIM = "mbrl_planner.ros.policy_node", "mbrl_sim.ros.sim_node"
TASK = "pendulum"
SMALL = {"hidden": [16], "batch_size": 16, "random_steps": 100}
EXPLORE, EXPLOIT = RunEpisodes.Goal.EXPLORE, RunEpisodes.Goal.EXPLOIT


def settings(agent: str = "sac", **own: Any) -> dict[str, Any]:
    """Parameters of a small agent."""
    group = agent.rpartition(":")[2]
    learning = {"replay_ratio": 0.5, **SMALL, **own.pop("agent_own", {})}
    return {"task": TASK, "agent": agent, **{f"{group}.{k}": v for k, v in learning.items()}, **own}


@dataclass
class Client:
    """A test's view of one stack."""

    me: Peer
    node: NodeProcess

    def __post_init__(self) -> None:
        self.states: list[Any] = self.me.listen(State, "state")
        self.actions: list[Any] = self.me.listen(Action, "action")
        self.statuses: list[Any] = self.me.listen(PolicyStatus, "policy_status", LATCHED_QOS)
        self.models: list[Any] = self.me.listen(ModelStatus, "model_status", LATCHED_QOS)
        self._run = self.me.action_client(RunEpisodes, "run_episodes")

    @property
    def status(self) -> PolicyStatus:
        eventually(lambda: bool(self.statuses), "no policy_status")
        return self.statuses[-1]

    def run(self, **goal: Any) -> Any:
        """Run episodes, and return the future of the result's response."""
        assert self._run.wait_for_server(60.0), self.node.output
        future = self._run.send_goal_async(RunEpisodes.Goal(**{"seed": 1, "mode": EXPLORE, **goal}))
        eventually(future.done, "the goal was not answered")
        return future.result().get_result_async()

    def ran(self, **goal: Any) -> RunEpisodes.Result:
        future = self.run(**goal)
        eventually(future.done, "no result", timeout=120.0)
        result = future.result().result
        assert (result.error_code, result.error_msg) == (RunEpisodes.Result.OK, ""), self.node.output
        return result

    def goes_on(self, count: int = 50) -> None:
        before = len(self.actions)
        eventually(lambda: len(self.actions) > before + count, f"the loop stands still\n{self.node.output}")

    @property
    def learner(self) -> int:
        """Process id of the learning process."""
        found = [
            child.pid
            for child in psutil.Process(self.node.pid).children()
            if "mbrl_planner.learner_child" in child.cmdline()
        ]
        return found[0] if found else 0


@contextmanager
def stack(node: dict[str, Any], **sim: Any) -> Iterator[Client]:
    with (
        isolated_domain(),
        start_node(SIM, {"task": TASK, **sim}),
        start_node(POLICY, node) as process,
        peer() as me,
    ):
        yield Client(me, process)


def test_it_learns_what_it_owes_between_episodes_where_they_wait_for_it() -> None:
    with stack(settings()) as client:
        result = client.ran(episodes=3, wait_for_model=True)
        assert list(result.steps) == [200] * 3 and result.missed_steps == 0
        assert result.planning_ms_median > 0
        last = client.ran(episodes=1, mode=EXPLOIT, wait_for_model=True)
        status = client.status
        # Half a step of the first three episodes; by now the fourth may have been learned from, too.
        assert 300 in {seen.acting_updates for seen in client.statuses}, client.statuses
        assert 300 <= status.acting_updates <= 400, status
        assert status.refused == 0 and status.restarts == 0 and status.agent == "sac"
        assert dict(zip(status.metric_names, status.metrics, strict=True))["critic_loss"] > 0
        assert list(last.steps) == [200]
        assert client.node.stop() == 0 and "Traceback" not in client.node.output


@pytest.mark.slow
def test_what_is_learned_does_not_depend_on_how_busy_the_machine_was() -> None:
    """Two runs of one seed, of which the second is held up now and then, act alike in the end."""
    returns = []
    for busy in (False, True):
        with stack(settings()) as client:
            future = client.run(episodes=3, wait_for_model=True)
            while busy and not future.done():
                for number in (signal.SIGSTOP, signal.SIGCONT):
                    if client.learner:
                        os.kill(client.learner, number)
                    time.sleep(0.2)
            eventually(future.done, "no result", timeout=120.0)
            returns.append(list(future.result().result.returns))
            returns[-1] += client.ran(episodes=1, mode=EXPLOIT, wait_for_model=True).returns
    assert returns[0] == returns[1]


@pytest.mark.slow
def test_it_learns_while_it_acts_and_never_waits_for_its_learning(tmp_path: Path) -> None:
    """The learning process is stopped, killed, and comes back; meanwhile there are answers."""
    node = settings(
        follow=True, mode="explore", dataset=str(tmp_path / "d"), checkpoint=str(tmp_path / "c")
    ) | {"sac.replay_ratio": 0.05}
    with stack(node) as client:
        diagnostics = client.me.listen(DiagnosticArray, "diagnostics", 10)
        client.run(episodes=1000)
        eventually(lambda: client.status.acting_updates > 20, "it does not learn")
        eventually(lambda: client.status.swaps > 1, "policies are not swapped")
        client.goes_on(200)  # under swaps
        os.kill(client.learner, signal.SIGSTOP)
        client.goes_on(800)
        os.kill(client.learner, signal.SIGKILL)
        client.goes_on(200)
        eventually(lambda: client.status.status == PolicyStatus.FAILED, "nobody noticed its death")
        assert "signal 9" in client.status.events[-1]
        eventually(lambda: client.status.restarts == 1, "it was not started again")
        before = client.status.acting_updates
        eventually(lambda: client.status.acting_updates > before, "it does not learn any more")
        client.goes_on()
        values = {
            entry.key: entry.value
            for message in diagnostics
            if message.status[0].name == "/policy_node"
            for entry in message.status[0].values
        }
        assert values["restarts of the learning process"] == "1" and values["missed"] == "0"
        learner = psutil.Process(client.learner)
        client.node.kill(signal.SIGINT)  # launch signals twice
        client.node.kill(signal.SIGINT)
        begin = time.monotonic()
        assert client.node.wait() == 0
        eventually(lambda: not learner.is_running(), "the learning process outlives the node")
        assert time.monotonic() - begin < 20.0
    assert (tmp_path / "c" / "agent.safetensors").exists()
    assert (tmp_path / "d" / "000.mcap").exists()


def test_killed_and_started_again_it_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    node = settings(dataset=str(tmp_path / "d"), checkpoint=str(tmp_path / "c"), checkpoint_period=0.5)
    checkpoint = tmp_path / "c" / "agent.safetensors"
    with stack(node) as client:
        client.ran(episodes=2, wait_for_model=True)
        eventually(lambda: client.status.updates == 200, "it does not learn")
        eventually(checkpoint.exists, "no checkpoint")
        learner = psutil.Process(client.learner)
        client.node.stop(signal.SIGKILL)
        eventually(lambda: not learner.is_running(), "an orphan is left")
    with stack(node) as client:
        eventually(lambda: client.status.updates == 200, f"not resumed:\n{client.node.output}")
        assert client.status.env_steps == 400 and client.status.acting_updates == 200
        client.ran(episodes=1, wait_for_model=True)
        eventually(lambda: client.status.updates == 300, "it does not go on")
        assert client.node.stop(signal.SIGTERM) == 0


def trained(folder: Path, updates: int = 300) -> Path:
    """The checkpoint of a small sac that has learned."""
    torch.set_num_threads(1)
    agent = SAC(make_task(TASK).spec, SACConfig(**{**SMALL, "hidden": (16,)}))
    agent.updates = updates
    save(folder, agent, "sac", 0, 0, {})
    return folder / "agent.safetensors"


def test_a_checkpoint_of_another_agent_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    before = checkpoint.read_bytes()
    with stack(settings("mbpo", checkpoint=str(tmp_path))) as client:
        assert client.node.wait() == 2
        assert "is of agent 'sac', but 'mbpo' is wanted" in client.node.output
        assert "Traceback" not in client.node.output
    assert checkpoint.read_bytes() == before


def test_deployed_without_learning_it_acts_records_and_leaves_the_checkpoint_alone(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    before = checkpoint.read_bytes()
    with stack(settings(learn=False, dataset=str(tmp_path / "d"), checkpoint=str(tmp_path))) as client:
        client.ran(episodes=2, mode=EXPLOIT, wait_for_model=True)
        assert client.status.acting_updates == 300
        eventually(lambda: client.status.env_steps == 400, "it does not record")
        assert client.status.recording and client.status.updates == 300
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"agent": "nope"}, "unknown agent 'nope'"),
        ({"agent": "dyna_q"}, "agent 'dyna"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not on this machine; valid: cpu"),
        ({"sac.batch_size": 0}, "'sac.batch_size' is 0"),
        ({"task": "nope"}, "unknown task 'nope'"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with isolated_domain(), start_node(POLICY, {**settings(), **changes}) as process:
        assert process.wait() == 2
        errors = [line for line in process.output.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and sentence in errors[0], process.output


def test_learning_that_turns_nan_is_undone_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(Path(__file__).parent / "fakes")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    with stack(settings("poisoned:Poisoned")) as client:
        client.ran(episodes=3, wait_for_model=True)
        eventually(lambda: bool(client.status.events), "the event is not told")
        assert "the last good weights are back" in client.status.events[0]
        client.ran(episodes=1, mode=EXPLOIT)
        assert client.status.refused == 0
        assert all(math.isfinite(action.values[0]) for action in client.actions)
        assert "the last good weights are back" in client.node.output


def test_an_agent_that_needs_a_model_learns_when_it_has_one() -> None:
    own = {"branches": 8, "keep_rounds": 2, "horizon": [2, 2], "imagine_every": 10}
    with stack(settings("mbpo", agent_own=own)) as client:
        specs = client.me.listen(SpecMsg, "spec", LATCHED_QOS)
        updates = client.me.publisher(ModelUpdate, "model_update", LATCHED_QOS)
        client.ran(episodes=1)
        eventually(lambda: client.status.owed == 100, "nothing is owed")
        assert client.status.updates == 0
        torch.set_num_threads(1)
        model = Ensemble(spec_from_msg(specs[-1]), EnsembleConfig(members=2, hidden=(16,)))
        packed = snapshots.pack(model, model_id="ensemble", run_id="run", version=1)
        message = snapshot_to_msg(packed, Time())
        message.dynamics_hash = "0" * 64
        updates.publish(message)
        eventually(lambda: bool(client.models) and client.models[-1].refused == 1, "a bad model is taken")
        assert "dynamics hash" in client.models[-1].last_refusal
        updates.publish(snapshot_to_msg(packed, Time()))
        eventually(lambda: client.status.acting_updates == 100, "it does not learn")
        assert client.status.model_version == 1 and client.models[-1].in_use
        assert client.status.owed == 0


def test_late_answers_are_counted_and_delays_are_the_worlds_own_matter() -> None:
    with stack(settings(deadline=1e-9), action_delay_steps=2) as client:
        result = client.ran(episodes=1)
        assert list(result.steps) == [200]
        eventually(lambda: client.status.missed_deadlines == 200, "not counted")
