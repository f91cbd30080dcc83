"""The file that tells the bridge how a robot is seen and moved, one a robot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mbrl_bringup.guard_config import Actuator, Bound, GuardConfig, GuardSettings, check
from mbrl_bringup.robot_readings import ANGLES, Reader
from mbrl_bringup.stack import read_yaml
from mbrl_bringup.stack import share as share_of_package
from mbrl_bringup.workspace import Workspace, WorkspaceConfig
from mbrl_dynamics.config import Field, build, config, one_of
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec

SourceType = Literal[
    "sensor_msgs/JointState",
    "sensor_msgs/Imu",
    "nav_msgs/Odometry",
    "geometry_msgs/PoseStamped",
    "geometry_msgs/TwistStamped",
    "geometry_msgs/WrenchStamped",
]
CommandType = Literal[
    "std_msgs/Float64MultiArray",
    "trajectory_msgs/JointTrajectory",
    "geometry_msgs/Twist",
    "geometry_msgs/TwistStamped",
    "sensor_msgs/JointState",
]


@config
class Source:
    """A topic that the robot is seen by."""

    topic: str
    type: SourceType
    max_age: Annotated[float, Field(gt=0, description="an older message says nothing [s]")] = 0.1
    behind: Annotated[
        float,
        Field(
            ge=0, description="seen so long ago, interpolated between messages [s]; 0 = as the newest says"
        ),
    ] = 0.0
    reliable: Annotated[bool, Field(description="whether lost messages are sent again (QoS)")] = False


@config
class CameraTopic:
    """Where the images of a camera come from (sensor_msgs/Image)."""

    topic: str
    max_age: Annotated[float, Field(gt=0, description="an older image says nothing [s]")] = 0.2
    reliable: Annotated[bool, Field(description="whether lost messages are sent again (QoS)")] = False


@config
class Channel:
    """How one element of the observation comes from a message: encoding(low-pass(d/dt(scale x + offset)))."""

    source: str
    value: Annotated[str, Field(description="a quantity of the message, for example 'elbow.position'")]
    scale: Annotated[float, Field(description="factor [1]")] = 1.0
    offset: Annotated[float, Field(description="added after it [unit]")] = 0.0
    difference: Annotated[bool, Field(description="whether to take the finite difference [unit/s]")] = False
    low_pass: Annotated[float, Field(ge=0, description="time constant of a low-pass [s]; 0 = none")] = 0.0
    encoding: Literal["identity", "cos", "sin"] = "identity"


@config
class CommandTopic:
    """A topic that moves joints, in this order."""

    topic: str
    type: CommandType
    joints: Annotated[tuple[str, ...], Field(min_length=1, description="in the order of the message")]


@config
class Range:
    """What a watched quantity may be."""

    low: float
    high: float


@config
class Beginning:
    """How an episode begins."""

    by: Annotated[
        Literal["nothing", "service", "motion", "person"],
        Field(description="where it stands, a std_srvs/Trigger service, a motion, or a person who confirms"),
    ] = "person"
    service: Annotated[str, Field(description="that brings the robot home")] = ""
    home: Annotated[dict[str, float], Field(description="joint -> position of the motion [unit]")] = field(
        default_factory=dict
    )
    tolerance: Annotated[float, Field(gt=0, description="of the home position [unit]")] = 0.02
    timeout: Annotated[float, Field(gt=0, description="of service and motion [s]")] = 30.0
    settle: Annotated[float, Field(ge=0, description="rest before the first State [s]")] = 0.5


@config
class RobotConfig:
    """A robot: what is seen, what moves, what is allowed."""

    task: Annotated[str, Field(description="an installed task, or package.module:Class")]
    sources: dict[str, Source]
    observation: Annotated[dict[str, Channel], Field(description="element of the task's Spec -> channel")]
    action: Annotated[dict[str, Actuator], Field(description="element of the task's Spec -> actuator")]
    commands: Annotated[tuple[CommandTopic, ...], Field(min_length=1)]
    cameras: Annotated[dict[str, CameraTopic], Field(description="camera of the task's Spec -> topic")] = (
        field(default_factory=dict)
    )
    description: Annotated[
        str, Field(description="URDF for RViz, its path from this file's folder; empty = none")
    ] = ""
    feedback: Annotated[
        str, Field(description="source of the joints' positions and velocities; empty = none")
    ] = ""
    bounds: Annotated[dict[str, Range], Field(description="'source/quantity' -> what it may be")] = field(
        default_factory=dict
    )
    workspace: Annotated[
        WorkspaceConfig, Field(description="where the robot must stay; it needs `description` and `feedback`")
    ] = WorkspaceConfig()
    action_delay_steps: Annotated[
        int, Field(ge=1, le=100, description="an answer takes effect this much later [steps]")
    ] = 1
    action_repeat: Annotated[
        int, Field(ge=0, description="frames of the task in a control period [1]; 0 = as the task says")
    ] = 0
    max_steps: Annotated[
        int,
        Field(
            ge=0, description="an episode is truncated after this many steps [steps]; 0 = as the task says"
        ),
    ] = 0
    release_after: Annotated[
        float, Field(gt=0, description="a controller that is silent so long loses control [s]")
    ] = 10.0
    beginning: Beginning = Beginning()
    guard: GuardSettings = GuardSettings()


def load(path: Path) -> RobotConfig:
    """Read a robot's file.

    Raises:
        UserError: it cannot be read, or is not what it should be; the sentence names the key.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UserError(f"the robot's file {path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not describe a robot: it must hold {', '.join(_KEYS)}")
    try:
        robot = build(RobotConfig, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not robot.description:
        return robot
    description = (path.parent / robot.description).absolute()
    if not description.is_file():
        raise UserError(f"{path}: description is '{robot.description}', but there is no such file")
    return replace(robot, description=str(description))


def find(name: str) -> RobotConfig:
    """The robot of a file, or of the name of one that comes with the package.

    Raises:
        UserError: there is none, or it is not what it should be.
    """
    if is_file(name):
        return load(Path(name).expanduser())
    installed = {file.stem: file for file in share_of_package("config/robots").glob("*.yaml")}
    return load(installed[one_of("robot", name, installed)])


def task_of(robot: RobotConfig) -> Any:
    """The task of a robot, at the robot's rate.

    Raises:
        UserError: there is none of that name, or it cannot be had at this rate.
    """
    return make_task(robot.task, robot.action_repeat)


def is_file(name: str) -> bool:
    """Whether a robot's name is that of a file, rather than of an installed robot."""
    path = Path(name)
    return path.suffix in (".yaml", ".yml") or len(path.parts) > 1


_KEYS = ("task", "sources", "observation", "action", "commands")


def guard_config(robot: RobotConfig, spec: Spec, share: float = 1.0) -> GuardConfig:
    """What the guard of a robot is told.

    Args:
        robot: its file.
        spec: of its task; joints come in the order of its actions.
        share: of the limits that is allowed: efforts, velocities, and the rate of positions [1].

    Raises:
        UserError: the settings contradict each other.
    """

    def allowed(a: Actuator) -> Actuator:
        if a.kind == "position":
            return replace(a, rate=share * a.rate)
        return replace(a, low=share * a.low, high=share * a.high)

    result = GuardConfig(
        **asdict(robot.guard),
        joints=tuple(allowed(robot.action[element.name]) for element in spec.action),
        bounds=tuple(Bound(name, r.low, r.high) for name, r in robot.bounds.items()),
        period=spec.control_period,
    )
    check(result)
    return result


def workspace(robot: RobotConfig, spec: Spec) -> Workspace | None:
    """Where a robot must stay; None = it may be anywhere.

    Raises:
        UserError: the settings do not fit the robot.
    """
    c = robot.workspace
    if not c.points:
        return None
    if not robot.description:
        raise UserError("workspace.points need a description, the URDF that tells where links are")
    actuators = [robot.action[element.name] for element in spec.action]
    for a in actuators:
        if a.kind == "effort":
            raise UserError(f"joint '{a.joint}' is moved by effort, whose way a workspace cannot foresee")
        if a.kind == "velocity" and c.look_ahead < (brake := max(a.high, -a.low) / a.rate):
            raise UserError(
                f"workspace.look_ahead is {c.look_ahead} s, but joint '{a.joint}' needs {brake:.3g} s to stop"
            )
    return Workspace(c, Path(robot.description), [a.joint for a in actuators])


def check_robot(robot: RobotConfig, spec: Spec) -> None:
    """Whether a robot's file fits its task and itself.

    Raises:
        UserError: it does not; the sentence names the key.
    """
    if spec.discrete:
        raise UserError(f"task '{spec.task}' has discrete actions, which a robot's bridge does not know")
    _same("cameras", robot.cameras, [camera.name for camera in spec.cameras], spec.task)
    _same("observation", robot.observation, [e.name for e in spec.observation], spec.task)
    _same("action", robot.action, [e.name for e in spec.action], spec.task)
    for element in spec.observation:
        channel = robot.observation[element.name]
        _known(f"observation.{element.name}.source", channel.source, robot.sources)
        if channel.encoding != element.encoding:
            raise UserError(
                f"observation.{element.name}.encoding is '{channel.encoding}', but the task's element is "
                f"'{element.encoding}'"
            )
    if robot.feedback:
        _known("feedback", robot.feedback, robot.sources)
    for name in robot.bounds:
        source, _, quantity = name.partition("/")
        _known(f"bounds.{name}", source, robot.sources)
        if not quantity:
            raise UserError(f"bounds.{name} must be 'source/quantity', for example 'joints/elbow.position'")
    _check_commands(robot)
    _check_beginning(robot)
    workspace(robot, spec)
    for name, wanted in quantities(robot).items():
        Reader(robot.sources[name].type, wanted, f"of source '{name}'")


def quantities(robot: RobotConfig) -> dict[str, list[str]]:
    """What is read from each source, each once: source -> quantities."""
    wanted: dict[str, list[str]] = {name: [] for name in robot.sources}
    for channel in robot.observation.values():
        wanted[channel.source].append(channel.value)
    for joint, parts in needed_feedback(robot).items():
        wanted[robot.feedback] += [f"{joint}.{part}" for part in parts]
    for name in robot.bounds:
        source, _, quantity = name.partition("/")
        wanted[source].append(quantity)
    return {name: list(dict.fromkeys(values)) for name, values in wanted.items()}


def needed_feedback(robot: RobotConfig) -> dict[str, list[str]]:
    """What the guard must know of each joint: joint -> "position", "velocity"."""
    needed = {}
    for actuator in robot.action.values():
        located = actuator.kind == "position" or bool(robot.workspace.points)
        parts = ["position"] * located + ["velocity"] * (actuator.damping > 0)
        if parts:
            needed[actuator.joint] = parts
    return needed


def is_angle(value: str) -> bool:
    """Whether a quantity jumps by a turn."""
    return value.rpartition(".")[2] in ANGLES


def _check_commands(robot: RobotConfig) -> None:
    moved = [joint for topic in robot.commands for joint in topic.joints]
    joints = [actuator.joint for actuator in robot.action.values()]
    for joint in moved:
        _known("commands", joint, joints, what="joint")
    for joint in joints:
        if moved.count(joint) != 1:
            raise UserError(
                f"joint '{joint}' is in {moved.count(joint)} of the commands, but must be in just one"
            )
    if needed_feedback(robot) and not robot.feedback:
        first = next(iter(needed_feedback(robot)))
        raise UserError(f"feedback must name the source that tells where joint '{first}' is")


def _check_beginning(robot: RobotConfig) -> None:
    begin = robot.beginning
    if begin.by == "service" and not begin.service:
        raise UserError("beginning.service is empty, but must name the service that brings the robot home")
    if begin.by != "motion":
        return
    held = {a.joint for a in robot.action.values() if a.kind == "position"}
    if set(begin.home) != held or len(held) != len(robot.action):
        raise UserError(
            "beginning.home must give a position for each joint, and all must be commanded by position"
        )


def _same(key: str, given: Iterable[str], wanted: list[str], task: str) -> None:
    for name in given:
        try:
            one_of(f"element of {key}", name, wanted)
        except UserError as error:
            raise UserError(f"{error} (task '{task}')") from None
    for name in wanted:
        if name not in given:
            raise UserError(f"{key} has no '{name}', which task '{task}' needs")


def _known(key: str, name: str, known: Iterable[str], what: str = "source") -> None:
    try:
        one_of(what, name, known)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
