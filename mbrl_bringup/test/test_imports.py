"""The import rules: right imports left, ROS only below ros/, MuJoCo only in mbrl_sim."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mbrl_dynamics", "mbrl_planner", "mbrl_sim", "mbrl_bringup")
OURS = frozenset({"mbrl_msgs", *PACKAGES})
MAY_IMPORT = {
    "mbrl_dynamics": {"mbrl_msgs"},
    "mbrl_planner": {"mbrl_msgs", "mbrl_dynamics"},
    "mbrl_sim": {"mbrl_msgs", "mbrl_dynamics"},
    "mbrl_bringup": {"mbrl_msgs", "mbrl_dynamics", "mbrl_planner", "mbrl_sim"},
}
ROS = frozenset(
    {
        *("rclpy", "mbrl_msgs", "action_msgs", "builtin_interfaces", "diagnostic_msgs", "geometry_msgs"),
        *("nav_msgs", "rcl_interfaces", "rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs"),
        *("trajectory_msgs", "unique_identifier_msgs", "visualization_msgs", "launch", "launch_ros"),
    }
)
FILES = [file for package in PACKAGES for file in sorted((ROOT / package / package).rglob("*.py"))]
IDS = [str(file.relative_to(ROOT).relative_to(file.relative_to(ROOT).parts[0])) for file in FILES]


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"line {node.lineno}: imports are absolute, so that these rules can be read"
            )
            found.add((node.module or "").partition(".")[0])
    return found


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def below_ros(file: Path) -> bool:
    return "ros" in file.relative_to(ROOT).parts[2:-1]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT / package_of(file)).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_a_file_imports_only_what_its_place_allows(file: Path) -> None:
    names = imported(ast.parse(file.read_text(), str(file)))
    package = package_of(file)
    assert not (names & OURS) - MAY_IMPORT[package] - {package}
    if not below_ros(file):
        assert not names & ROS, "ROS is imported only below ros/"
    if package != "mbrl_sim":
        assert not names & {"mujoco", "dm_control"}, "MuJoCo is imported only in mbrl_sim"
    if package == "mbrl_sim" and file.parent.name != "models":
        assert "torch" not in names, "the simulator never loads torch; only the models that wrap it do"


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_nothing_received_can_run_as_code(file: Path) -> None:
    tree = ast.parse(file.read_text(), str(file))
    assert not imported(tree) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load"), (
            f"line {node.lineno}: {called}"
        )
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: torch.load unpickles"
        if called in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", (
                f"line {node.lineno}: numpy.load unpickles"
            )


JUDGE = """
import importlib, sys

class Absent:  # a finder that knows these packages as not installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not available here", name=name)

absent, modules = set(sys.argv[1].split(",")) - {""}, sys.argv[2].split(",")
sys.meta_path.insert(0, Absent())
for module in modules:
    importlib.import_module(module)
print(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(*modules: str, absent: frozenset[str] = frozenset()) -> set[str]:
    """Top-level packages in `sys.modules` of a new process that has imported some modules."""
    command = [sys.executable, "-c", JUDGE, ",".join(sorted(absent)), ",".join(modules)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


@pytest.mark.parametrize("module", ["errors", "config", "plugins", "spec", "transition", "contract"])
def test_the_shared_vocabulary_loads_neither_torch_nor_ros(module: str) -> None:
    assert not loaded_by(f"mbrl_dynamics.{module}") & ({"torch", "mujoco"} | ROS)


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_outside_ros_folders_works_without_ros(package: str) -> None:
    modules = [module_name(file) for file in FILES if package_of(file) == package and not below_ros(file)]
    modules = [module for module in modules if not module.endswith("__main__")]
    assert not loaded_by(*modules, absent=ROS | {"ament_index_python"}) & ROS


def test_the_simulator_node_never_loads_torch() -> None:
    assert "torch" not in loaded_by("mbrl_sim.ros.sim_node", absent=frozenset({"torch"}))


def test_a_robot_never_depends_on_torch_or_mujoco() -> None:
    loaded = loaded_by("mbrl_bringup.ros.robot_bridge_node", absent=frozenset({"torch", "mujoco"}))
    assert not loaded & {"torch", "mujoco"}


def test_planning_and_learning_nodes_never_load_mujoco() -> None:
    nodes = (
        *("mbrl_planner.ros.planner_node", "mbrl_planner.ros.policy_node", "mbrl_dynamics.ros.dynamics_node"),
        "mbrl_planner.learner_child",
    )
    assert not loaded_by(*nodes) & {"mujoco", "mbrl_sim"}
