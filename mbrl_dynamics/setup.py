from setuptools import find_packages, setup

setup(
    name="mbrl_dynamics",
    version="0.1.0",
    description="What predicts: shared types, data, dynamics models and their training.",
    license="Apache-2.0",
    packages=find_packages(exclude=["test"]),
    package_data={"mbrl_dynamics": ["ros/discovery.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/mbrl_dynamics"]),
        ("share/mbrl_dynamics", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    entry_points={
        "console_scripts": [
            "dynamics_node = mbrl_dynamics.ros.dynamics_node:main",
        ],
        "mbrl.models": [
            "ensemble = mbrl_dynamics.models.ensemble:Ensemble",
            "gmm = mbrl_dynamics.models.gmm:GMM",
            "gp = mbrl_dynamics.models.gp:GP",
            "latent = mbrl_dynamics.models.latent:Latent",
            "network = mbrl_dynamics.models.network:Network",
            "residual = mbrl_dynamics.models.residual:Residual",
            "rssm = mbrl_dynamics.models.rssm:RSSM",
            "tabular = mbrl_dynamics.models.tabular:Tabular",
            "tdmpc = mbrl_dynamics.models.tdmpc:LatentDynamics",
        ],
    },
)
