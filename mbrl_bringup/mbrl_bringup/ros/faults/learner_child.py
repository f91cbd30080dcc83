"""A learner that records and trains without a pause, to be killed: a fork of what has torch loaded.

    python -m mbrl_bringup.ros.faults.learner_child

For each line (JSON: folder, world) it forks one and answers with its process id. What the learner has taken
is written to `told` in the folder, one line a State: step and time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from mbrl_bringup.ros.faults.stand_in import die_with
from mbrl_dynamics.learner import Learner, LearnerConfig
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition

MODEL = EnsembleConfig(members=2, elites=1, hidden=(16,), batch_size=16)
SPEC: Spec = make_task("cartpole_swingup").spec
LENGTH = 50  # of an episode [steps]


def learn(folder: Path, world: bytes) -> None:
    """Take States until somebody kills this process."""
    settings = LearnerConfig(
        dataset=str(folder / "dataset"),
        checkpoint=str(folder / "checkpoint"),
        threads=1,
        train_every_steps=10,
        fit_steps=3,
    )
    learner = Learner(SPEC, Ensemble, MODEL, "ensemble", settings, lambda: None)
    random = np.random.default_rng(0)
    told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(10**9):
        episode, step = divmod(number, LENGTH)
        observation, last = random.standard_normal(SPEC.observation_dim), step == LENGTH - 1
        action = random.uniform(-1.0, 1.0, SPEC.action_dim)
        stamp = time.time()
        state = Transition(
            world, episode, step, observation, action, 0.0, step == 0, truncated=last, stamp=stamp
        )
        learner.hear(state)
        os.write(told, f"{number} {time.monotonic()}\n".encode())
        time.sleep(0.0005)


def main() -> None:
    """Fork for each line."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        parent, child = os.getpid(), os.fork()
        if child == 0:
            try:
                die_with(parent)
                learn(Path(order["folder"]), bytes.fromhex(order["world"]))
            finally:
                os._exit(1)
        print(child, flush=True)


if __name__ == "__main__":
    main()
