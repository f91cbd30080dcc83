"""What runs: the launch arguments, and the one function that resolves them to a list of processes.

`ros2 launch mbrl_bringup sim_mpc.launch.py` and `mbrl up` start the same list. Everything is checked here,
before anything is started. Pure: reads the parameter files, starts nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

import mbrl_bringup
from mbrl_bringup import nodes
from mbrl_dynamics.config import Field, build, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import check

_NAMESPACE = re.compile(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*")


@config
class StackConfig:
    """The launch arguments. None = as the parameter files say, else the node's own default."""

    task: Annotated[
        str, Field(description="what to learn: an installed task, family/name, or package.module:Class")
    ] = "cartpole_swingup"
    agent: Annotated[
        str,
        Field(
            description="what acts: mpc, teleop (a person with a joystick), or one that learns a policy: "
            "installed, or package.module:Class"
        ),
    ] = "mpc"
    model: Annotated[
        str,
        Field(description="dynamics model: installed, or package.module:Class; empty = the agent's choice"),
    ] = ""
    planner: Annotated[
        str, Field(description="planner of mpc: an installed one, or package.module:Class")
    ] = "icem"
    device: Annotated[
        str, Field(description="where a policy learns, or plans are computed: cpu, cuda, cuda:1 ...")
    ] = "cpu"
    robot: Annotated[
        str,
        Field(
            description="a robot in the simulator's place: its file (YAML), or an installed one; empty = none"
        ),
    ] = ""
    driver: Annotated[
        bool, Field(description="whether a simulated stand-in is the robot; false = its own driver runs")
    ] = True
    limits: Annotated[
        float, Field(gt=0, le=1, description="share of the robot's limits that is allowed [1]")
    ] = 1.0
    passive: Annotated[
        bool, Field(description="a dry run on the robot: plans are made, nothing is commanded")
    ] = False
    no_model: Annotated[
        Literal["random", "wait", "safe"] | None,
        Field(
            description="what is done before there is a model or policy; on a robot safe, if nothing is said"
        ),
    ] = None
    namespace: Annotated[str, Field(description="namespace of the whole robot; empty = none")] = ""
    seed: Annotated[int, Field(ge=0, description="of the world, the model and the planner")] = 0
    mode: Annotated[
        Literal["lockstep", "realtime", "free"] | None,
        Field(description="the world waits for each answer, does not wait, or is controlled by nobody"),
    ] = None
    action_repeat: Annotated[
        int | None,
        Field(ge=0, description="frames of the task in a control period [1]; 0 = as the task says"),
    ] = None
    real_time_factor: Annotated[
        float | None, Field(gt=0, description="speed of the simulated clock in real time [1]")
    ] = None
    action_delay_steps: Annotated[
        int | None,
        Field(
            ge=0,
            description="an action takes effect this much later, of which a policy knows nothing [steps]",
        ),
    ] = None
    time_budget: Annotated[
        float | None,
        Field(
            ge=0,
            description="planning stops after this long with the best so far [s]; 0 = never",
        ),
    ] = None
    episodes: Annotated[
        int,
        Field(
            ge=-1, description="that the agent runs by itself; -1 = without end, 0 = none until it is asked"
        ),
    ] = -1
    run_dir: Annotated[
        str, Field(description="folder for dataset and checkpoint; empty = runs/<time>-<task>")
    ] = ""
    record: Annotated[bool, Field(description="whether transitions are written to run_dir/dataset")] = True
    rviz: Annotated[bool, Field(description="whether to start RViz 2")] = False
    params_file: Annotated[
        str, Field(description="ROS parameters file (YAML) on top of the task's own; empty = none")
    ] = ""


