"""The README's examples are run, and what is generated is up to date."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from mbrl_dynamics import types
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.spec import Element
from mbrl_dynamics.testing import PointMass, check_model, check_task, record
from mbrl_planner.planners.sampling import SamplingPlanner
from mbrl_planner.testing import check_planner
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.base import MujocoTask

ROOT = Path(__file__).resolve().parents[2]
MJCF = """<mujoco><worldbody><body><joint name="slide" type="slide" axis="1 0 0"/>
<geom type="sphere" size=".1" mass="1"/></body></worldbody>
<actuator><motor joint="slide" gear="5" ctrllimited="true" ctrlrange="-1 1"/></actuator></mujoco>"""


def example(name, **known):
    """The class of that name, from the README's code, and how many lines it has."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if f"class {name}(" in block]
    scope = {"np": np, "torch": torch, "Path": Path, **known}
    exec(block, scope)
    assert len(block.splitlines()) < 20
    return scope[name]


def test_the_example_of_a_task(tmp_path):
    torch.set_num_threads(1)
    (tmp_path / "reach.xml").write_text(MJCF)
    task = example("Reach", MujocoTask=MujocoTask, Element=Element, __file__=str(tmp_path / "reach.py"))()
    simulator = Simulator(task, seed=0)
    check_task(task, np.array([simulator.step(np.array([force])).observation for force in (-5, 0, 5, 5)]))


def test_the_example_of_a_planner():
    torch.set_num_threads(1)
    check_planner(example("RandomShooting", SamplingPlanner=SamplingPlanner), score=0.3)


def test_the_example_of_a_model():
    torch.set_num_threads(1)
    check_model(example("Linear", ObservationModel=ObservationModel, Prediction=types.Prediction))


def test_the_example_of_an_inverse_model():
    torch.set_num_threads(1)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "Inverse(" in block]
    world, obs = PointMass(), torch.tensor([[0.3, -0.2]])
    buffer = record(lambda o, a: world.A @ o + world.B @ a, world.spec, 8, 50)
    seen = {"obs": {"vector": obs}, "later": {"vector": obs + 0.1}, "action": torch.zeros(1, 1)}
    scope = {"spec": world.spec, "buffer": buffer, **seen}
    exec(block, scope)
    assert scope["path"].shape == (1, 4, 2)
    assert scope["belief"].log_prob(scope["action"]).shape == (1,)


def test_the_reference_is_up_to_date():
    check = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr


def test_the_mistakes_that_tests_of_learning_must_notice_can_still_be_made():
    check = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "mutants.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr
