"""The workspace as a whole: packages, declared dependencies, licences, interfaces and entry points agree."""

from __future__ import annotations

import ast
import re
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import distribution, entry_points, packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PYTHON_PACKAGES = ("mbrl_dynamics", "mbrl_planner", "mbrl_sim", "mbrl_bringup")
PACKAGES = ("mbrl_msgs", *PYTHON_PACKAGES)
INTERFACES = sorted(
    file for kind in ("msg", "srv", "action") for file in (ROOT / "mbrl_msgs").glob(f"{kind}/*")
)

# Import name -> rosdep key, for what is not part of ROS itself.
ROSDEP = {
    "annotated_types": "python3-pydantic-pip",  # pydantic brings it
    "array_api_compat": "python3-array-api-compat-pip",
    "circus": "python3-circus-pip",
    "cv2": "python3-opencv",
    "gpytorch": "python3-gpytorch-pip",
    "matplotlib": "python3-matplotlib",
    "mcap": "python3-mcap-pip",
    "mujoco": "python3-mujoco-pip",
    "numpy": "python3-numpy",
    "ompl": "python3-ompl-pip",
    "psutil": "python3-psutil",
    "pydantic": "python3-pydantic-pip",
    "rich": "python3-rich",
    "rosbags": "python3-rosbags-pip",
    "safetensors": "python3-safetensors-pip",
    "scipy": "python3-scipy",
    "sklearn": "python3-sklearn",
    "tensorboardX": "python3-tensorboardx-pip",
    "torch": "python3-pytorch-pip",
    "transforms3d": "python3-transforms3d",
    "yaml": "python3-yaml",
}
# The keys among these, and of the tests, that rosdistro itself has.
IN_ROSDISTRO = {
    "python3-gymnasium-pip",
    "python3-hypothesis",
    "python3-matplotlib",
    "python3-mujoco-pip",
    "python3-numpy",
    "python3-opencv",
    "python3-psutil",
    "python3-pytest",
    "python3-pytest-timeout",
    "python3-pytorch-pip",
    "python3-rich",
    "python3-rosbags-pip",
    "python3-scipy",
    "python3-sklearn",
    "python3-transforms3d",
    "python3-yaml",
}


def manifest(package: str) -> ET.Element:
    return ET.parse(ROOT / package / "package.xml").getroot()


