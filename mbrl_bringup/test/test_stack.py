"""The launch arguments become processes, and every mistake one sentence."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mbrl_bringup.stack import Process, default_run_dir, file_parameters, resolve, share
from mbrl_dynamics.episodes import EpisodeStore
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task, names
from mbrl_dynamics.testing import point_mass_spec
from mbrl_dynamics.transition import Transition
from mbrl_planner.agent_trainer import save
from mbrl_planner.agents.sac import SAC, SACConfig


def by_name(processes: list[Process]) -> dict[str, Process]:
    return {process.name: process for process in processes}


def write(path: Path, content: Any) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_the_stack_is_one_process_a_node_in_the_order_of_the_flow() -> None:
    assert [process.name for process in resolve({})] == ["sim_node", "dynamics_node", "planner_node"]


@pytest.mark.parametrize("task", names("tasks"))
def test_each_task_has_parameters_of_its_own_that_its_nodes_accept(task: str) -> None:
    assert share(f"config/{task}.yaml").is_file()
    planner = "random_shooting" if make_task(task).spec.discrete else "icem"
    stack = by_name(resolve({"task": task, "planner": planner}))
    assert stack["sim_node"].configuration["task"] == task


@pytest.mark.parametrize("task", ["dm_control/reacher-easy", "gymnasium/InvertedPendulum-v5"])
def test_a_task_of_a_family_may_have_parameters_too(task: str) -> None:
    assert share(f"config/{task}.yaml").is_file()
    policy = by_name(resolve({"task": task, "agent": "mbpo"}))["policy_node"]
    assert policy.configuration["mbpo.hidden"] == [128, 128]


@pytest.mark.parametrize("task", ["dm_control/cheetah-run", "gymnasium/Pendulum-v1"])
def test_a_task_of_a_family_is_a_task(task: str) -> None:
    stack = by_name(resolve({"task": task}))
    assert stack["sim_node"].parameters["task"] == stack["planner_node"].parameters["task"] == task
    assert Path(default_run_dir(task, time.localtime())).name.endswith(task.replace("/", "-"))


def test_arguments_win_over_the_file_of_the_user_which_wins_over_that_of_the_task(tmp_path: Path) -> None:
    mine = {"/**/sim_node": {"ros__parameters": {"tail_steps": 7, "seed": 3}}}
    mine |= {"/**/planner_node": {"ros__parameters": {"icem": {"horizon": 11}}}}
    stack = by_name(resolve({"seed": 9, "params_file": write(tmp_path / "mine.yaml", mine)}))
    assert stack["sim_node"].parameters["tail_steps"] == 7
    assert stack["sim_node"].parameters["seed"] == 9
    assert stack["planner_node"].parameters["icem.horizon"] == 11
    assert stack["planner_node"].configuration["icem.horizon"] == 11


def test_text_and_typed_arguments_mean_the_same() -> None:
    text = {
        "task": "pendulum",
        "seed": "4",
        "real_time_factor": "2",
        "mode": "realtime",
        "rviz": "true",
        "model": "",
    }
    typed = {"task": "pendulum", "seed": 4, "real_time_factor": 2.0, "mode": "realtime", "rviz": True}
    assert resolve(text) == resolve(typed)


def test_a_world_that_nobody_controls_runs_alone() -> None:
    assert [process.name for process in resolve({"mode": "free"})] == ["sim_node"]


def test_a_person_takes_the_place_of_the_planner_and_the_world_does_not_wait() -> None:
    stack = by_name(resolve({"agent": "teleop", "task": "pendulum"}))
    assert list(stack) == ["sim_node", "dynamics_node", "teleop_node"]
    assert stack["sim_node"].parameters["mode"] == "realtime"
    person = stack["teleop_node"].configuration["controller_id"]
    assert person in stack["dynamics_node"].configuration["demonstrators"]


# A robot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "world"),
    [({}, ["driver_node", "robot_bridge"]), ({"driver": "false"}, ["robot_bridge"])],
)
def test_a_robot_takes_the_place_of_the_simulator(given: dict[str, str], world: list[str]) -> None:
    stack = by_name(resolve({"robot": "cartpole", **given}))
    assert list(stack) == [*world, "dynamics_node", "planner_node"]
    assert stack["planner_node"].parameters["task"] == "cartpole_swingup"
    assert stack["planner_node"].parameters["no_model"] == "safe", "nothing moves before somebody says so"
    assert stack["planner_node"].parameters["time_budget"] == pytest.approx(0.03), "a robot does not wait"
    if "driver_node" in stack:
        assert stack["driver_node"].parameters["command_timeout"] == 0.2, "as the robot's file declares"


def test_on_a_robot_a_policy_learns_while_it_acts_and_first_data_are_asked_for_by_name() -> None:
    stack = by_name(resolve({"robot": "cartpole", "agent": "sac", "no_model": "random", "limits": "0.2"}))
    assert stack["policy_node"].parameters["wait_for_model"] is False
    assert stack["policy_node"].parameters["no_model"] == "random"
    assert stack["robot_bridge"].parameters == {"robot": "cartpole", "limits": 0.2, "passive": False}


def test_a_file_of_the_user_is_a_robot_wherever_the_bridge_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(share("config/robots/cartpole.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    bridge = by_name(resolve({"robot": "mine.yaml"}))["robot_bridge"]
    assert bridge.parameters["robot"] == str(tmp_path / "mine.yaml")
    assert Path(default_run_dir("some/mine.yaml", time.localtime())).name.endswith("-mine")


def test_a_robot_may_be_faster_than_its_task(tmp_path: Path) -> None:
    file = tmp_path / "fast.yaml"
    file.write_text(share("config/robots/cartpole.yaml").read_text() + "\naction_repeat: 2\n")
    planner = by_name(resolve({"robot": str(file)}))["planner_node"].parameters
    assert planner["action_repeat"] == 2, "the planner asks for the same task"
    assert planner["time_budget"] == pytest.approx(0.6 * 0.02)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"robot": "cartpol"}, "unknown robot 'cartpol' .did you mean 'cartpole'"),
        ({"robot": "cartpole", "task": "pendulum"}, "'task' is 'pendulum', but robot 'cartpole' is for"),
        ({"robot": "cartpole", "mode": "lockstep"}, "argument 'mode' is for simulation"),
        ({"robot": "cartpole", "limits": "1.5"}, "'limits' is '1.5'"),
        ({"limits": "0.5"}, "argument 'limits' is for robots"),
        ({"robot": "cartpole", "no_model": "wild"}, "'no_model' is 'wild'"),
    ],
)
def test_a_mistake_about_a_robot_is_told_in_one_sentence(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(given)


@pytest.mark.parametrize(
    ("agent", "nodes"),
    [
        ("mpc", ["sim_node", "dynamics_node", "planner_node"]),
        ("sac", ["sim_node", "policy_node"]),
        ("mbpo", ["sim_node", "dynamics_node", "policy_node"]),
        ("mbrl_planner.agents.sac:SAC", ["sim_node", "policy_node"]),
    ],
)
def test_the_agent_says_which_nodes_there_are_and_one_of_them_records(agent: str, nodes: list[str]) -> None:
    stack = by_name(resolve({"agent": agent, "task": "pendulum", "run_dir": "/no/such/run"}))
    assert list(stack) == nodes
    recorders = [name for name, process in stack.items() if process.configuration.get("record")]
    assert recorders == (["policy_node"] if agent.lower().endswith("sac") else ["dynamics_node"])
    assert stack.get("dynamics_node", stack["sim_node"]).parameters.get("model", "ensemble") == "ensemble"


def test_a_policy_learns_between_episodes_where_the_world_waits_and_beside_it_in_real_time() -> None:
    waits = [
        by_name(resolve({"agent": "sac", "mode": mode}))["policy_node"].parameters["wait_for_model"]
        for mode in ("lockstep", "realtime")
    ]
    assert waits == [True, False]


def test_all_nodes_know_of_another_action_repeat() -> None:
    stack = by_name(resolve({"agent": "mbpo", "action_repeat": 2}))
    assert stack["sim_node"].parameters["action_repeat"] == 2
    assert stack["policy_node"].parameters["action_repeat"] == 2


@pytest.mark.parametrize("agent", ["mpc", "mbpo"])
def test_a_reward_that_only_the_world_knows_is_learned(agent: str) -> None:
    stack = by_name(resolve({"task": "dm_control/cheetah-run", "agent": agent}))
    assert stack["dynamics_node"].parameters["ensemble.rewards"] is True
    known = by_name(resolve({"task": "pendulum", "agent": agent}))["dynamics_node"]
    assert known.configuration["ensemble.rewards"] is False


def test_a_model_without_rewards_is_for_tasks_that_tell_theirs() -> None:
    with pytest.raises(UserError, match="model 'gp' cannot learn rewards, and task 'dm_control/cheetah-run'"):
        resolve({"task": "dm_control/cheetah-run", "model": "gp"})
    resolve({"task": "pendulum", "model": "gp"})


def sac_for(task: str, folder: Path) -> None:
    """A checkpoint of a small sac."""
    spec = make_task(task).spec
    save(folder, SAC(spec, SACConfig(hidden=(8,))), "sac", 0, 0, {})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, ""),
        ({"task": "cartpole_pets"}, "is of task 'pendulum', but 'cartpole_pets' is wanted"),
        ({"agent": "mbpo"}, "is of agent 'sac', but 'mbpo' is wanted"),
        ({"action_delay_steps": 2}, "is of dynamics hash '.*', but '.*' is wanted"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_started(
    tmp_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    small = {"/**/policy_node": {"ros__parameters": {"sac": {"hidden": [8]}, "mbpo": {"hidden": [8]}}}}
    given = {"agent": "sac", "task": "pendulum", "run_dir": str(tmp_path), **arguments}
    given["params_file"] = write(tmp_path / "small.yaml", small)
    sac_for("pendulum", tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint" / "agent.safetensors").read_bytes()
    if sentence:
        with pytest.raises(UserError, match=sentence):
            resolve(given)
    else:
        resolve(given)
    assert (tmp_path / "checkpoint" / "agent.safetensors").read_bytes() == before


def test_a_dataset_of_other_dynamics_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "dataset", point_mass_spec())
    store.add(Transition(bytes(16), 0, 0, np.zeros(2), np.zeros(1), first=True))
    store.close()
    with pytest.raises(UserError, match=r"is of task 'point_mass' \(2 observations.*but task 'pendulum' \(3"):
        resolve({"agent": "sac", "task": "pendulum", "run_dir": str(tmp_path)})


def test_rviz_shows_a_robot_by_its_description() -> None:
    stack = by_name(resolve({"robot": "arm", "rviz": True}))
    publisher = stack["robot_state_publisher"]
    assert "<robot name=" in publisher.parameters["robot_description"]
    assert not stack["rviz2"].parameters["use_sim_time"], "a robot has no clock of its own"
    assert "robot_state_publisher" not in by_name(resolve({"robot": "cartpole", "rviz": True}))
    assert "robot_state_publisher" not in by_name(resolve({"robot": "arm"}))


def test_a_program_is_found_where_its_package_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process("viewer", "some_viewer", "viewer_of_nobody")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    with pytest.raises(UserError, match="'viewer_of_nobody' is not installed here"):
        process.check_installed()
    program = tmp_path / "lib" / "some_viewer" / "viewer_of_nobody"
    program.parent.mkdir(parents=True)
    program.touch()
    process.check_installed()
    assert process.command(Path("p.yaml"))[0] == str(program)


def test_rviz_is_started_with_the_view_of_this_package() -> None:
    rviz = by_name(resolve({"rviz": True}))["rviz2"]
    assert Path(rviz.arguments[1]).is_file()
    assert rviz.command(Path("p.yaml"))[0] == "rviz2"


def test_a_namespace_holds_a_whole_robot_with_a_clock_of_its_own() -> None:
    for process in resolve({"namespace": "lab/robot1", "rviz": True}):
        assert process.full_name == f"/lab/robot1/{process.name}"
        assert ("/clock", "/lab/robot1/clock") in process.remappings
        assert ("diagnostics", "/diagnostics") in process.remappings


def test_numbers_that_yaml_takes_for_text_reach_the_node_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("/**/sim_node: {ros__parameters: {repeat_period: 5e-1}}")
    assert by_name(resolve({"params_file": str(path)}))["sim_node"].parameters["repeat_period"] == 0.5


def test_the_parameters_of_a_process_survive_the_way_through_its_file(tmp_path: Path) -> None:
    for process in resolve({"namespace": "r", "task": "pendulum"}):
        path = tmp_path / process.name
        path.write_text(process.parameters_yaml())
        assert file_parameters(path, process.name, "/r") == dict(process.parameters)


@pytest.mark.parametrize(
    ("section", "matches"),
    [
        ("/**", True),
        ("/**/sim_node", True),
        ("sim_node", False),
        ("/r/sim_node", True),
        ("/*/sim_node", True),
        ("/**/other", False),
        ("/*", False),
    ],
)
def test_sections_follow_the_wildcards_of_ros(tmp_path: Path, section: str, matches: bool) -> None:
    path = tmp_path / "p.yaml"
    write(path, {section: {"ros__parameters": {"a": {"b": 1}}}})
    assert file_parameters(path, "sim_node", "/r") == ({"a.b": 1} if matches else {})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "nope"}, "unknown task 'nope'; valid: .*pendulum"),
        ({"task": "pendulm"}, "did you mean 'pendulum'"),
        (
            {"task": "dm_control/cheetah-jump"},
            r"unknown task 'dm_control/cheetah-jump' \(did you mean 'dm_control/cheetah-run'\?\); valid: ",
        ),
        ({"task": "gymnasium/Hopper"}, "unknown task 'gymnasium/Hopper'.*valid: .*gymnasium/CartPole-v1"),
        (
            {"task": "dm_contrl/cheetah-run"},
            "unknown family of tasks 'dm_contrl'.*valid: dm_control, gymnasium",
        ),
        ({"planner": "nope"}, "unknown planner 'nope'; valid: cem, .*icem, .*mppi"),
        ({"model": "nope"}, "unknown model 'nope'; valid: .*ensemble"),
        (
            {"task": "gymnasium/CartPole-v1"},
            "planner 'icem' needs continuous actions.*'random_shooting' and 'mcts' take",
        ),
        (
            {"task": "pendulum", "planner": "ilqr", "model": "simulator"},
            "planner 'ilqr' needs a model with gradients, which SimulatorModel has not; .*icem",
        ),
        (
            {"task": "pendulum", "planner": "lqr", "model": "rssm"},
            "planner 'lqr' needs a model whose state is what is seen, but RSSM has a memory; .*icem",
        ),
        (
            {"task": "dm_control/reacher-easy", "planner": "gradient"},
            "planner 'gradient' needs a reward with gradients, but that of task '.*-easy' only jumps; .*icem",
        ),
        ({"agent": "nope"}, "unknown agent 'nope'; valid: .*mbpo, mpc, .*sac"),
        ({"agent": "mbop"}, "did you mean 'mbpo'"),
        ({"agent": "mbrl_planner.agents.mpc:MPC"}, "learns no policy"),
        ({"agent": "sac", "task": "gymnasium/CartPole-v1"}, "needs continuous actions"),
        ({"agent": "sac", "device": "cuda:7"}, "device 'cuda:7' is not on this machine; valid: cpu"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not on this machine; valid: cpu"),
        ({"tusk": "pendulum"}, "unknown parameter 'tusk'.*valid: .*task"),
        ({"seed": "many"}, "'seed' is 'many'"),
        ({"seed": -1}, "'seed' is -1"),
        ({"mode": "fast"}, "'mode' is 'fast', but it should be 'lockstep', 'realtime' or 'free'"),
        ({"real_time_factor": 0}, "'real_time_factor' is 0"),
        ({"action_delay_steps": 1000}, "sim_node: .*'action_delay_steps' is 1000"),
        ({"namespace": "1robot!"}, "'namespace' is '1robot!'"),
        ({"params_file": "/no/such/file"}, "no such file"),
        ({"rviz": "maybe"}, "'rviz' is 'maybe'"),
    ],
)
def test_a_bad_argument_is_named_with_what_is_valid(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(arguments)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"/**/sim_node": {"ros__parameters": {"tusk": 1}}}, "sim_node: unknown parameter 'tusk'"),
        ({"/**/sim_node": {"ros__parameters": {"tail_steps": "far"}}}, "'tail_steps' is 'far'"),
        ({"/**/planner_node": {"ros__parameters": {"icem": {"horizon": 0}}}}, "'icem.horizon' is 0"),
        ({"/**/planner_node": {"ros__parameters": {"icem": {"elites": 99}}}}, "elites is 99, but must be at"),
        (
            {"/**/planner_node": {"ros__parameters": {"icem": {"constraints": ["cart<1"]}}}},
            "unknown observation element 'cart'.*valid: .*cart_position",
        ),
        (
            {"/**/planner_node": {"ros__parameters": {"icme": {"horizon": 9}}}},
            "'icme.horizon' of planner_node",
        ),
        ({"/**/dynamics_node": {"ros__parameters": {"ensemble": {"members": 0}}}}, "'ensemble.members' is 0"),
        ({"/**/sin_node": {"ros__parameters": {"seed": 1}}}, "section '/\\*\\*/sin_node'.*sim_node"),
        ({"/**/sim_node": {"seed": 1}}, "not a ROS parameters file"),
        ([1, 2], "not a ROS parameters file"),
    ],
)
def test_a_bad_parameter_file_is_refused_before_anything_is_started(
    tmp_path: Path, content: Any, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve({"params_file": write(tmp_path / "bad.yaml", content)})


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(UserError, match="not valid YAML"):
        resolve({"params_file": str(tmp_path / "bad.yaml")})
