"""Finds models, planners, agents and tasks, ours and other people's, through entry points."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from mbrl_dynamics.config import one_of
from mbrl_dynamics.errors import UserError

KINDS = ("models", "planners", "agents", "tasks")
FAMILIES = "mbrl.task_families"


def names(kind: str) -> list[str]:
    """Names of all installed plugins of a kind: one of "models", "planners", "agents", "tasks"."""
    return sorted({entry.name for entry in entry_points(group=f"mbrl.{kind}")})


def families() -> list[str]:
    """Names of the families of tasks, such as "dm_control", to which "dm_control/cheetah-run" belongs."""
    return sorted({entry.name for entry in entry_points(group=FAMILIES)})


def find(kind: str, name: str) -> Any:
    """Import the class that an entry point or a "package.module:Class" names.

    A task "family/name" is found by its family: the entry point of that name in the group
    `mbrl.task_families` is called with the rest of the name, and returns what makes the task.

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
    if kind == "tasks" and "/" in name:
        return _of_family(*name.split("/", 1))
    check(kind, name)
    (entry, *_) = entry_points(group=f"mbrl.{kind}", name=name)
    try:
        return entry.load()
    except ImportError as error:
        raise UserError(f"cannot load {singular} '{name}': {error}") from error


def check(kind: str, name: str) -> None:
    """Look whether a plugin of that name is installed; a "package.module:Class" is left to `find`.

    Raises:
        UserError: there is none; the sentence lists what there is.
    """
    if ":" in name:
        return
    if kind == "tasks" and "/" in name:
        find(kind, name)
        return
    try:
        one_of(kind.removesuffix("s"), name, names(kind))
    except UserError as error:
        more = " and ".join(f"{family}/..." for family in families())
        raise UserError(f"{error}, and all of {more}" if kind == "tasks" and more else str(error)) from None


def _of_family(family: str, name: str) -> Any:
    one_of("family of tasks", family, families())
    (entry, *_) = entry_points(group=FAMILIES, name=family)
    try:
        return entry.load()(name)
    except ImportError as error:
        raise UserError(f"cannot load task '{family}/{name}': {error}") from error


def make_task(name: str, action_repeat: int = 0) -> Any:
    """Make the task of a name.

    Args:
        name: as for `find`.
        action_repeat: frames in a control period; 0 = as the task says.

    Raises:
        UserError: there is none of that name, or it cannot be made so.
    """
    factory: Callable[..., Any] = find("tasks", name)
    options = {"action_repeat": action_repeat} if action_repeat else {}
    try:
        return factory(**options)
    except TypeError as error:
        raise UserError(f"task '{name}' cannot be made with {options or 'no arguments'}: {error}") from error
