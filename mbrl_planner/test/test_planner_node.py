"""planner_node as a process, with the real simulator as another, over DDS."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionServer, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from visualization_msgs.msg import Marker, MarkerArray

from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
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
from mbrl_dynamics.spec import Spec
from mbrl_msgs.action import Reset, RunEpisodes
from mbrl_msgs.msg import Action, ModelStatus, ModelUpdate, Plan, State, WorldStatus
from mbrl_msgs.msg import Spec as SpecMsg
from mbrl_msgs.srv import ComputePlan

PLANNER, SIM = "mbrl_planner.ros.planner_node", "mbrl_sim.ros.sim_node"
TASK = "pendulum"
QUICK = {"task": TASK, "icem.candidates": 16, "icem.iterations": 1, "icem.horizon": 8, "icem.elites": 4}


@dataclass
class Client:
    """A test's view of one stack."""

    me: Peer
    planner: NodeProcess

    def __post_init__(self) -> None:
        self.states: list[Any] = self.me.listen(State, "state")
        self.actions: list[Any] = self.me.listen(Action, "action")
        self.statuses: list[Any] = self.me.listen(ModelStatus, "model_status", LATCHED_QOS)
        self.specs: list[Any] = self.me.listen(SpecMsg, "spec", LATCHED_QOS)
        self._run = self.me.action_client(RunEpisodes, "run_episodes")
        self.updates = self.me.publisher(ModelUpdate, "model_update", LATCHED_QOS)

    @property
    def spec(self) -> Spec:
        eventually(lambda: bool(self.specs), "no spec")
        return spec_from_msg(self.specs[-1])

    def send(self, **goal: Any) -> Run:
        assert self._run.wait_for_server(60.0), self.planner.output
        feedback: list[Any] = []
        future = self._run.send_goal_async(
            RunEpisodes.Goal(**goal), feedback_callback=lambda msg: feedback.append(msg.feedback)
        )
        eventually(future.done, "the goal was not answered")
        return Run(future.result(), feedback)

    def publish(self, number: int, **changes: Any) -> ModelUpdate:
        msg = update(self.spec, number)
        for name, value in changes.items():
            setattr(msg, name, value)
        self.updates.publish(msg)
        return msg

    def use(self, version: int) -> None:
        """Publish a model and wait until it is in use."""
        self.publish(version)
        eventually(lambda: self.status.version == version, f"version {version} is not in use")

    @property
    def status(self) -> ModelStatus:
        eventually(lambda: bool(self.statuses), "no model_status")
        return self.statuses[-1]


class Run:
    """A RunEpisodes goal under way."""

    def __init__(self, handle: Any, feedback: list[Any]) -> None:
        self.accepted, self.feedback, self._handle = handle.accepted, feedback, handle
        self._future = handle.get_result_async() if handle.accepted else None

    @property
    def over(self) -> bool:
        return self._future.done()

    def result(self) -> RunEpisodes.Result:
        eventually(self._future.done, "no result")
        return self._future.result().result

    def cancel(self) -> None:
        self._handle.cancel_goal_async()


def update(spec: Spec, version: int) -> ModelUpdate:
    """A small, untrained ensemble as an update; all versions predict alike, so that none is worse."""
    torch.set_num_threads(1)
    model = Ensemble(spec, EnsembleConfig(members=2, hidden=(16,)), seed=0)
    return snapshot_to_msg(snapshots.pack(model, model_id="ensemble", run_id="run", version=version), Time())


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with (
        isolated_domain(),
        start_node(SIM, {"task": TASK}),
        start_node(PLANNER, QUICK) as planner,
        peer() as me,
    ):
        yield Client(me, planner)


@pytest.fixture
def client(shared: Client) -> Client:
    for messages in (shared.states, shared.actions):
        messages.clear()
    return shared


def test_runs_random_episodes_without_a_model(client):
    run = client.send(episodes=2, mode=RunEpisodes.Goal.RANDOM, seed=5)
    result = run.result()
    assert (result.error_code, result.error_msg) == (RunEpisodes.Result.OK, "")
    assert list(result.steps) == [200, 200]
    assert all(-2000 < value < 0 for value in result.returns)
    assert result.missed_steps == 0 and math.isnan(result.planning_ms_median)
    ends = [feedback for feedback in run.feedback if feedback.done]
    assert [(end.episode, end.step) for end in ends] == [(0, 200), (1, 200)]
    assert [end.return_so_far for end in ends] == pytest.approx(list(result.returns))


