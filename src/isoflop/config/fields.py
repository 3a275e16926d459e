"""Types of configuration values, and the base class of tables.

Types are strict: a string is never read as a number. Three conversions are allowed: a whole number may be `1e5`, a
list is read as a tuple, and "none", which TOML lacks, removes a default.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Table(BaseModel):
    """A TOML table: frozen, strictly typed, closed to unknown keys; the string under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __repr__(self) -> str:
        """Only what is not the default, by dotted keys, as on the command line."""
        return f"{type(self).__name__}({', '.join(self._changes())})"

    __str__ = __repr__

    def _changes(self, prefix: str = "") -> Iterator[str]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.get_default():
                continue
            if isinstance(value, Table):
                yield from value._changes(f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}={value!r}"

    @classmethod
    def inherits(cls, path: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
        """The path whose value stands in where `path` is not set, if there is one."""
        return None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _none(value: Any) -> Any:
    return None if value == "none" else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(gt=0)]
Natural = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]  # what PyTorch's generators take
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # what TOML has for a tuple
FilePath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path))), Field(strict=False)]
T = TypeVar("T")
Maybe = Annotated[T | None, BeforeValidator(_none)]
Scalar = bool | int | float | str


def no_effect(default: Any) -> Any:
    """A field that cannot change what a run learns, so `config_hash` leaves it out."""
    return Field(default=default, json_schema_extra={"in_hash": False})


def names_weights(default: Any = ...) -> Any:
    """A field that may name trained weights: what is in them is a part of `config_hash`, as is their name."""
    return Field(default=default, json_schema_extra={"in_hash": "content"})


def names_data(default: Any = ...) -> Any:
    """A field that says where data lie: `config_hash` leaves the path in it out where `places` do not count."""
    return Field(default=default, json_schema_extra={"in_hash": "place"})


def later_option(default: Any) -> Any:
    """A field that came after runs were made without it: at its default, `config_hash` leaves it out, and they keep
    their ids."""
    return Field(default=default, json_schema_extra={"in_hash": "unless default"})


def variants(annotation: Any) -> tuple[type[Table], ...]:
    """The table types that may stand at a field of this type, where there may be nothing else but none: one, several
    that differ by their `name`, or ()."""
    if get_origin(annotation) is Annotated:
        return variants(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return (annotation,)
    if get_origin(annotation) not in (Union, UnionType):
        return ()
    choices = [variants(choice) for choice in get_args(annotation) if choice is not type(None)]
    return tuple(table for choice in choices for table in choice) if all(choices) else ()


def problem(key: str, message: str) -> PydanticCustomError:
    """An error to raise from a validator: `key` is dotted and relative to the table that is being validated."""
    return PydanticCustomError("problem", "{message}", {"key": key, "message": message})
