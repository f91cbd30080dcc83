"""`mbrl train`: one training or several seeds of it, each in a folder of its own, shown as it goes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mbrl_bringup.demo import StopFlag, new_folder
from mbrl_bringup.playback import MEMORY, remembered
from mbrl_bringup.result import atomic_write
from mbrl_bringup.scalars import Scalars
from mbrl_bringup.tether import tethered
from mbrl_bringup.train import Training
from mbrl_bringup.train_config import TrainConfig, TrainOptions
from mbrl_bringup.train_report import write_report
from mbrl_bringup.train_setup import configurations
from mbrl_bringup.train_show import show
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError


def run_training(arguments: Mapping[str, Any], parameters: Mapping[str, str], options: TrainOptions) -> int:
    """Train; returns the exit code.

    Raises:
        UserError: an argument or a parameter is wrong, or a folder cannot be gone on with.
    """
    if options.resume and options.seeds:
        raise UserError("either one run is resumed or several seeds are trained, not both")
    folder = Path(options.resume) if options.resume else None
    if folder is not None:
        arguments, parameters = _going_on(folder, arguments, parameters)
    settings = build(TrainConfig, arguments)
    chosen = configurations(settings, parameters)  # everything is checked before anything is made
    if options.seeds:
        return _several(arguments, parameters, options)
    interrupt = StopFlag()
    interrupt.install()
    new = folder is None
    if folder is None:
        folder = new_folder(
            Path(options.runs), f"{settings.task.replace('/', '-')}-{settings.agent.rpartition(':')[2]}"
        )
    listeners: list[Any] = []

    def say(kind: str, values: Mapping[str, float]) -> None:
        for listener in listeners:
            listener(kind, values)

    try:
        training = Training(settings, folder, parameters, say)
    except UserError:
        if new:
            _unmake(folder)
        raise
    _remember(folder, arguments, parameters)
    _write_config(folder, settings, chosen)
    print(f"mbrl: training goes to {folder}", flush=True)
    listeners += [
        show(f"{settings.task}: {settings.agent}, seed {settings.seed}"),
        Scalars(folder, "updates" if settings.offline else "frames"),
    ]
    try:
        result = training.run(interrupt)
    finally:
        for listener in listeners:
            listener.close()
    if options.out:
        atomic_write(Path(options.out), json.dumps(result.as_json(), indent=1) + "\n")
    print(f"result: {folder / 'result.json'}", flush=True)
    print(write_report(folder, video=options.video, play=not interrupt()), flush=True)
    return 130 if interrupt() else 0


def _going_on(
    folder: Path, arguments: Mapping[str, Any], parameters: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments and parameters of a run that goes on: its own, and on top those given now.

    Raises:
        UserError: the folder is not that of a training, or of another agent or task.
    """
    began, chosen = remembered(folder)
    for name in ("agent", "task"):
        own = began.get(name, getattr(TrainConfig, name))
        if arguments.get(name, own) != own:
            raise UserError(f"the run in '{folder}' is of {name} '{own}', not '{arguments[name]}'")
    return {**began, **arguments}, {**chosen, **parameters}


def _remember(folder: Path, arguments: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
    content = {"arguments": dict(arguments), "parameters": dict(parameters)}
    atomic_write(folder / MEMORY, yaml.safe_dump(content, sort_keys=False))


def _write_config(folder: Path, settings: TrainConfig, chosen: Sequence[Any]) -> None:
    """config.yaml: every argument and parameter, defaults included; for people."""
    _, agent_config, model_class, model_config = chosen
    content = {"arguments": dataclasses.asdict(settings), "agent": dataclasses.asdict(agent_config)}
    if model_class is not None:
        content["model"] = dataclasses.asdict(model_config)
    plain = json.loads(json.dumps(content))  # tuples as lists
    atomic_write(folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


def _unmake(folder: Path) -> None:
    """Remove a folder that was made for nothing, and the folder of runs if it is the only one."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def _several(arguments: Mapping[str, Any], parameters: Mapping[str, str], options: TrainOptions) -> int:
    """Each seed in a process of its own, `jobs` at a time; a seed that fails does not stop the others."""
    interrupt = StopFlag()
    interrupt.install()
    waiting = list(dict.fromkeys(int(seed) for seed in options.seeds.split(",")))
    running: dict[int, subprocess.Popen[bytes]] = {}
    base = new_folder(Path(options.runs), "seeds")
    shared = options.jobs > 1 and sys.stdout.isatty()  # two tables cannot be drawn on one terminal
    failed = 0
    try:
        while (waiting or running) and not interrupt():
            while waiting and len(running) < options.jobs:
                seed = waiting.pop(0)
                command = _command(arguments, parameters, seed, base, options)
                running[seed] = _start(command, base / f"seed{seed}.txt" if shared else None)
            time.sleep(0.2)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                failed = running.pop(seed).returncode or failed
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        found = [json.loads(path.read_text()) for path in base.glob("seed*.json")]
        if options.out and found:
            found.sort(key=lambda result: int(result["seed"]))
            atomic_write(Path(options.out), json.dumps(found, indent=1) + "\n")
    return 130 if interrupt() else failed


def _start(command: list[str], log: Path | None) -> subprocess.Popen[bytes]:
    if log is None:
        return subprocess.Popen(command)
    print(f"mbrl: watch {log}", flush=True)
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file)


def _command(
    arguments: Mapping[str, Any],
    parameters: Mapping[str, str],
    seed: int,
    base: Path,
    options: TrainOptions,
) -> list[str]:
    command = [sys.executable, "-m", "mbrl_bringup.cli", "train"]
    own = {"seed": seed, "runs": base, "out": base / f"seed{seed}.json", "video": options.video}
    for name, value in {**arguments, **own}.items():
        command += [f"--{name.replace('_', '-')}={value}"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    return tethered(command, os.getpid())
