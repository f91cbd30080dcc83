"""Writes docs/reference.md: every parameter and launch argument, from the configurations themselves.

python tools/reference.py [--check]
"""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mbrl_bringup.nodes import NODES, groups
from mbrl_bringup.stack import StackConfig
from mbrl_dynamics.config import FieldDescription, describe
from mbrl_dynamics.plugins import find, names

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """# Reference

Made by `python tools/reference.py` from the configurations in the code; a test holds it up to date.

Parameters go into a YAML file (`params_file:=my.yaml`, see `mbrl_bringup/config`), or on the command line of
a node (`--ros-args -p icem.horizon:=30`). Those of the planners may be changed at run time; the others are
read-only.
"""
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


def text() -> str:
    """The whole page."""
    parts = [HEAD, _table("Launch arguments", "of `sim_mpc.launch.py` and `mbrl up`", StackConfig, "")]
    for node in NODES:
        tables = groups(node, StackConfig())
        if node == "dynamics_node":  # which declares those of its own model only
            tables |= {name: find("models", name).Config for name in names("models")}
        for group, config in tables.items():
            if not fields(config):
                continue
            title = f"{node}, `{group}.*`" if group else node
            parts.append(_table(title, (config.__doc__ or "").splitlines()[0], config, group))
    return "\n".join(parts)


def _table(title: str, what: str, config: type, group: str) -> str:
    lines = [
        f"## {title}",
        "",
        what,
        "",
        "| name | type | default | unit | valid | meaning |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(field, group) for field in describe(config)]
    return "\n".join(lines) + "\n"


def _row(field: FieldDescription, group: str) -> str:
    kind = get_args(field.type)[0] if hasattr(field.type, "__metadata__") else field.type
    unit = re.search(r" ?\[([^\]]+)\]", field.description)
    meaning = field.description.replace(unit.group(0), "") if unit else field.description
    choices, name = _type(kind)
    valid = choices or ", ".join(
        f"{SIGNS[key]} {getattr(c, key)}" for c in field.constraints for key in SIGNS if hasattr(c, key)
    )
    full = f"{group}.{field.name}" if group else field.name
    cells = [f"`{full}`", name, f"`{_default(field.default)}`", unit.group(1) if unit else "", valid, meaning]
    return f"| {' | '.join(cells)} |"


def _type(kind: Any) -> tuple[str, str]:
    """Choices and name of a field's type."""
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind)), "string"
    if get_origin(kind) is tuple:
        return "", f"list of {get_args(kind)[0].__name__}"
    options = [option for option in get_args(kind) if option is not type(None)]
    if options:
        choices, name = _type(options[0])
        return choices, name
    return "", {"str": "string"}.get(kind.__name__, kind.__name__)


def _default(value: Any) -> str:
    if value is None:
        return "as the files say"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    if "--check" in sys.argv:
        current = TARGET.read_text() == text()
        sys.exit(0 if current else "docs/reference.md is out of date: run tools/reference.py")
    TARGET.write_text(text())
