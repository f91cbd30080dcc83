#!/bin/bash
# Runs a command with ROS and the workspace sourced; exec hands it the container's signals.
source "/opt/ros/$ROS_DISTRO/setup.bash"
source /opt/mbrl/install/setup.bash
exec "$@"