def test_a_seed_gives_the_same_run(client):
    goal = {"episodes": 1, "mode": RunEpisodes.Goal.RANDOM, "seed": 11, "max_steps": 30}
    first, second = (client.send(**goal).result() for _ in range(2))
    assert list(first.returns) == list(second.returns) and list(first.steps) == [30]


def test_one_goal_at_a_time_and_cancel(client):
    run = client.send(episodes=1000, mode=RunEpisodes.Goal.RANDOM, seed=-1)
    assert not client.send(episodes=1).accepted
    eventually(lambda: "one goal at a time" in client.planner.output, "no reason was given")
    eventually(lambda: len(client.actions) > 10, "nothing runs")
    run.cancel()
    assert run.result().error_code == RunEpisodes.Result.CANCELED
    assert (
        client.send(episodes=1, mode=RunEpisodes.Goal.RANDOM, seed=-1, max_steps=3).result().error_code == 0
    )


@pytest.mark.parametrize("goal, word", [({"episodes": 0}, "episodes"), ({"episodes": 1, "mode": 9}, "mode")])
def test_a_bad_goal_is_told_what_is_wrong(client, goal, word):
    result = client.send(**goal).result()
    assert result.error_code == RunEpisodes.Result.BAD_REQUEST
    assert word in result.error_msg


def test_cancel_while_waiting_for_a_model_that_never_comes(client):
    run = client.send(episodes=2, mode=RunEpisodes.Goal.RANDOM, seed=-1, max_steps=5, wait_for_model=True)
    eventually(
        lambda: any(f.phase == "waiting for the model" for f in run.feedback), "does not say that it waits"
    )
    assert len(client.actions) <= 10
    run.cancel()
    result = run.result()
    assert result.error_code == RunEpisodes.Result.CANCELED and len(result.steps) < 2


def test_plans_with_a_model_and_shows_what_it_plans(client):
    client.use(1)
    plans, drawings = client.me.listen(Plan, "plan"), client.me.listen(MarkerArray, "plan_markers")
    run = client.send(episodes=1, mode=RunEpisodes.Goal.EXPLOIT, seed=0, max_steps=200)
    result = run.result()
    assert result.error_code == RunEpisodes.Result.OK
    assert result.planning_ms_median > 0 and result.missed_steps == 0
    assert len(client.actions[-1].values) == 8 and not math.isnan(client.actions[-1].disagreement)
    assert run.feedback[-1].model_version == 1
    eventually(lambda: bool(plans) and bool(drawings), "nothing was shown")
    plan = plans[-1]
    assert (plan.planner, plan.horizon, plan.model_version, plan.candidates) == ("icem", 8, 1, 16)
    assert len(plan.observations) == len(plan.spread) == 9 * 3
    assert len(plan.candidate_observations) == 16 * 9 * 3 and plan.deadline_met
    kinds = Counter(marker.type for marker in drawings[-1].markers)
    lines = next(marker for marker in drawings[-1].markers if marker.type == Marker.LINE_LIST)
    assert kinds[Marker.LINE_LIST] == kinds[Marker.LINE_STRIP] == 1 and kinds[Marker.SPHERE] > 0
    assert len(lines.points) == len(lines.colors) == 16 * 8 * 2


