"""A simulated robot that learns a policy while it acts: sim_mpc.launch.py with another default agent.

ros2 launch mbrl_bringup sim_policy.launch.py agent:=sac task:=pendulum
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription
from mbrl_bringup.stack import StackConfig
from mbrl_dynamics.config import describe


def generate_launch_description() -> LaunchDescription:
    """The same arguments and processes."""
    about = next(field.description for field in describe(StackConfig) if field.name == "agent")
    agent = DeclareLaunchArgument("agent", default_value="mbpo", description=about)
    same = PythonLaunchDescriptionSource(str(Path(__file__).with_name("sim_mpc.launch.py")))
    return LaunchDescription([agent, IncludeLaunchDescription(same)])
