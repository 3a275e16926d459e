"""Paths into nested tables: finding, setting and naming values."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, TypeAlias

from isoflop.config.fields import Table

Path: TypeAlias = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dotted(path: Path) -> str:
    """`("families", "vit", "sizes", 0)` as `families.vit.sizes[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else json.dumps(part))
    return text


def reach(tree: Any, path: Path) -> tuple[Path, Any]:
    """How much of `path` exists in `tree`, and the value there."""
    for depth, part in enumerate(path):
        in_list = isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)
        if not in_list and not (isinstance(tree, Mapping) and part in tree):
            return path[:depth], tree
        tree = tree[part]
    return path, tree


def exists(tree: Any, path: Path) -> bool:
    """Whether all of `path` exists in `tree`."""
    return reach(tree, path)[0] == path


def flatten(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a configuration with its path; a list and an empty table are one value."""
    if isinstance(value, Table):
        value = {**{name: getattr(value, name) for name in type(value).model_fields}, **(value.model_extra or {})}
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from flatten(item, (*path, key))
    else:
        yield path, value


def literal(value: Any) -> str:
    """A value as TOML writes it; nothing, which TOML cannot write, as `none`."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str() | PurePath():
            return json.dumps(str(value), ensure_ascii=False)
        case list() | tuple():
            return f"[{', '.join(map(literal, value))}]"
        case Mapping():
            return "{" + ", ".join(f"{dotted((key,))} = {literal(item)}" for key, item in value.items()) + "}"
        case _:
            return str(value)
