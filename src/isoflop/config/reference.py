"""What every key of a configuration means, from the types themselves."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from isoflop.config.fields import Table
from isoflop.config.tree import literal

WORDS = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "none"}


@dataclass(frozen=True)
class Key:
    """One key: dotted, with `NAME` where any name may stand; what is allowed; the default as TOML, or `required`."""

    name: str
    allowed: str
    default: str
    meaning: str


def reference(kind: type[Table], prefix: str = "") -> Iterator[Key]:
    """Every key below a table type, in the order in which `config show` prints them."""
    for name, field in kind.model_fields.items():
        inner, key = field.annotation, prefix + name
        if get_origin(inner) is dict and _is_table(get_args(inner)[1]):
            inner, key = get_args(inner)[1], f"{key}.NAME"
        if _is_table(inner):
            yield from reference(inner, f"{key}.")
        else:
            default = "required" if field.is_required() else literal(field.get_default(call_default_factory=True))
            yield Key(key, allowed(inner), default, field.description or "")


def _is_table(annotation: Any) -> TypeGuard[type[Table]]:
    return isinstance(annotation, type) and issubclass(annotation, Table)


def allowed(annotation: Any) -> str:
    """A type in words: `whole number`, `"adamw" | "sgd"`, `list of text | whole number`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(literal, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(allowed, inner)))
    if origin is tuple:
        return f"list of {allowed(inner[0])}"
    if origin is dict:
        return f"table of {allowed(inner[1])}"
    if hasattr(annotation, "__metadata__"):
        return allowed(annotation.__origin__)
    return WORDS.get(annotation, "path")
