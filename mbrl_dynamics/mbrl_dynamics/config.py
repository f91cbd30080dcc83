"""Configurations: frozen dataclasses that know the valid range of each field.

A configuration stands just above the class that it configures::

    @config
    class CEMConfig:
        horizon: Annotated[int, Field(ge=1, description="how far the plan looks ahead [steps]")] = 25

ROS parameters, command-line arguments and the tables of the documentation are all made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as _pydantic_dataclass
from pydantic.fields import FieldInfo

from mbrl_dynamics.errors import UserError

__all__ = ["Field", "build", "config", "describe", "one_of"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a class a configuration: a frozen dataclass whose fields are validated."""
    settings = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
    return _pydantic_dataclass(cls, frozen=True, config=settings)  # type: ignore[return-value]


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a configuration from names and values, as they come from a file or a command line.

    Raises:
        UserError: a name is unknown, or a value is of the wrong type or out of range.
    """
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in known:
            raise UserError(f"unknown parameter '{prefix}{name}'{_hint(name, known)}")
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = message[0].lower() + message[1:]
        raise UserError(f"parameter '{prefix}{name}' is {first['input']!r}, but it {message}") from None


def one_of(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Raises:
        UserError: it is not; the sentence lists what is.
    """
    known = sorted(known)
    if name not in known:
        raise UserError(f"unknown {kind} '{name}'{_hint(name, known)}")
    return name


def _hint(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean '{close[0]}'?)" if close else ""
    return f"{guess}; valid: {', '.join(known)}"


@dataclasses.dataclass(frozen=True)
class FieldDescription:
    """One field of a configuration, for documentation and ROS parameter descriptors."""

    name: str
    type: Any
    default: Any
    description: str  # with its unit in square brackets
    constraints: tuple[Any, ...]  # annotated_types constraints such as Ge(1)

    def parse(self, value: Any) -> Any:
        """Return the value as the field's type.

        Raises:
            UserError: the value is of the wrong type or out of range.
        """
        try:
            return TypeAdapter(self.type, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Input ")
            raise UserError(
                f"parameter '{self.name}' is {value!r}, but it {message[0].lower() + message[1:]}"
            ) from None


def describe(cls: type) -> list[FieldDescription]:
    """List the fields of a configuration."""
    hints = get_type_hints(cls, include_extras=True)
    result = []
    for field in dataclasses.fields(cls):
        info = FieldInfo.from_annotation(hints[field.name])
        default = getattr(cls, field.name, field.default)
        default = default.default if isinstance(default, FieldInfo) else default
        result.append(
            FieldDescription(
                field.name, hints[field.name], default, info.description or "", tuple(info.metadata)
            )
        )
    return result
