"""Results that survive a round trip through JSON, so that a report can be drawn without fitting again."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Self


class Record:
    """Base of the frozen dataclasses of `isoflop.laws`: `to_dict` gives JSON values, `from_dict` restores them."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as dicts, lists, strings, numbers, booleans and None."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record whose `to_dict` gave `values`; unknown keys are ignored, missing ones raise TypeError."""
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: _restore(values[name], hints[name]) for name in names if name in values})


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