def test_models_are_swapped_under_load_without_missing_a_step(client):
    client.use(2)
    msgs = [update(client.spec, version) for version in range(3, 43)]
    run = client.send(episodes=3, mode=RunEpisodes.Goal.EXPLORE, seed=0)
    before, published = client.status.swaps, 2
    for msg in msgs:
        count = len(client.actions)
        client.updates.publish(msg)
        published = msg.version
        eventually(lambda: len(client.actions) > count + 5 or run.over, "the loop stands still")  # noqa: B023
        if run.over:  # a slow machine
            break
    result = run.result()
    assert result.error_code == RunEpisodes.Result.OK and list(result.steps) == [200] * 3
    assert result.missed_steps == 0
    eventually(lambda: client.status.version == published, "the last model is not in use")
    assert client.status.swaps >= before + 5  # the topic keeps only the newest: some may be overtaken

    def answered() -> Counter[tuple[bytes, int, int]]:
        return Counter((bytes(a.world_id), a.episode, a.step) for a in list(client.actions))

    def of_this_run() -> int:
        episodes = sorted({episode for _, episode, _ in answered()})[-3:]
        return sum(key[1] in episodes for key in answered())

    eventually(lambda: of_this_run() == 600, "not each State was answered")  # a busy machine hears late
    answers = answered()
    states = Counter((bytes(s.world_id), s.episode, s.step) for s in list(client.states) if not s.truncated)
    # A State that the test itself did not hear was published once at least.
    assert {key: count for key, count in answers.items() if count > max(states[key], 1)} == {}


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"dynamics_hash": "0" * 64}, "dynamics hash"),
        ({"model_id": "gp"}, "'ensemble' is wanted"),
        ({"version": 1}, "not newer"),
        ({"version": 60}, "contradicts itself"),
        ({"sha256": "0" * 64}, "truncated or altered"),
    ],
)
def test_a_bad_update_is_refused_with_a_reason_and_the_old_model_stays(client, changes, reason):
    if client.status.version < 2:
        client.use(42)
    refused, version = client.status.refused, client.status.version
    client.publish(50, **changes)
    eventually(lambda: client.status.refused == refused + 1, "not refused")
    assert reason in client.status.last_refusal
    assert client.status.in_use and client.status.version == version