@dataclass(frozen=True)
class Process:
    """One process of a stack.

    Attributes:
        name: node name.
        package, executable: as `ros2 run` knows it.
        module: Python module to run it as `python -m`; empty = `executable` is a program on the PATH.
        namespace: empty or absolute, for example "/robot1".
        parameters: flat ROS parameters that differ from the node's defaults.
        remappings: pairs (from, to).
        arguments: command-line arguments before `--ros-args`.
        configuration: the whole configuration, defaults included, for people to read.
    """

    name: str
    package: str
    executable: str
    module: str = ""
    namespace: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """Node name with namespace."""
        return f"{self.namespace}/{self.name}"

    def command(self, parameters_file: Path) -> list[str]:
        """The command line that starts it, with its parameters in a file (see `parameters_yaml`)."""
        program = [sys.executable, "-m", self.module] if self.module else [self._program or self.executable]
        ros = ["--ros-args", "-r", f"__node:={self.name}", "--params-file", str(parameters_file)]
        ros += ["--enclave", self.full_name]  # counts where ROS_SECURITY_ENABLE is set, see security.py
        if self.namespace:
            ros += ["-r", f"__ns:={self.namespace}"]
        for source, target in self.remappings:
            ros += ["-r", f"{source}:={target}"]
        return [*program, *self.arguments, *ros]

    def check_installed(self) -> None:
        """Look for a program that is not Python.

        Raises:
            UserError: it is not installed.
        """
        if not self.module and self._program is None:
            raise UserError(f"'{self.executable}' is not installed here: it comes with a full ROS 2")

    @property
    def _program(self) -> str | None:
        """A program that is not Python: on the PATH, or where a package has those that `ros2 run` finds."""
        folders = (Path(prefix, "lib", self.package) for prefix in _prefixes())
        return shutil.which(self.executable) or next(
            (str(folder / self.executable) for folder in folders if (folder / self.executable).is_file()),
            None,
        )

    def parameters_yaml(self) -> str:
        """The parameters as the text of a ROS parameters file."""
        return yaml.safe_dump({self.full_name: {"ros__parameters": dict(self.parameters)}})


def configured(arguments: Mapping[str, Any]) -> StackConfig:
    """Launch arguments, as text or typed, completed by the robot's file. "" and None = the default.

    Raises:
        UserError: an argument is unknown, of the wrong type, out of range, or not for this robot.
    """
    given = {name: value for name, value in arguments.items() if value not in ("", None)}
    stack = build(StackConfig, given)
    robot = nodes.robot_of(stack)
    return stack if robot is None else nodes.on_robot(stack, robot, given)


def resolve(arguments: Mapping[str, Any]) -> list[Process]:
    """Turn launch arguments, as text or typed, into the processes to start. "" and None = the default.

    Raises:
        UserError: an argument or a parameter is unknown, of the wrong type or out of range, or a file is
            not what it should be.
    """
    stack = configured(arguments)
    robot = nodes.robot_of(stack)
    for kind in ("task", "model", "planner"):
        if getattr(stack, kind):
            check(f"{kind}s", getattr(stack, kind))
    namespace = _namespace(stack.namespace)
    wanted = nodes.wanted(stack)
    parameters = nodes.arguments_as_parameters(stack, robot)
    files = [path for path in (task_file(stack.task), params_file(stack.params_file)) if path is not None]
    for path in files:
        _check_sections(path, namespace)
    processes = []
    for name in wanted:
        merged: dict[str, Any] = {}
        for path in files:
            merged |= file_parameters(path, name, namespace)
        merged |= parameters[name]
        if name == "dynamics_node":
            merged = nodes.learned_reward(stack, merged)
        processes.append(_process(name, namespace, merged, stack))
    if "planner_node" in wanted:
        (planner,) = [process for process in processes if process.name == "planner_node"]
        nodes.check_planner(planner.configuration)
    if "policy_node" in wanted:
        nodes.check_policy(stack, robot, {process.name: process.configuration for process in processes})
    if stack.rviz:
        if robot is not None and robot.description:
            processes.append(_description(namespace, Path(robot.description)))
        processes.append(_rviz(namespace, simulated=robot is None))
    return processes


def argument_text(value: Any) -> str:
    """An argument's default as `ros2 launch` shows and takes it; empty = None."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def default_run_dir(what: str, now: time.struct_time) -> str:
    """runs/<time>-<name of a task, or of a robot's file>, in the working directory."""
    name = Path(what).stem if what.endswith(".yaml") else what.rpartition(":")[2].replace("/", "-")
    return str(Path("runs", f"{time.strftime('%Y-%m-%d_%H-%M-%S', now)}-{name}").absolute())


