"""A robot that learns a model of itself: sim_mpc.launch.py with a robot in the simulator's place.

ros2 launch mbrl_bringup robot.launch.py robot:=my_robot.yaml driver:=false no_model:=random
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription
from mbrl_bringup.stack import StackConfig
from mbrl_dynamics.config import describe


def generate_launch_description() -> LaunchDescription:
    """The same arguments and processes."""
    about = next(field.description for field in describe(StackConfig) if field.name == "robot")
    robot = DeclareLaunchArgument("robot", default_value="cartpole", description=about)
    same = PythonLaunchDescriptionSource(str(Path(__file__).with_name("sim_mpc.launch.py")))
    return LaunchDescription([robot, IncludeLaunchDescription(same)])