def test_a_truncated_update_is_refused(client):
    refused, msg = client.status.refused, update(client.spec, 60)
    msg.weights = msg.weights[: len(msg.weights) // 2]
    client.updates.publish(msg)
    eventually(lambda: client.status.refused == refused + 1, "not refused")
    assert client.status.version != 60


def test_compute_plan(client):
    if not client.status.in_use:
        client.use(42)
    ok = client.me.call(
        ComputePlan, "compute_plan", ComputePlan.Request(observation=[1.0, 0.0, 0.0], guess=[0.5])
    )
    assert ok.error_code == ComputePlan.Response.OK, ok.error_msg
    assert len(ok.plan.actions) == 8 and len(ok.plan.observations) == 27
    assert list(ok.plan.observations[:3]) == pytest.approx([1.0, 0.0, 0.0])
    assert ok.plan.deadline_met
    hurried = ComputePlan.Request(observation=[1.0, 0.0, 0.0], time_budget=1e-6)
    assert not client.me.call(ComputePlan, "compute_plan", hurried).plan.deadline_met
    for request, word in (
        (ComputePlan.Request(observation=[1.0]), "1 elements"),
        (ComputePlan.Request(observation=[1.0, math.nan, 0.0]), "not finite"),
        (ComputePlan.Request(observation=[1.0, 0.0, 0.0], guess=[math.inf]), "guess"),
        (ComputePlan.Request(observation=[1.0, 0.0, 0.0], time_budget=-1.0), "time_budget"),
    ):
        bad = client.me.call(ComputePlan, "compute_plan", request)
        assert bad.error_code == ComputePlan.Response.BAD_REQUEST and word in bad.error_msg


def test_a_planners_parameters_change_at_run_time_and_the_nodes_do_not(client):
    def set_parameter(name: str, value: int | list[str]) -> Any:
        if isinstance(value, list):
            given = ParameterValue(type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=value)
        else:
            given = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
        request = SetParameters.Request(parameters=[Parameter(name=name, value=given)])
        return client.me.call(SetParameters, "planner_node/set_parameters", request).results[0]

    if not client.status.in_use:
        client.use(42)
    assert set_parameter("icem.horizon", 5).successful
    request = ComputePlan.Request(observation=[1.0, 0.0, 0.0])
    assert client.me.call(ComputePlan, "compute_plan", request).plan.horizon == 5
    assert "greater than or equal to 1" in set_parameter("icem.horizon", 0).reason
    assert not set_parameter("seed", 3).successful
    assert "elites is 999, but must be at most" in set_parameter("icem.elites", 999).reason
    assert "unknown observation element 'angel'" in set_parameter("icem.constraints", ["angel<1"]).reason
    assert client.me.call(ComputePlan, "compute_plan", request).plan.horizon == 5
    assert set_parameter("icem.constraints", ["velocity<7.5"]).successful
    assert client.me.call(ComputePlan, "compute_plan", request).error_code == ComputePlan.Response.OK
    assert set_parameter("icem.constraints", []).successful
    assert set_parameter("icem.horizon", 8).successful


def test_bad_states_are_refused_and_counted(client):
    """Sent by another publisher, as a broken driver would; the loop goes on beside them."""
    messages = client.me.listen(DiagnosticArray, "diagnostics", 10)
    broken = client.me.publisher(State, "state")
    run = client.send(episodes=1, mode=RunEpisodes.Goal.RANDOM, seed=3)
    eventually(lambda: bool(client.states), "nothing runs")
    for observation in ([math.nan, 0.0, 0.0], [1.0], []):
        bad = State(world_id=client.states[-1].world_id, episode=10**6, observation=observation, action=[0.0])
        broken.publish(bad)
    result = run.result()
    assert list(result.steps) == [200] and result.missed_steps == 0
    assert not any(action.episode == 10**6 for action in client.actions)

    def values() -> dict[str, str]:
        own = [m.status[0] for m in messages if m.status[0].name == "/planner_node"]
        return {entry.key: entry.value for entry in own[-1].values} if own else {}

    eventually(lambda: values().get("States refused") == "3", "not counted")
    assert "the spec has 3" in values()["last refusal"]
    assert values()["faults"] == "0" and values()["missed"] == "0"


def test_planner_and_world_are_killed_and_restarted_in_mid_run():
    """The planner follows; whoever dies, the loop goes on."""
    following = QUICK | {"follow": True, "episodes": -1, "mode": "random"}
    with isolated_domain(), peer() as me:
        actions = me.listen(Action, "action")

        def goes_on() -> None:
            count = len(actions)
            eventually(lambda: len(actions) > count + 50, "the loop stands still")

        with start_node(SIM, {"task": TASK}) as sim:
            with start_node(PLANNER, following) as planner:
                goes_on()
                planner.stop(signal.SIGKILL)
            with start_node(PLANNER, following) as planner:
                goes_on()
                sim.stop(signal.SIGKILL)
                with start_node(SIM, {"task": TASK}):
                    goes_on()
                    assert len({bytes(action.world_id) for action in actions}) == 2
                    assert planner.stop() == 0
                    assert "Traceback" not in planner.output


def test_a_world_that_did_not_hear_the_reset_is_asked_again():
    """As when it took the place of one that was killed, which still seems to be there."""
    asked: list[int] = []

    async def accept_the_second(goal: Any) -> GoalResponse:
        asked.append(goal.seed)
        if len(asked) == 1:
            await Future()  # for ever
        return GoalResponse.ACCEPT

    def refuse(handle: Any) -> Reset.Result:
        handle.abort()
        return Reset.Result(error_code=Reset.Result.FAILED, error_msg="the world is upside down")

    with isolated_domain(), start_node(PLANNER, QUICK) as planner, peer() as me:
        server = me.node.executor.create_task(
            lambda: ActionServer(
                me.node,
                Reset,
                "reset",
                refuse,
                goal_callback=accept_the_second,
                callback_group=ReentrantCallbackGroup(),
            )
        )
        eventually(server.done, "no action server")
        me.publisher(WorldStatus, "world_status", LATCHED_QOS).publish(WorldStatus(listeners=9))
        result = Client(me, planner).send(episodes=1, mode=RunEpisodes.Goal.RANDOM, seed=4).result()
        assert (result.error_code, result.error_msg) == (
            RunEpisodes.Result.RESET_FAILED,
            "the world is upside down",
        )
        assert asked == [4, 4]
        assert "no answer to reset 1: asking again" in planner.output


def test_actions_under_way_are_compensated_for():
    """The world delays by two steps: a model of its dynamics is taken, and answers are executed in turn."""
    sim = {"task": TASK, "action_delay_steps": 2}
    with isolated_domain(), start_node(SIM, sim), start_node(PLANNER, QUICK) as planner, peer() as me:
        client = Client(me, planner)
        client.use(1)
        result = client.send(episodes=1, mode=RunEpisodes.Goal.EXPLOIT, seed=1, max_steps=20).result()
        assert result.error_code == RunEpisodes.Result.OK and result.missed_steps == 0
        assert result.planning_ms_median > 0
        sent = {(action.episode, action.step): action.values[0] for action in client.actions}
        late = [
            state for state in client.states if state.step > 2 and (state.episode, state.step - 3) in sent
        ]
        assert len(late) >= 15
        for state in late:
            assert state.action[0] == pytest.approx(sent[state.episode, state.step - 3])


def test_without_a_model_it_waits_if_told_so():
    waiting = QUICK | {"no_model": "wait"}
    with (
        isolated_domain(),
        start_node(SIM, {"task": TASK}),
        start_node(PLANNER, waiting) as planner,
        peer() as me,
    ):
        client = Client(me, planner)
        run = client.send(episodes=1, mode=RunEpisodes.Goal.EXPLORE, seed=1, max_steps=5)
        eventually(
            lambda: "waiting for the model" in {f.phase for f in run.feedback},
            "does not say that it waits",
        )
        assert not client.actions
        client.use(1)
        assert list(run.result().steps) == [5]


@pytest.mark.slow
def test_a_planner_that_starts_again_without_a_learner_uses_the_model_that_it_kept(tmp_path):
    keeping = QUICK | {"model_folder": str(tmp_path)}
    with (
        isolated_domain(),
        start_node(SIM, {"task": TASK}),
        start_node(PLANNER, keeping) as planner,
        peer() as me,
    ):
        Client(me, planner).use(1)
        judge = children(planner)
        planner.stop(signal.SIGKILL)
        eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in judge), "the gate lives on")
    with (
        isolated_domain(),
        start_node(SIM, {"task": TASK}),
        start_node(PLANNER, keeping) as planner,
        peer() as me,
    ):
        client = Client(me, planner)  # publishes nothing
        eventually(lambda: client.status.version == 1, "does not remember")
        (pid,) = children(planner)
        os.kill(pid, signal.SIGKILL)
        client.publish(2)
        eventually(lambda: client.status.refused == 1, "not refused without a judge")
        assert "the process that judges models ended (signal 9)" in client.status.last_refusal
        assert client.status.version == 1
        client.use(3)  # judged by another one
        assert client.status.error_msg == ""


