"""A node that joins the graph for one question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


@contextmanager
def visiting(name: str, namespace: str) -> Iterator[Node]:
    """A node for as long as the block runs; Ctrl-C ends the block as it would without ROS."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Node(name, namespace=namespace)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
