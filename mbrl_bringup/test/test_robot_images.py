"""A robot's cameras: pixels of every encoding, made smaller by means, and what an episode does with them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbrl_bringup.robot_config import CameraTopic, check_robot, find
from mbrl_bringup.robot_images import Images, pixels
from mbrl_bringup.robot_world import RobotWorld, Status
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Camera
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

CAMERA = Camera("front", 2, 3)


def image(data: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> SimpleNamespace:
    height, width, channels = data.shape
    rows = np.pad(data.reshape(height, -1), ((0, 0), (0, padding)), constant_values=99)
    return SimpleNamespace(
        height=height, width=width, step=width * channels + padding, encoding=encoding, data=rows.tobytes()
    )


def test_every_encoding_becomes_red_green_and_blue():
    rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    alpha = np.concatenate([rgb, np.full((2, 3, 1), 255, np.uint8)], -1)
    seen = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": alpha,
        "bgra8": alpha[..., (2, 1, 0, 3)],
    }
    for encoding, data in seen.items():
        np.testing.assert_array_equal(pixels(image(data, encoding, padding=5), 2, 3), rgb)
    grey = pixels(image(rgb[..., :1], "mono8"), 2, 3)
    np.testing.assert_array_equal(grey, np.repeat(rgb[..., :1], 3, -1))


@given(st.integers(1, 4), st.integers(0, 1), st.integers(0, 2))
def test_an_image_becomes_smaller_by_means_about_its_middle(factor, more, wider):
    small = np.random.default_rng(0).integers(0, 256, (2, 3, 3)).astype(np.uint8)
    large = small.repeat(factor, 0).repeat(factor, 1)  # each pixel as a square
    border = ((more, more), (more + wider, more + wider), (0, 0))
    if factor > 2 * more + 2 * wider:  # the border is too small for a larger factor
        np.testing.assert_array_equal(pixels(image(np.pad(large, border)), 2, 3), small)
    checks = np.indices((2 * factor, 3 * factor)).sum(0)[..., None].repeat(3, -1) % 2 * 200
    if factor % 2 == 0:
        assert (pixels(image(checks.astype(np.uint8)), 2, 3) == 100).all()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (image(np.zeros((2, 3, 2), np.uint8), "yuv422"), "encoding 'yuv422' is unknown; valid: rgb8"),
        (image(np.zeros((2, 2, 3), np.uint8)), "2 x 2 pixels are fewer than the 2 x 3"),
        (SimpleNamespace(height=2, width=3, step=9, encoding="rgb8", data=b"abc"), "3 bytes are no image"),
        (SimpleNamespace(height=2, width=3, step=0, encoding="rgb8", data=bytes(18)), "are no image"),
    ],
)
def test_what_is_no_image_is_told(message, why):
    with pytest.raises(ValueError, match=why):
        pixels(message, 2, 3)
    images = Images({"front": CameraTopic("camera")}, [CAMERA])
    images.take("front", message, 0.0)
    assert images.look(0.01) is None and "camera 'front'" in images.silent(0.01)


class Watched(CartpoleSwingup):
    """The cart-pole, with a camera."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, cameras=(CAMERA,))


def test_an_episode_has_images_and_waits_for_them():
    robot = find("cartpole")
    with pytest.raises(UserError, match="cameras has no 'front'"):
        check_robot(robot, Watched().spec)
    robot = replace(robot, cameras={"front": CameraTopic("camera/image", max_age=0.12)})
    with pytest.raises(UserError, match="element of cameras 'front'"):
        check_robot(robot, CartpoleSwingup().spec)
    world, period = RobotWorld(robot, Watched(), passive=True), 0.05
    joints = SimpleNamespace(
        name=["slider", "hinge"], position=[0.1, 3.0], velocity=[0.0, 0.0], effort=[0.0, 0.0]
    )
    states, now = [], 0.0
    for tick in range(60):
        now += period
        world.senses.take("joints", joints, now, now)
        if 10 <= tick < 30:
            world.senses.images.take("front", image(np.full((2, 3, 3), tick, np.uint8)), now)
        if tick == 1:
            world.reset(now)
            world.ready(now)
        beat = world.tick(now)
        states += [] if beat.state is None else [(tick, beat.state)]
    ticks = [tick for tick, _ in states]
    begin = next(t for t, state in states if state.first)
    assert begin >= 10 and ticks[: 31 - begin] == list(range(begin, 31)), "none without an image"
    for tick, state in states[: 30 - begin]:
        assert (state.images["front"] == tick).all() and not state.fault(world.spec)
    assert states[-1][1].truncated and world.status is Status.NEEDS_RESET
    assert "camera 'front' has been silent" in world.last_fault
