from glob import glob

from setuptools import find_packages, setup

setup(
    name="mbrl_bringup",
    version="0.1.0",
    description="How it is put together: launch files, configuration, RViz, and the mbrl command.",
    license="Apache-2.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/mbrl_bringup"]),
        ("share/mbrl_bringup", ["package.xml"]),
        ("share/mbrl_bringup/launch", glob("launch/*.py")),
        ("share/mbrl_bringup/config", glob("config/*.yaml")),
        ("share/mbrl_bringup/config/dm_control", glob("config/dm_control/*.yaml")),
        ("share/mbrl_bringup/config/gymnasium", glob("config/gymnasium/*.yaml")),
        ("share/mbrl_bringup/config/robots", glob("config/robots/*")),
        ("share/mbrl_bringup/rviz", glob("rviz/*.rviz")),
    ],
    install_requires=["setuptools"],
    entry_points={
        "console_scripts": [
            "mbrl = mbrl_bringup.cli:main",
            "robot_bridge = mbrl_bringup.ros.robot_bridge_node:main",
        ],
    },
)
