from setuptools import find_packages, setup

setup(
    name="mbrl_sim",
    version="0.1.0",
    description="The world in MuJoCo: one simulator, one file a task.",
    license="Apache-2.0",
    packages=find_packages(exclude=["test"]),
    package_data={"mbrl_sim": ["tasks/*.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/mbrl_sim"]),
        ("share/mbrl_sim", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    extras_require={  # other people's worlds
        "adroit": ["gymnasium-robotics==1.4.2"],
        "dm_control": ["dm_control==1.0.50 ; python_version < '3.13'"],
        "gymnasium": ["gymnasium[mujoco]==1.4.0"],
    },
    entry_points={
        "console_scripts": [
            "driver_node = mbrl_sim.ros.driver_node:main",
            "sim_node = mbrl_sim.ros.sim_node:main",
        ],
        "mbrl.models": [
            "physics = mbrl_sim.models.physics:FittedPhysics",
            "simulator = mbrl_sim.models.simulator:SimulatorModel",
        ],
        "mbrl.tasks": [
            "adroit_pen = mbrl_sim.tasks.adroit_pen:AdroitPen",
            "arm_reach = mbrl_sim.tasks.arm_reach:ArmReach",
            "arm_reach_obstacle = mbrl_sim.tasks.arm_reach_obstacle:ArmReachObstacle",
            "cliff = mbrl_sim.tasks.cliff:Cliff",
            "maze = mbrl_sim.tasks.maze:Maze",
            "pendulum = mbrl_sim.tasks.pendulum:Pendulum",
            "pendulum_swingup = mbrl_sim.tasks.pendulum_swingup:PendulumSwingup",
            "cartpole_swingup = mbrl_sim.tasks.cartpole_swingup:CartpoleSwingup",
            "cartpole_pets = mbrl_sim.tasks.cartpole_pets:CartpolePets",
        ],
        "mbrl.task_families": [
            "dm_control = mbrl_sim.adapters.dm_control:task",
            "gymnasium = mbrl_sim.adapters.gymnasium:task",
        ],
    },
)
