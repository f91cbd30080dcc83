from setuptools import find_packages, setup

setup(
    name="mbrl_planner",
    version="0.1.0",
    description="What chooses: planners that search through a model, and agents that learn a policy.",
    license="Apache-2.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/mbrl_planner"]),
        ("share/mbrl_planner", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    entry_points={
        "console_scripts": [
            "planner_node = mbrl_planner.ros.planner_node:main",
            "policy_node = mbrl_planner.ros.policy_node:main",
            "teleop_node = mbrl_planner.ros.teleop_node:main",
        ],
        "mbrl.agents": [
            "bco = mbrl_planner.agents.bco:BCO",
            "dreamer = mbrl_planner.agents.dreamer:Dreamer",
            "dyna_q = mbrl_planner.agents.dyna_q:DynaQ",
            "latent_sac = mbrl_planner.agents.latent_sac:LatentSAC",
            "mba = mbrl_planner.agents.mba:MBA",
            "mbmf = mbrl_planner.agents.mbmf:MBMF",
            "mbpo = mbrl_planner.agents.mbpo:MBPO",
            "muzero = mbrl_planner.agents.muzero:MuZero",
            "mve = mbrl_planner.agents.mve:MVE",
            "pg = mbrl_planner.agents.pg:PG",
            "sac = mbrl_planner.agents.sac:SAC",
            "svg = mbrl_planner.agents.svg:SVG",
            "tdmpc = mbrl_planner.agents.tdmpc:TDMPC",
        ],
        "mbrl.planners": [
            "cem = mbrl_planner.planners.cem:CEM",
            "gradient = mbrl_planner.planners.gradient:Gradient",
            "icem = mbrl_planner.planners.icem:ICEM",
            "ilqr = mbrl_planner.planners.ilqr:ILQR",
            "lqr = mbrl_planner.planners.lqr:LQR",
            "mcts = mbrl_planner.planners.mcts:MCTS",
            "mppi = mbrl_planner.planners.mppi:MPPI",
            "pddm = mbrl_planner.planners.pddm:PDDM",
            "random_shooting = mbrl_planner.planners.random_shooting:RandomShooting",
            "rrt = mbrl_planner.planners.rrt:RRT",
        ],
    },
)
