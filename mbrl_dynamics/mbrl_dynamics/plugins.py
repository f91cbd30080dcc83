"""Finds models, planners, agents and tasks, ours and other people's, through entry points."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from mbrl_dynamics.config import one_of
from mbrl_dynamics.errors import UserError

KINDS = ("models", "planners", "agents", "tasks")


def names(kind: str) -> list[str]:
    """Names of all installed plugins of a kind: one of "models", "planners", "agents", "tasks"."""
    return sorted({entry.name for entry in entry_points(group=f"mbrl.{kind}")})


def find(kind: str, name: str) -> Any:
    """Import the class that an entry point or a "package.module:Class" names.

    Raises:
        UserError: nothing of that name is installed, or it cannot be imported.
    """
    singular = kind.removesuffix("s")
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot load {singular} '{name}': {error}") from error
    one_of(singular, name, names(kind))
    (entry, *_) = entry_points(group=f"mbrl.{kind}", name=name)
    try:
        return entry.load()
    except ImportError as error:
        raise UserError(f"cannot load {singular} '{name}': {error}") from error


def make_task(name: str, action_repeat: int = 0) -> Any:
    """Make the task of a name.

    Args:
        name: as for `find`.
        action_repeat: frames in a control period; 0 = as the task says.

    Raises:
        UserError: there is none of that name, or it cannot be made so.
    """
    factory = find("tasks", name)
    options = {"action_repeat": action_repeat} if action_repeat else {}
    try:
        return factory(**options)
    except TypeError as error:
        raise UserError(f"task '{name}' cannot be made with {options or 'no arguments'}: {error}") from error
