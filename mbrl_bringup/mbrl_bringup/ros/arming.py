"""`mbrl arm`, `mbrl disarm` and `mbrl stop`: one call to a robot's bridge."""

from __future__ import annotations

import sys
from typing import Any

import rclpy
from std_srvs.srv import Trigger

from mbrl_bringup.ros.visit import visiting
from mbrl_msgs.srv import Arm

PATIENCE = 5.0  # for the bridge to be found and to answer [s]
REFUSED = 1  # exit code


def arm(namespace: str, *, armed: bool = True, without_timeout: bool = False) -> int:
    """Arm or disarm; returns the exit code, 1 if it is refused or nobody answers."""
    response = _call(namespace, Arm, "arm", Arm.Request(armed=armed, without_timeout=without_timeout))
    if response is None:
        return REFUSED
    if response.error_code != Arm.Response.OK:
        print(f"not armed: {response.error_msg}", file=sys.stderr)
        return REFUSED
    print("armed: the controller moves the robot when an episode begins" if armed else "disarmed")
    return 0


def stop(namespace: str) -> int:
    """End motion; returns the exit code, 1 if nobody answers."""
    response = _call(namespace, Trigger, "stop", Trigger.Request())
    if response is None:
        return REFUSED
    print(f"stopped: the guard is {response.message}")
    return 0


def _call(namespace: str, kind: Any, service: str, request: Any) -> Any:
    """The response; None, after a sentence, if there is none."""
    with visiting("mbrl_arming", namespace) as node:
        client = node.create_client(kind, service)
        if client.wait_for_service(timeout_sec=PATIENCE):
            future = client.call_async(request)
            rclpy.spin_until_future_complete(node, future, timeout_sec=PATIENCE)
            if future.done():
                return future.result()
    where = f"namespace '{namespace}'" if namespace else "no namespace"
    print(f"no robot_bridge answers ({where}, waited {PATIENCE:g} s)", file=sys.stderr)
    return None