def children(node: NodeProcess) -> list[int]:
    """Processes that a node has started."""
    with open(f"/proc/{node.pid}/task/{node.pid}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


def test_a_world_of_other_dynamics_is_not_controlled():
    with isolated_domain(), peer() as me, start_node(SIM, {"task": "cartpole_swingup"}):
        actions = me.listen(Action, "action")
        with start_node(PLANNER, QUICK | {"follow": True}) as planner:
            eventually(lambda: "not acting" in planner.output, "says nothing")
            assert "cartpole_swingup" in planner.output
            result = Client(me, planner).send(episodes=1).result()
            assert result.error_code == RunEpisodes.Result.FAILED
            assert "cartpole_swingup" in result.error_msg
            assert not actions


def test_a_mistake_in_the_parameters_is_told_in_one_sentence():
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"planner": "icme"}, "unknown planner 'icme' (did you mean 'icem'?)"),
        ({"task": "cart"}, "unknown task 'cart'"),
        ({"icem.horizon": 0}, "'icem.horizon' is 0"),
        ({"horizon": 3}, "unknown parameter 'horizon'"),
        ({"mode": "fast"}, "'mode' is 'fast'"),
    ]
    with ExitStack() as stack:
        stack.enter_context(isolated_domain())
        nodes = [stack.enter_context(start_node(PLANNER, parameters)) for parameters, _ in mistakes]
        for node, (_, sentence) in zip(nodes, mistakes, strict=True):
            assert node.wait() == 2
            lines = node.output.strip().splitlines()
            assert len(lines) == 1 and sentence in lines[0], lines
