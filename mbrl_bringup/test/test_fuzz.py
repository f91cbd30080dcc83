"""Every loader of bytes from outside, given bytes that were changed: one sentence, never another error."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbrl_bringup.robot_config import check_robot, guard_config, load
from mbrl_bringup.stack import file_parameters, share
from mbrl_dynamics import checkpoint, snapshot
from mbrl_dynamics.episodes import EpisodeStore, files, read, recover
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.plugins import make_task
from mbrl_dynamics.spec import Element, Spec
from mbrl_dynamics.transition import Transition
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.pendulum import Pendulum

SPEC = Spec("t", (Element("x"),), (Element("f", "N", -1.0, 1.0),), 0.05)
SMALL = EnsembleConfig(members=2, hidden=(4,))
fuzzed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Where (as a share of the whole, half of them near its beginning), how many bytes go, what comes instead
place = st.floats(0, 1) | st.floats(0, 0.02)
edits = st.lists(
    st.tuples(place, st.sampled_from([0, 1, 4, 8, 10**9]), st.binary(max_size=8)), min_size=1, max_size=4
)


def changed(data: bytes, how: list[tuple[float, int, bytes]]) -> bytes:
    for where, dropped, instead in how:
        at = int(where * len(data))
        data = data[:at] + instead + data[at + dropped :]
    return data


def tells(error: type[Exception], function: Callable[[], Any]) -> None:
    """It works, or tells what is wrong in one line."""
    sentence = "worked"
    try:
        function()
    except error as told:
        sentence = str(told)
    assert sentence and "\n" not in sentence


def model() -> Ensemble:
    torch.set_num_threads(1)
    return Ensemble(SPEC, SMALL)


@pytest.fixture(scope="module")
def update() -> snapshot.Snapshot:
    return snapshot.pack(model(), model_id="ensemble", run_id="a", version=1, metrics={"holdout_error": 0.1})


@given(edits)
@fuzzed
def test_a_model_update(update, how):
    weights = changed(update.weights, how)
    tells(ValueError, lambda: snapshot.unpack(weights))
    lie = dataclasses.replace(update, weights=weights, sha256=hashlib.sha256(weights).hexdigest())
    tells(ValueError, lambda: snapshot.restore(lie, SPEC))


@given(edits)
@fuzzed
def test_an_architecture_that_its_sender_vouches_for(update, how):
    tensors, manifest = snapshot.from_bytes(update.weights)
    manifest["architecture"] = changed(update.architecture.encode(), how).decode("latin1")
    weights = snapshot.to_bytes(tensors, manifest)
    digest = hashlib.sha256(weights).hexdigest()
    lie = dataclasses.replace(update, architecture=manifest["architecture"], weights=weights, sha256=digest)
    tells(ValueError, lambda: snapshot.restore(lie, SPEC))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("recording")
    store = EpisodeStore(folder, SPEC)
    store.announce(SPEC, bytes(16))
    for step in range(20):
        store.add(Transition(bytes(16), 0, step, np.zeros(1), np.zeros(1), first=step == 0))
    store.close()
    return files(folder)[0].read_bytes()


@given(edits)
@fuzzed
def test_a_dataset(recording, tmp_path, how):
    path = tmp_path / "0.mcap"
    path.write_bytes(changed(recording, how))
    tells(UserError, lambda: list(read(tmp_path)))
    tells(UserError, lambda: recover(path))
    tells(UserError, lambda: list(read(tmp_path)))


def test_a_dataset_damaged_at_its_beginning_is_not_thrown_away(recording, tmp_path):
    path = tmp_path / "0.mcap"
    broken = recording[:8] + b"\xee" + recording[9:] + bytes(1 << 17)
    path.write_bytes(broken)
    assert recover(path)
    assert (tmp_path / "0.damaged").read_bytes() == broken and not path.exists()


@given(edits)
@fuzzed
def test_a_checkpoint(update, tmp_path, how):
    whole = tmp_path / "whole"
    if not whole.exists():
        checkpoint.save(whole, model(), update, checkpoint.Progress("a", 0, 5, {"train_loss": 1.0}))
    (tmp_path / "changed").mkdir(exist_ok=True)
    for file in whole.iterdir():
        (tmp_path / "changed" / file.name).write_bytes(changed(file.read_bytes(), how))
    tells(ValueError, lambda: checkpoint.load(tmp_path / "changed", model(), "ensemble"))


@given(edits)
@fuzzed
def test_a_robot_and_its_guard(tmp_path, how):
    path, spec = tmp_path / "robot.yaml", make_task("cartpole_swingup").spec
    path.write_bytes(changed(share("config/robots/cartpole.yaml").read_bytes(), how))

    def use() -> None:
        robot = load(path)
        check_robot(robot, spec)
        guard_config(robot, spec)

    tells(UserError, use)


@given(edits)
@fuzzed
def test_a_parameters_file(tmp_path: Path, how):
    path = tmp_path / "parameters.yaml"
    path.write_bytes(changed(share("config/cartpole_swingup.yaml").read_bytes(), how))
    tells(UserError, lambda: file_parameters(path, "planner_node", ""))


@given(edits)
@fuzzed
def test_an_mjcf(tmp_path: Path, how):
    path = tmp_path / "robot.xml"
    path.write_bytes(changed(Pendulum.mjcf.read_bytes(), how))

    class Other(Pendulum):
        mjcf = path

    tells(UserError, lambda: Simulator(Other(), seed=0))