def setup_arguments(package: str) -> dict[str, ast.expr]:
    """The keyword arguments in a package's setup.py."""
    tree = ast.parse((ROOT / package / "setup.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if ast.unparse(call.func) == "setup"]
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def imports(package: str) -> set[str]:
    """Top-level packages that the package's code imports, without the standard library and itself."""
    found: set[str] = set()
    for folder in (package, "launch"):
        for file in (ROOT / package / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.partition(".")[0])
    # pytest is for the contract tests in testing.py, which only run where it is installed anyway.
    return found - set(sys.stdlib_module_names) - {package, "pytest"}


def pinned(*names: str) -> set[str]:
    """Distributions that requirements/<name>.txt pin, in their normal form."""
    lines = [
        line for name in names for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    ]
    found = [re.match(r"([A-Za-z0-9._-]+)(\[\w+\])?==", line) for line in lines]
    return {re.sub(r"[-_.]+", "-", match.group(1)).lower() for match in found if match}


@pytest.mark.parametrize("package", PACKAGES)
def test_manifest_is_complete(package: str) -> None:
    root = manifest(package)
    assert root.get("format") == "3"
    assert root.findtext("name") == package
    assert root.findtext("license") == "Apache-2.0"
    assert root.findtext("version") == manifest("mbrl_msgs").findtext("version")
    assert root.findtext("export/build_type") == ("ament_cmake" if package == "mbrl_msgs" else "ament_python")


@pytest.mark.parametrize("package", PYTHON_PACKAGES)
def test_setup_and_manifest_agree(package: str) -> None:
    given, root = setup_arguments(package), manifest(package)
    assert ast.literal_eval(given["name"]) == package
    for field, tag in (("version", "version"), ("description", "description"), ("license", "license")):
        assert ast.literal_eval(given[field]) == root.findtext(tag)
    assert (ROOT / package / "resource" / package).is_file()


@pytest.mark.parametrize("package", PYTHON_PACKAGES)
def test_scripts_find_python_by_the_environment(package: str) -> None:
    text = (ROOT / package / "setup.cfg").read_text()
    assert "executable=/usr/bin/env python3" in text
    assert f"install_scripts=$base/lib/{package}" in text


@pytest.mark.parametrize("package", PYTHON_PACKAGES)
def test_manifest_names_everything_that_is_imported(package: str) -> None:
    needed = {ROSDEP.get(name, name) for name in imports(package)}
    declared = {tag.text for tag in manifest(package) if tag.tag in ("depend", "exec_depend")}
    assert not needed - declared
    assert not {key for key in declared if key and key.startswith("python3-")} - needed, (
        "declared, but not imported"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_each_python_key_is_known_to_rosdep(package: str) -> None:
    ours = set(yaml.safe_load((ROOT / "tools" / "rosdep.yaml").read_text()))
    keys = {tag.text or "" for tag in manifest(package) if tag.tag.endswith("depend")}
    assert not {key for key in keys if key.startswith("python3-")} - ours - IN_ROSDISTRO


def test_what_is_imported_is_pinned_and_nothing_else() -> None:
    owners = packages_distributions()
    imported = set().union(*(imports(package) for package in PYTHON_PACKAGES)) & set(ROSDEP)
    found = {re.sub(r"[-_.]+", "-", owners[name][0]).lower() for name in imported}
    # On a full ROS 2 OpenCV is the system's, which may go by another name.
    assert found - {"opencv", "opencv-python"} | {"opencv-python-headless"} == pinned("base")


def test_each_requirement_is_in_the_lock() -> None:
    assert not pinned("base", "ros", "dev") - pinned("lock")


@pytest.mark.parametrize("file", INTERFACES, ids=lambda file: file.name)
def test_each_field_of_an_interface_has_a_comment(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# "), "an interface begins by saying what it is"
    previous = ""
    for line in lines:
        code = line.partition("#")[0].strip()
        if code and code != "---":
            assert "# " in line or previous.startswith("#") or "=" in code or code.endswith("error_code"), (
                line
            )
        previous = line.strip()


def test_each_interface_is_built() -> None:
    text = (ROOT / "mbrl_msgs" / "CMakeLists.txt").read_text()
    assert {f"{file.parent.name}/{file.name}" for file in INTERFACES} == set(
        re.findall(r'"(\w+/\w+\.\w+)"', text)
    )


def our_entry_points() -> list[tuple[str, str, str]]:
    """(group, name, target) of each entry point in the setup files."""
    found = []
    for package in PYTHON_PACKAGES:
        for group, lines in ast.literal_eval(setup_arguments(package)["entry_points"]).items():
            found += [(group, *map(str.strip, line.split("="))) for line in lines]
    return found


@pytest.mark.parametrize(("group", "name", "target"), our_entry_points(), ids=lambda value: value)
def test_entry_point_is_installed_and_loads(group: str, name: str, target: str) -> None:
    matches = [entry for entry in entry_points(group=group, name=name) if entry.value == target]
    assert matches, "not installed: build the workspace again"
    assert callable(matches[0].load())


def test_licence_text_is_there() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


PERMISSIVE = re.compile(
    r"apache|\bmit\b|\bbsd\b|0bsd|\bisc\b|\bpsf\b|python software foundation|\bmpl\b|mozilla|zlib|unlicense|"
    r"hpnd|eclipse|public.domain|\bzpl\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("name", sorted(pinned("base")))
def test_what_runs_with_us_has_a_compatible_licence(name: str) -> None:
    metadata = distribution(name).metadata
    fields = [
        metadata.get("License-Expression"),
        metadata.get("License"),
        *metadata.get_all("Classifier", []),
    ]
    told = " | ".join(field for field in fields if field and (not field.count("::") or "License" in field))
    assert PERMISSIVE.search(told), f"{name} says: {told[:200]!r}"
