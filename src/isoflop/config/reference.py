"""Reference of all keys of a configuration, generated from the types."""

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from isoflop.config.fields import Table, variants
from isoflop.config.problems import literal

WORDS = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "none", Any: "anything"}


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
        if get_origin(inner) is dict and variants(get_args(inner)[1]):
            inner, key = get_args(inner)[1], f"{key}.NAME"
        tables = variants(inner)
        is_optional = tables and not field.is_required() and field.get_default() is None
        if is_optional:
            yield Key(key, "table | none", "none", field.description or "")
        if len(tables) > 1:
            yield from _choice(tables, f"{key}.", field)
        elif tables:
            yield from reference(tables[0], f"{key}.")
        else:
            default = "required" if field.is_required() else literal(field.get_default())
            yield Key(key, allowed(inner), default, field.description or "")


def _choice(tables: tuple[type[Table], ...], prefix: str, field: FieldInfo) -> Iterator[Key]:
    """The name that chooses among several tables, then the keys of each, with that name before their meaning."""
    names: list[Any] = [table.model_fields["name"].annotation for table in tables]
    default = "required" if field.is_required() or not field.get_default() else literal(field.get_default().name)
    yield Key(f"{prefix}name", " | ".join(map(allowed, names)), default, field.description or "")
    for table, name in zip(tables, names, strict=True):
        for key in reference(table, prefix):
            if key.name != f"{prefix}name":
                yield replace(key, meaning=f"With {allowed(name)}: {key.meaning}")


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
