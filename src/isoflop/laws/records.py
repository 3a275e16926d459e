"""Results that survive a round trip through JSON, so that a report can be drawn without fitting again."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Self

LONG = 6
"""Longer lists are counted, not printed."""


class Record:
    """Base of the frozen dataclasses of `isoflop.laws`: `to_dict` gives JSON values, `from_dict` restores them."""

    def __init_subclass__(cls) -> None:
        # A dataclass would print every replicate of a bootstrap; what stands in the class already, it leaves alone.
        cls.__repr__ = Record.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """The fields in few digits; of long ones, how many there are."""
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in fields)})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as dicts, lists, strings, numbers, booleans and None."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record whose `to_dict` gave `values`; unknown keys are ignored, missing ones raise TypeError."""
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: _restore(values[name], hints[name]) for name in names if name in values})


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list) and len(value) > LONG:
        return f"<{len(value)}>"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_short, value))})"
    if isinstance(value, Mapping):
        return f"<{', '.join(map(str, value))}>"
    return repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def _restore(value: Any, hint: Any) -> Any:
    if value is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(value)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_restore(v, args[0]) for v in value)
        return tuple(_restore(v, a) for v, a in zip(value, args, strict=True))
    if origin is dict:
        return {k: _restore(v, args[1]) for k, v in value.items()}
    if origin is not None and type(None) in args:  # X | None
        return _restore(value, next(a for a in args if a is not type(None)))
    return value
