"""A robot that learns a model of itself: sim_mpc.launch.py with a robot in the simulator's place.

ros2 launch mbrl_bringup robot.launch.py robot:=my_robot.yaml driver:=false no_model:=random
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """The same arguments and processes."""
    same = PythonLaunchDescriptionSource(str(Path(__file__).with_name("sim_mpc.launch.py")))
    return LaunchDescription(
        [DeclareLaunchArgument("robot", default_value="cartpole"), IncludeLaunchDescription(same)]
    )
