"""The launch file starts what `mbrl up` starts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mbrl_bringup.stack import Process, StackConfig, argument_text, resolve
from mbrl_dynamics.config import describe

LAUNCH_FILE = Path(__file__).resolve().parents[1] / "launch" / "sim_mpc.launch.py"
GIVEN = {"task": "pendulum", "namespace": "robot1", "seed": "3", "rviz": "true", "run_dir": "/tmp/some-run"}

real_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None or importlib.util.find_spec("launch") is None,
    reason="launch and launch_ros are not installed (they come with a full ROS 2)",
)


class Recorded:
    """Stands for any class of launch: remembers what it was made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


class LaunchConfiguration(Recorded):
    def perform(self, context: Any) -> str:
        return str(context.values[self.args[0]])


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The launch file as a module, with stand-ins for launch and launch_ros."""
    names = {
        "launch": ["LaunchContext", "LaunchDescription", "LaunchDescriptionEntity"],
        "launch.actions": ["DeclareLaunchArgument", "OpaqueFunction"],
        "launch.substitutions": [],
        "launch_ros": [],
        "launch_ros.actions": ["Node"],
        "launch_ros.parameter_descriptions": [],
    }
    for name, classes in names.items():
        module = types.ModuleType(name)
        for cls in classes:
            setattr(module, cls, type(cls, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["launch.substitutions"].LaunchConfiguration = LaunchConfiguration  # type: ignore[attr-defined]
    as_it_is = lambda value, value_type: value_type(value)  # noqa: E731
    sys.modules["launch_ros.parameter_descriptions"].ParameterValue = as_it_is  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("sim_mpc_launch", LAUNCH_FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def context(**given: str) -> Any:
    defaults = {field.name: argument_text(field.default) for field in describe(StackConfig)}
    return types.SimpleNamespace(values={**defaults, **given}, argv=[f"{k}:={v}" for k, v in given.items()])


def as_process(node: Any) -> dict[str, Any]:
    keys = ("package", "executable", "name", "namespace", "parameters", "remappings", "arguments")
    return {key: node.kwargs[key] for key in keys}


def expected(process: Process) -> dict[str, Any]:
    return {
        "package": process.package,
        "executable": process.executable,
        "name": process.name,
        "namespace": process.namespace,
        "parameters": [dict(process.parameters)],
        "remappings": list(process.remappings),
        "arguments": list(process.arguments),
    }


def test_the_processes_are_those_of_mbrl_up(launch_file: Any) -> None:
    *_, opaque = launch_file.generate_launch_description().args[0]
    nodes = opaque.kwargs["function"](context(**GIVEN))
    assert [as_process(node) for node in nodes] == [expected(process) for process in resolve(GIVEN)]


def test_a_robot_brings_its_own_task(launch_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    *_, opaque = launch_file.generate_launch_description().args[0]
    given = context(robot="arm", run_dir="/tmp/some-run")
    wanted = {"robot": "arm", "run_dir": "/tmp/some-run"}
    assert [as_process(node) for node in opaque.kwargs["function"](given)] == [
        expected(process) for process in resolve(wanted)
    ]
    included = context(robot="arm", run_dir="/tmp/some-run")
    included.argv = []  # another launch file says so
    assert len(opaque.kwargs["function"](included)) == len(resolve(wanted))
    with pytest.raises(SystemExit):
        opaque.kwargs["function"](context(robot="arm", task="cartpole_swingup"))
    assert "robot 'arm' is for 'arm_reach'" in capsys.readouterr().err


def test_each_argument_is_declared_with_its_description_and_default(launch_file: Any) -> None:
    *declared, _ = launch_file.generate_launch_description().args[0]
    assert {d.args[0]: (d.kwargs["default_value"], d.kwargs["description"]) for d in declared} == {
        field.name: (argument_text(field.default), field.description) for field in describe(StackConfig)
    }
    assert all(d.kwargs["description"] for d in declared)


def test_the_declared_defaults_are_valid(launch_file: Any) -> None:
    *_, opaque = launch_file.generate_launch_description().args[0]
    assert len(opaque.kwargs["function"](context())) == 3


@pytest.mark.parametrize("given", [{"task": "nope"}, {"tusk": "pendulum"}])
def test_a_mistake_ends_the_launch_with_exit_code_2(
    launch_file: Any, capsys: pytest.CaptureFixture[str], given: dict[str, str]
) -> None:
    *_, opaque = launch_file.generate_launch_description().args[0]
    with pytest.raises(SystemExit) as end:
        opaque.kwargs["function"](context(**given))
    assert end.value.code == 2
    assert "valid: " in capsys.readouterr().err


def test_each_process_can_be_found_by_ros2_run() -> None:
    for process in [*resolve({}), *resolve({"robot": "cartpole"})]:
        prefix = Path(os.environ["AMENT_PREFIX_PATH"].split(":")[0]).parent / process.package
        candidates = [
            Path(p) / "lib" / process.package / process.executable
            for p in (*os.environ["AMENT_PREFIX_PATH"].split(":"), str(prefix))
        ]
        assert any(candidate.exists() for candidate in candidates), process.executable


@real_launch
def test_it_runs_under_the_real_launch(tmp_path: Path) -> None:
    from mbrl_dynamics.ros.testing import isolated_domain

    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from launch import LaunchDescription, LaunchService\n"
        "from launch.actions import IncludeLaunchDescription, RegisterEventHandler, Shutdown\n"
        "from launch.event_handlers import OnProcessIO\n"
        "from launch.launch_description_sources import PythonLaunchDescriptionSource\n"
        "arguments = dict(argument.split(':=', 1) for argument in sys.argv[2:])\n"
        "source = PythonLaunchDescriptionSource(sys.argv[1])\n"
        "seen = OnProcessIO(on_stderr=lambda event: Shutdown() if b'task pendulum' in event.text else None,\n"
        "                   on_stdout=lambda event: Shutdown() if b'task pendulum' in event.text else None)\n"
        "service = LaunchService(argv=sys.argv[2:])\n"
        "service.include_launch_description(LaunchDescription([RegisterEventHandler(seen),\n"
        "    IncludeLaunchDescription(source, launch_arguments=arguments.items())]))\n"
        "sys.exit(service.run())\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(LAUNCH_FILE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=tmp_path, check=False)

    with isolated_domain():
        good = run("task:=pendulum", "mode:=free")
        assert good.returncode == 0, good.stderr
        assert "task pendulum, free" in good.stdout + good.stderr
        bad = run("task:=nope")
        assert bad.returncode == 2
        assert "unknown task 'nope'" in bad.stderr


def test_the_launch_file_of_policies_is_the_same_with_another_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, classes in {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument", "IncludeLaunchDescription"],
        "launch.launch_description_sources": ["PythonLaunchDescriptionSource"],
    }.items():
        module = types.ModuleType(name)
        for cls in classes:
            setattr(module, cls, type(cls, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("sim_policy", LAUNCH_FILE.with_name("sim_policy.launch.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    argument, include = module.generate_launch_description().args[0]
    assert argument.args == ("agent",) and argument.kwargs["default_value"] == "mbpo"
    assert argument.kwargs["description"].startswith("what acts")
    assert include.args[0].args == (str(LAUNCH_FILE),)
