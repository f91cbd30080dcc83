"""`mbrl train`: one training or several seeds of it, each in a folder of its own, shown as it goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mbrl_bringup.demo import StopFlag, new_folder
from mbrl_bringup.result import atomic_write
from mbrl_bringup.train import Training, configurations
from mbrl_bringup.train_config import TrainConfig, TrainOptions
from mbrl_dynamics.config import build
from mbrl_dynamics.errors import UserError

MEMORY = "train.yaml"  # with what a run began


def run_training(arguments: Mapping[str, Any], parameters: Mapping[str, str], options: TrainOptions) -> int:
    """Train; returns the exit code.

    Raises:
        UserError: an argument or a parameter is wrong, or a folder cannot be gone on with.
    """
    folder = Path(options.resume) if options.resume else None
    if folder is not None:
        arguments, parameters = remembered(folder, arguments, parameters)
    settings = build(TrainConfig, arguments)
    configurations(settings, parameters)  # everything is checked before anything is made
    if options.seeds:
        return _several(arguments, parameters, options)
    interrupt = StopFlag()
    if folder is None:
        folder = new_folder(
            Path(options.runs), f"{settings.task.replace('/', '-')}-{settings.agent.rpartition(':')[2]}"
        )
    (folder / MEMORY).write_text(
        yaml.safe_dump({"arguments": dict(arguments), "parameters": dict(parameters)}, sort_keys=False)
    )
    print(f"mbrl: training goes to {folder}", flush=True)
    interrupt.install()
    result = Training(settings, folder, parameters, Narrator()).run(interrupt)
    if options.out:
        atomic_write(Path(options.out), json.dumps(result.as_json(), indent=1) + "\n")
    print(f"result: {folder / 'result.json'}", flush=True)
    return 130 if interrupt() else 0


def remembered(
    folder: Path, arguments: Mapping[str, Any], parameters: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments and parameters of a run that goes on: its own, and on top those given now.

    Raises:
        UserError: the folder is not that of a training.
    """
    try:
        content = yaml.safe_load((folder / MEMORY).read_text())
    except OSError:
        raise UserError(f"'{folder}' is not the folder of a training: it holds no {MEMORY}") from None
    return {**content["arguments"], **arguments}, {**content["parameters"], **parameters}


def _several(arguments: Mapping[str, Any], parameters: Mapping[str, str], options: TrainOptions) -> int:
    """Each seed in a process of its own, `jobs` at a time; a seed that fails does not stop the others."""
    waiting = [int(seed) for seed in options.seeds.split(",")]
    running: dict[int, subprocess.Popen[bytes]] = {}
    base = Path(options.runs).absolute() / time.strftime("%Y-%m-%d_%H-%M-%S-seeds")
    results: dict[int, Any] = {}
    failed = 0
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                seed = waiting.pop(0)
                out = base / f"seed{seed}.json"
                out.parent.mkdir(parents=True, exist_ok=True)
                running[seed] = subprocess.Popen(_command(arguments, parameters, seed, base, out))
            time.sleep(0.2)
            for seed, process in [(s, p) for s, p in running.items() if p.poll() is not None]:
                del running[seed]
                failed |= process.returncode
                if process.returncode == 0:
                    results[seed] = json.loads((base / f"seed{seed}.json").read_text())
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        if options.out and results:
            found = [results[seed] for seed in sorted(results)]
            atomic_write(Path(options.out), json.dumps(found, indent=1) + "\n")
    return failed


def _command(
    arguments: Mapping[str, Any], parameters: Mapping[str, str], seed: int, runs: Path, out: Path
) -> Sequence[str]:
    command = [sys.executable, "-m", "mbrl_bringup.cli", "train"]
    for name, value in {**arguments, "seed": seed, "runs": runs, "out": out}.items():
        command += [f"--{name.replace('_', '-')}={value}"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    return command


class Narrator:
    """Tells on the terminal how a training goes: a line an evaluation, and one an episode in between."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._newest: dict[str, float] = {}

    def __call__(self, kind: str, values: Mapping[str, float]) -> None:
        """Something happened."""
        self._newest |= values
        minutes = (time.monotonic() - self._began) / 60.0
        if kind == "episode":
            self._print(f"{minutes:6.1f} min  step {values['env_steps']:>7}  return {values['return']:9.1f}")
        elif kind == "evaluation":
            losses = ", ".join(
                f"{name} {self._newest[name]:.3g}"
                for name in ("critic_loss", "value", "entropy", "model_loss", "holdout_error")
                if name in self._newest
            )
            score = f"frame {values['frames']:>6}  EVALUATION {values['score']:7.1f}"
            self._print(f"{minutes:6.1f} min  {score}  {losses}")

    @staticmethod
    def _print(text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # nobody listens any more; the training goes on
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
