"""The `mbrl` command: up, demo, train, report, evaluate, compare, status, arm, disarm, stop, check-robot,
security, list.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mbrl_dynamics.config import describe, one_of
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import KINDS, families, names

USER_ERROR = 2
_BEGAN = time.monotonic()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 after a mistake of the user, who gets one sentence."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    parser, commands = _parsers()
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    command = one_of("command", arguments[0], commands)
    known, unknown = commands[command].parse_known_args(_dashed(arguments[1:]))
    if unknown:
        options = {action.dest for action in commands[command]._actions if action.dest != "help"}
        one_of("argument", unknown[0].lstrip("-").partition("=")[0].replace("-", "_"), options)
        raise UserError(f"argument '{unknown[0]}' is not understood")
    values = {name: value for name, value in vars(known).items() if value is not None}
    return _COMMANDS[command][1](values)


def _up(values: dict[str, Any]) -> int:
    from mbrl_bringup.stack import StackConfig, default_run_dir, resolve
    from mbrl_bringup.supervisor import Supervisor

    what = values.get("robot") or values.get("task", StackConfig.task)
    folder = values.get("run_dir") or default_run_dir(what, time.localtime())
    processes = resolve({**values, "run_dir": folder})
    print(f"mbrl: dataset and checkpoint go to {folder}", flush=True)
    for process in processes:
        process.check_installed()
    return Supervisor(processes).run()


def _demo(values: dict[str, Any]) -> int:
    from mbrl_bringup.demo import DemoConfig
    from mbrl_bringup.ros.demo import run_demo
    from mbrl_dynamics.config import build

    own = {field.name for field in dataclasses.fields(DemoConfig)}
    options = build(DemoConfig, {name: value for name, value in values.items() if name in own})
    return run_demo({name: value for name, value in values.items() if name not in own}, options, _BEGAN)


def _train(values: dict[str, Any]) -> int:
    from mbrl_bringup.train_command import run_training
    from mbrl_bringup.train_config import TrainOptions
    from mbrl_dynamics.config import build

    parameters = dict(_assignment(text) for text in values.pop("param", []))
    own = {field.name for field in dataclasses.fields(TrainOptions)}
    options = build(TrainOptions, {name: value for name, value in values.items() if name in own})
    return run_training(
        {name: value for name, value in values.items() if name not in own}, parameters, options
    )


def _assignment(text: str) -> tuple[str, str]:
    """A parameter as `ros2 run` takes it: name:=value."""
    name, sign, value = text.partition(":=")
    if not sign:
        raise UserError(f"argument '-p {text}' must be name:=value, as in mbpo.replay_ratio:=10")
    return name, value


def _report(values: dict[str, Any]) -> int:
    from mbrl_bringup import report, train_report

    folder = Path(values["folder"])
    if not (folder / "result.json").is_file():
        raise UserError(f"'{folder}' is not the folder of a run: it holds no result.json")
    writer = train_report if train_report.is_training(folder) else report
    print(writer.write_report(folder))
    return 0


def _evaluate(values: dict[str, Any]) -> int:
    from mbrl_bringup.evaluate import run_evaluate
    from mbrl_bringup.evaluate_config import EvaluateConfig
    from mbrl_dynamics.config import build

    path = values.pop("path")
    return run_evaluate(path, build(EvaluateConfig, values))


def _compare(values: dict[str, Any]) -> int:
    from mbrl_bringup.compare import run_compare
    from mbrl_bringup.compare_config import CompareConfig
    from mbrl_dynamics.config import build

    paths = values.pop("runs")
    return run_compare(paths, build(CompareConfig, values))


def _status(values: dict[str, Any]) -> int:
    from mbrl_bringup.ros.status import print_status

    return print_status(values.get("namespace", ""), float(values.get("wait", 5.0)))


def _arm(values: dict[str, Any]) -> int:
    from mbrl_bringup.ros.arming import arm

    return arm(values.get("namespace", ""), without_timeout=bool(values.get("without_timeout")))


def _disarm(values: dict[str, Any]) -> int:
    from mbrl_bringup.ros.arming import arm

    return arm(values.get("namespace", ""), armed=False)


def _stop(values: dict[str, Any]) -> int:
    from mbrl_bringup.ros.arming import stop

    return stop(values.get("namespace", ""))


def _check_robot(values: dict[str, Any]) -> int:
    from mbrl_bringup.ros.robot_check import check

    return check(values["robot"], values.get("namespace", ""), float(values.get("wait", 3.0)))


def _security(values: dict[str, Any]) -> int:
    from mbrl_bringup.nodes import robot_of
    from mbrl_bringup.security import policy
    from mbrl_bringup.stack import StackConfig, resolve
    from mbrl_dynamics.config import build

    out = values.pop("out", "")
    text = policy(resolve(values), robot_of(build(StackConfig, values)))
    if not out:
        print(text, end="")
        return 0
    try:
        Path(out).write_text(text)
    except OSError as error:
        raise UserError(f"argument 'out' is '{out}', which cannot be written: {error.strerror}") from None
    return 0


def _list(values: dict[str, Any]) -> int:
    for kind in KINDS:
        more = [f"{family}/..." for family in families()] if kind == "tasks" else []
        print(f"{kind + ':':<10} {', '.join([*names(kind), *more]) or '-'}")
    return 0


_COMMANDS: dict[str, tuple[str, Any]] = {
    "up": ("start the whole stack; Ctrl-C ends it", _up),
    "demo": ("start the stack, learn a task from nothing, and write a report", _demo),
    "train": ("let an agent learn a policy in lock-step, without ROS", _train),
    "report": ("write the report of a run's folder again", _report),
    "evaluate": ("say how far a model can be trusted, on recorded data", _evaluate),
    "compare": ("draw the curves of many runs, with interquartile means over seeds", _compare),
    "status": ("say how a running stack is doing", _status),
    "arm": ("let the controller move a robot", _arm),
    "disarm": ("command nothing to a robot any more", _disarm),
    "stop": ("end a robot's motion at once, until it is armed again", _stop),
    "check-robot": ("compare a robot's file with the robot", _check_robot),
    "security": ("write what each node of a stack may do, as a policy for SROS 2", _security),
    "list": ("list installed tasks, models, planners and agents", _list),
}


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, _Parser]]:
    from mbrl_bringup.compare_config import CompareConfig
    from mbrl_bringup.demo import DemoConfig
    from mbrl_bringup.evaluate_config import EvaluateConfig
    from mbrl_bringup.stack import StackConfig
    from mbrl_bringup.train_config import TrainConfig, TrainOptions

    parser = _Parser(prog="mbrl", description="Model-based reinforcement learning on ROS 2.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    commands = {
        name: subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        for name, (text, _) in _COMMANDS.items()
    }
    _add_options(commands["up"], StackConfig)
    _add_options(
        commands["demo"],
        StackConfig,
        without=("episodes", "run_dir", "record", "mode", "passive", "no_model"),
    )
    _add_options(commands["demo"], DemoConfig)
    _add_options(commands["train"], TrainConfig)
    _add_options(commands["train"], TrainOptions)
    commands["train"].add_argument(
        "-p",
        "--param",
        action="append",
        metavar="NAME:=VALUE",
        help="a parameter of the agent or its model, for example -p mbpo.replay_ratio:=10; may be repeated",
    )
    commands["report"].add_argument("folder", help="folder of the run, for example runs/<time>-<task>")
    commands["evaluate"].add_argument(
        "path", metavar="RUN", help="folder of a run or of a dataset, for example runs/<time>-<task>"
    )
    _add_options(commands["evaluate"], EvaluateConfig)
    commands["compare"].add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, its result.json, or a list of results (JSON)"
    )
    _add_options(commands["compare"], CompareConfig)
    _add_options(commands["security"], StackConfig, without=("run_dir", "record", "episodes", "seed"))
    commands["security"].add_argument("--out", help="file (XML) to write; empty = the terminal")
    commands["status"].add_argument("--namespace", help="of the stack; empty = none")
    commands["status"].add_argument(
        "--wait", type=_seconds, help="how long to listen at most [s] (default: 5)"
    )
    commands["check-robot"].add_argument("robot", help="its file (YAML), or the name of an installed one")
    commands["check-robot"].add_argument(
        "--wait", type=_seconds, help="how long to listen after discovery [s] (default: 3)"
    )
    for name in ("arm", "disarm", "stop", "check-robot"):
        commands[name].add_argument("--namespace", help="of the robot; empty = none")
    commands["arm"].add_argument(
        "--without-timeout",
        action="store_true",
        default=None,
        help="arm although nothing stops the robot if the bridge dies: you stop it yourself",
    )
    return parser, commands


def _add_options(parser: argparse.ArgumentParser, cls: type, without: Sequence[str] = ()) -> None:
    """One option for each field of a configuration. Values stay text: the configuration checks them."""
    from mbrl_bringup.stack import argument_text

    for field in describe(cls):
        if field.name in without:
            continue
        option = "--" + field.name.replace("_", "-")
        text = field.description.replace("%", "%%")
        if field.default not in (None, ""):
            text += f" (default: {argument_text(field.default)})"
        if _takes_bool(field.type):
            parser.add_argument(
                option, dest=field.name, nargs="?", const="true", metavar="true|false", help=text
            )
            parser.add_argument(
                f"--no-{option[2:]}",
                dest=field.name,
                action="store_const",
                const="false",
                help=argparse.SUPPRESS,
            )
        else:
            parser.add_argument(option, dest=field.name, metavar=_metavar(field.name, field.type), help=text)


def _takes_bool(kind: Any) -> bool:
    return bool in _leaves(kind)


def _metavar(name: str, kind: Any) -> str:
    choices = [choice for leaf in _leaves(kind) for choice in typing.get_args(leaf)]
    if choices:
        return "|".join(map(str, choices))
    if name in ("task", "model", "planner", "agent"):
        more = [f"{family}/NAME" for family in families()] if name == "task" else []
        return "|".join([*names(f"{name}s"), *more]) or "NAME"
    return next((leaf.__name__.upper() for leaf in _leaves(kind) if leaf in (int, float)), "TEXT")


def _leaves(kind: Any) -> list[Any]:
    """The alternatives of a type: int | None -> [int, NoneType]."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _leaves(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [leaf for part in typing.get_args(kind) for leaf in _leaves(part)]
    return [kind]


def _dashed(arguments: Sequence[str]) -> list[str]:
    """Let `task:=pendulum` mean `--task=pendulum`, as for `ros2 launch`; and --run_dir mean --run-dir."""
    result = []
    for argument in arguments:
        name, sign, value = argument.partition(":=")
        if sign and name.isidentifier():
            argument = f"--{name}={value}"
        if argument.startswith("--"):
            name, sign, value = argument.partition("=")
            argument = name.replace("_", "-") + sign + value
        result.append(argument)
    return result


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"argument 'wait' is '{text}', but it should be a number [s]") from None


if __name__ == "__main__":
    sys.exit(main())