def _process(name: str, namespace: str, parameters: dict[str, Any], stack: StackConfig) -> Process:
    package, module = nodes.NODES[name]
    configuration = nodes.checked(name, parameters, stack)
    return Process(
        name=name,
        package=package,
        executable=name,
        module=module,
        namespace=namespace,
        parameters={key: configuration.get(key, value) for key, value in parameters.items()},
        remappings=_remappings(namespace),
        configuration=configuration,
    )


def _description(namespace: str, urdf: Path) -> Process:
    """Tells RViz what a robot looks like, and where its links are by its joint_states."""
    return Process(
        name="robot_state_publisher",
        package="robot_state_publisher",
        executable="robot_state_publisher",
        namespace=namespace,
        parameters={"robot_description": urdf.read_text()},
        remappings=_remappings(namespace),
    )


def _rviz(namespace: str, *, simulated: bool) -> Process:
    return Process(
        name="rviz2",
        package="rviz2",
        executable="rviz2",
        namespace=namespace,
        parameters={"use_sim_time": simulated},
        remappings=_remappings(namespace),
        arguments=("-d", str(share("rviz/mbrl.rviz"))),
    )


def _prefixes() -> list[str]:
    return [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]


def _remappings(namespace: str) -> tuple[tuple[str, str], ...]:
    """Robots share /diagnostics, whose entries bear the node's full name, but each has its own clock."""
    return (("diagnostics", "/diagnostics"), *((("/clock", f"{namespace}/clock"),) if namespace else ()))


def _namespace(name: str) -> str:
    if not name:
        return ""
    if not _NAMESPACE.fullmatch(name):
        raise UserError(
            f"argument 'namespace' is '{name}', but it must be names of letters, digits and _ joined by /"
        )
    return "/" + name.removeprefix("/")


def share(path: str) -> Path:
    """A file of this package, installed (share/mbrl_bringup) or in its source folder."""
    here = Path(mbrl_bringup.__file__).resolve().parents[1]
    if (here / "package.xml").exists():  # source folder, also of a --symlink-install
        return here / path
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory("mbrl_bringup")) / path


def task_file(task: str) -> Path | None:
    """The parameters that come with a task; None = there are none."""
    path = share(f"config/{task}.yaml")
    return path if ":" not in task and path.exists() else None


def params_file(name: str) -> Path | None:
    """A parameters file that the user named; None = no name.

    Raises:
        UserError: there is no such file.
    """
    if not name:
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"argument 'params_file' is '{name}', but there is no such file")
    return path


def file_parameters(path: Path, node: str, namespace: str) -> dict[str, Any]:
    """The flat parameters that a ROS parameters file gives to one node; later sections win.

    Raises:
        UserError: the file is not a ROS parameters file.
    """
    result: dict[str, Any] = {}
    for section, content in _sections(path).items():
        if _matches(section, f"{namespace}/{node}"):
            result |= _flat(content)
    return result


def _check_sections(path: Path, namespace: str) -> None:
    known = list(nodes.NODES)
    for section in _sections(path):
        if not any(_matches(section, f"{namespace}/{node}") for node in known):
            raise UserError(
                f"section '{section}' of {path} is for none of the nodes; valid: "
                + ", ".join(f"/**/{node}" for node in known)
            )


def read_yaml(path: Path) -> Any:
    """What a file says; None if nothing.

    Raises:
        UserError: it is not valid YAML.
        OSError: it cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    content = read_yaml(path) or {}
    sections = {}
    for section, body in content.items() if isinstance(content, dict) else [("", None)]:
        if not isinstance(body, dict) or set(body) != {"ros__parameters"}:
            raise UserError(
                f"{path} is not a ROS parameters file: each section must hold just 'ros__parameters'"
            )
        sections[str(section)] = body["ros__parameters"] or {}
    return sections


def _matches(section: str, full_name: str) -> bool:
    """ROS's wildcards: * is one name, ** any number of them."""
    pattern = "/" + section.strip("/")
    expression = re.escape(pattern).replace(r"/\*\*", "(/[^/]+)*").replace(r"\*", "[^/]+")
    return re.fullmatch(expression, full_name) is not None


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
