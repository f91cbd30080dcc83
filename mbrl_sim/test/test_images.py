"""Images in observations: the pictures that the environments themselves would draw."""

import os
import subprocess
import sys

import numpy as np
import pytest
from dm_control import suite
from numpy.testing import assert_array_equal

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.plugins import make_task
from mbrl_sim.worlds import Worlds

REASON = make_task("pendulum").make_simulator().renderer_error()
drawing = pytest.mark.skipif(bool(REASON), reason=REASON)


@drawing
@pytest.mark.parametrize(
    "task, camera",
    [("pendulum", "side"), ("dm_control/reacher-easy", "fixed"), ("gymnasium/Reacher-v5", "free")],
)
def test_transitions_hold_images(task, camera):
    with Worlds(task, 2, image_size=32) as worlds:
        assert [(c.name, c.height, c.width) for c in worlds.spec.cameras] == [(camera, 32, 32)]
        buffer, states = ReplayBuffer(worlds.spec), worlds.reset_all([1, 2])
        first = states[0].images[camera]
        assert (first.shape, first.dtype) == ((32, 32, 3), np.uint8)
        assert (first != states[1].images[camera]).any()
        for _ in range(3):
            for state in states:
                assert not state.fault(worlds.spec)
                buffer.add(state)
            states = worlds.step(np.tile(worlds.spec.action_high, (2, 1)))
        assert (first != states[0].images[camera]).any()
        assert worlds.task.spec.cameras == ()


@drawing
def test_images_cross_processes():
    options = {"seed": 3, "image_size": 24, "camera": "free"}
    with Worlds("pendulum", **options) as here, Worlds("pendulum", processes=True, **options) as there:
        assert here.spec == there.spec
        for ours, theirs in ((here.reset(0), there.reset(0)), (*here.step([[2.0]]), *there.step([[2.0]]))):
            assert_array_equal(ours.images["free"], theirs.images["free"])


@drawing
@pytest.mark.parametrize("domain, name", [("cheetah", "run"), ("ball_in_cup", "catch")])
def test_images_are_those_of_dm_control(domain, name):
    reference = suite.load(domain, name, task_kwargs={"random": 3})
    simulator = make_task(f"dm_control/{domain}-{name}").make_simulator(0, image_size=48)
    reference.reset(), simulator.reset(3)
    for _ in range(5):
        action = np.full(reference.action_spec().shape, 0.3)
        reference.step(action), simulator.step(action)
    (image,) = simulator.images().values()
    difference = np.abs(image.astype(int) - reference.physics.render(48, 48, camera_id=0))
    assert difference.mean() < 1.0


@drawing
def test_an_unknown_camera_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown camera 'top'; valid: fixed, hand, free"):
        Worlds("dm_control/reacher-easy", image_size=64, camera="top")
    with pytest.raises(UserError, match="cannot render 5000 x 5000"):
        Worlds("pendulum", image_size=5000)


def test_what_is_not_made_of_mujoco_has_no_images():
    with pytest.raises(UserError, match="cannot render: this world is not made of MuJoCo"):
        Worlds("gymnasium/CartPole-v1", image_size=64)


@pytest.mark.parametrize(
    "before, setting, words",
    [
        ("", "osmesa", "MUJOCO_GL is 'osmesa', but libOSMesa.so.8"),
        ("", "disable", "MUJOCO_GL is 'disable'"),
        ("import mujoco;", "", "before mbrl_sim"),
    ],
)
def test_without_a_renderer_there_is_one_sentence(before, setting, words):
    code = (
        f"{before}from mbrl_sim.worlds import Worlds; from mbrl_dynamics.errors import UserError\n"
        "try:\n    Worlds('pendulum', image_size=64)\nexcept UserError as error:\n    print(error)"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, **({"MUJOCO_GL": setting} if setting else {})},
    )
    assert run.returncode == 0, run.stderr
    if run.stdout:  # else this machine can draw so, too
        assert run.stdout.startswith("cannot render") and len(run.stdout.splitlines()) == 1
        assert words in run.stdout or REASON
