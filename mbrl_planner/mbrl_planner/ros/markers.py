"""A decision drawn for RViz: candidate rollouts coloured by return, the best plan, and its spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from mbrl_dynamics.ros.convert import time_msg
from mbrl_planner.interfaces import Plan

FRAME = "world"
LIFETIME = 1.0  # a drawing goes when no newer one replaces it [s]
Points = NDArray[np.float64]

_LOW, _HIGH = np.array([0.25, 0.10, 0.50]), np.array([1.00, 0.85, 0.15])  # worst and best return, RGB


def plan_markers(plan: Plan, task: Any, stamp: float) -> MarkerArray:
    """The first plan of the batch as markers; only the most telling point of the robot is drawn.

    Args:
        plan: made with `display`.
        task: with `points(obs) -> [..., K, 3]`, in the world frame [m].
        stamp: of the State that was planned from [s].
    """
    if (
        plan.obs is None
        or plan.spread is None
        or plan.candidate_obs is None
        or plan.candidate_returns is None
    ):
        return MarkerArray()
    best = _points(task, plan.obs[0])
    candidates = _points(task, plan.candidate_obs[0])
    spread = _spread(task, plan)
    lines = _marker("candidates", Marker.LINE_LIST, stamp, 0.004)
    lines.points = _messages(np.repeat(candidates, 2, axis=1)[:, 1:-1].reshape(-1, 3))
    colors = [_color(rgb, 0.5) for rgb in _by_return(plan.candidate_returns[0].cpu().numpy())]
    per_line = 2 * (candidates.shape[1] - 1)
    lines.colors = [color for color in colors for _ in range(per_line)]
    strip = _marker("best plan", Marker.LINE_STRIP, stamp, 0.015)
    strip.points, strip.color = _messages(best), _color(np.array([0.1, 0.9, 0.3]), 1.0)
    balls = [_ball(i, best[i], spread[i], stamp) for i in range(1, len(best), max(1, len(best) // 8))]
    return MarkerArray(markers=[lines, strip, *balls])


def _points(task: Any, obs: Any) -> Points:
    """The most telling point [..., 3] of each observation."""
    return np.asarray(task.points(obs.detach().cpu().numpy().astype(np.float64)))[..., 0, :]


def _spread(task: Any, plan: Plan) -> Points:
    """Standard deviation of the point along the plan [H+1, 3] [m], each element's spread taken by itself."""
    assert plan.obs is not None and plan.spread is not None
    obs, spread = plan.obs[0], plan.spread[0]
    centre = _points(task, obs)
    variance = np.zeros_like(centre)
    for element in range(obs.shape[-1]):
        moved = obs.clone()
        moved[:, element] += spread[:, element]
        variance += (_points(task, moved) - centre) ** 2
    return np.sqrt(variance)


def _by_return(returns: Points) -> Points:
    """RGB [N, 3]: each return between the worst and the best."""
    finite = np.where(
        np.isfinite(returns), returns, np.nanmin(np.where(np.isfinite(returns), returns, np.nan))
    )
    share = (finite - finite.min()) / max(float(np.ptp(finite)), 1e-9)
    return _LOW + share[:, None] * (_HIGH - _LOW)


def _ball(number: int, centre: Points, spread: Points, stamp: float) -> Marker:
    ball = _marker("spread", Marker.SPHERE, stamp, 0.0)
    ball.id = number
    ball.pose.position = Point(x=centre[0], y=centre[1], z=centre[2])
    ball.scale.x, ball.scale.y, ball.scale.z = (float(max(2.0 * s, 1e-3)) for s in spread)
    ball.color = _color(np.array([0.1, 0.9, 0.3]), 0.2)
    return ball


def _marker(namespace: str, kind: int, stamp: float, width: float) -> Marker:
    marker = Marker(ns=namespace, type=kind, action=Marker.ADD)
    marker.header.frame_id, marker.header.stamp = FRAME, time_msg(stamp)
    marker.lifetime = Duration(sec=int(LIFETIME), nanosec=int(1e9 * (LIFETIME % 1.0)))
    marker.pose.orientation.w = 1.0
    marker.scale.x = width
    return marker


def _messages(points: Points) -> list[Point]:
    return [Point(x=x, y=y, z=z) for x, y, z in points.tolist()]


def _color(rgb: Points, alpha: float) -> ColorRGBA:
    return ColorRGBA(r=float(rgb[0]), g=float(rgb[1]), b=float(rgb[2]), a=alpha)
