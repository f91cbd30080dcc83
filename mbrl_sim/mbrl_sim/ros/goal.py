"""A goal as messages: a pose, of which only the position counts, and a velocity, in the frame `world`."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray

FRAME = "world"


def goal_messages(state: NDArray[np.float64], stamp: Time) -> tuple[PoseStamped, TwistStamped]:
    """Position and velocity [6] as messages."""
    pose, twist = PoseStamped(), TwistStamped()
    pose.header.frame_id = twist.header.frame_id = FRAME
    pose.header.stamp = twist.header.stamp = stamp
    at, speed = pose.pose.position, twist.twist.linear
    at.x, at.y, at.z, speed.x, speed.y, speed.z = state.tolist()
    return pose, twist


def position_of(msg: PoseStamped) -> NDArray[np.float64]:
    """Where a message says that the goal should be [3], m."""
    at = msg.pose.position
    return np.array([at.x, at.y, at.z])
