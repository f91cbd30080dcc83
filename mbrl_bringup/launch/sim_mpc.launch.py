"""A simulated robot that learns a model of itself and plans with it:

    ros2 launch mbrl_bringup sim_mpc.launch.py task:=cartpole_swingup rviz:=true

The arguments and the processes are those of `mbrl up`: both come from mbrl_bringup/stack.py.
"""

import sys
import time
from typing import Any

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from mbrl_bringup.stack import Process, StackConfig, argument_text, default_run_dir, resolve
from mbrl_dynamics.config import describe, one_of
from mbrl_dynamics.errors import UserError


def generate_launch_description() -> LaunchDescription:
    """One DeclareLaunchArgument an argument, then the processes."""
    declared = [
        DeclareLaunchArgument(
            field.name, default_value=argument_text(field.default), description=field.description
        )
        for field in describe(StackConfig)
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_processes)])


def _processes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    try:
        return [_node(process) for process in resolve(_given(context))]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)  # launch would turn an exception into exit code 1


def _given(context: LaunchContext) -> dict[str, str]:
    """The arguments that somebody gave: a robot has a task of its own, which no default may contradict."""
    typed = {argument.partition(":=")[0] for argument in context.argv}
    given = {}
    for name in typed:  # launch itself would ignore an unknown one
        one_of("argument", name, (field.name for field in describe(StackConfig)))
    for field in describe(StackConfig):
        value = LaunchConfiguration(field.name).perform(context)
        if field.name in typed or value != argument_text(field.default):
            given[field.name] = value
    whose = given.get("robot") or given.get("task") or StackConfig().task
    given["run_dir"] = given.get("run_dir") or default_run_dir(whose, time.localtime())
    return given


def _node(process: Process) -> Node:
    return Node(
        package=process.package,
        executable=process.executable,
        name=process.name,
        namespace=process.namespace,
        parameters=[{name: _as_it_is(value) for name, value in process.parameters.items()}],
        remappings=list(process.remappings),
        arguments=list(process.arguments),
        ros_arguments=["--enclave", process.full_name],
        output="screen",
        emulate_tty=True,
        respawn=bool(process.module),
        respawn_delay=1.0,
        sigterm_timeout="5",
        sigkill_timeout="5",
    )


def _as_it_is(value: Any) -> Any:
    """A parameter's value; launch would read a text as YAML, which a URDF is not."""
    return ParameterValue(value, value_type=str) if isinstance(value, str) else value
