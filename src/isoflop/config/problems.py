"""Error messages from the errors that pydantic reports."""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, TypeAlias, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from isoflop.config.fields import Table, variants
from isoflop.errors import did_you_mean

# Paths into nested tables: finding, setting and naming values.


KeyPath: TypeAlias = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dotted(path: KeyPath) -> str:
    """`("families", "vit", "sizes", 0)` as `families.vit.sizes[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else json.dumps(part))
    return text


def reach(tree: Any, path: KeyPath) -> tuple[KeyPath, Any]:
    """How much of `path` exists in `tree`, and the value there."""
    for depth, part in enumerate(path):
        in_list = isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)
        if not in_list and not (isinstance(tree, Mapping) and part in tree):
            return path[:depth], tree
        tree = tree[part]
    return path, tree


def exists(tree: Any, path: KeyPath) -> bool:
    """Whether all of `path` exists in `tree`."""
    return reach(tree, path)[0] == path


def flatten(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
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


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "string_too_short": "some text, not empty",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}


def sentences(error: ValidationError, root: type[Table], raw: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Where each problem is in `raw`, and what it is; what went wrong with one value is told in one sentence."""
    expectations: dict[KeyPath, list[str]] = {}
    found = error.errors(include_url=False)
    for details in found:
        if details["type"] == "too_short" and any(_is_below(other["loc"], details["loc"]) for other in found):
            continue  # it is short of those items alone that are told by themselves
        location = _without_tags(root, tuple(details["loc"]))
        if root.inherits(location) and not exists(raw, location):
            continue  # told where it was written
        path, value = reach(raw, location)
        match details["type"]:
            case "problem":
                context = details["ctx"]
                path = (*location, *context["key"].split("."))
                yield path, f"`{dotted(path)}` {context['message']}"
            case "extra_forbidden":
                yield path, _unknown(root, path, raw)
            case "union_tag_not_found":
                path = (*location, "name")
                yield path, f"`{dotted(path)}` is missing (one of {_names(root, location)})"
            case "union_tag_invalid":
                path = (*location, "name") if isinstance(value, Mapping) else location
                tag, known = details["ctx"]["tag"], details["ctx"]["expected_tags"].replace("'", "").split(", ")
                near = did_you_mean(tag, known)
                yield path, f'`{dotted(path)}` = "{tag}" must be one of {_names(root, location)}{near}'
            case "missing" if isinstance(location[-1], str):
                yield location, f"`{dotted(location)}` is missing{_missing(root, location, value)}"
            case "too_short" if isinstance(value, list) and len(value) >= details["ctx"]["min_length"]:
                continue  # one of its entries is refused, and told
            case _:
                expectations.setdefault(path, []).append(_expected(root, path, value, details))
    for path, expected in expectations.items():
        name = f"`{dotted(path)}`" if path else "everything"
        value = _short(literal(reach(raw, path)[1]))
        yield path, f"{name} = {value} must be {_either(list(dict.fromkeys(expected)))}"


def _is_below(path: KeyPath, other: KeyPath) -> bool:
    return len(path) > len(other) and path[: len(other)] == other


def _without_tags(root: type[Table], location: KeyPath) -> KeyPath:
    """pydantic's location less the tags with which it says which of several tables it took."""
    path: KeyPath = ()
    for part in location:
        tables = variants(_annotation(root, path)) if path else ()
        if not (len(tables) > 1 and part in [_name(table) for table in tables]):
            path = (*path, part)
    return path


def _name(table: type[Table]) -> str:
    return str(get_args(table.model_fields["name"].annotation)[0])


def _names(root: type[Table], path: KeyPath) -> str:
    return ", ".join(f'"{_name(table)}"' for table in variants(_annotation(root, path)))


def _expected(root: type[Table], path: KeyPath, value: Any, details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
        return "one of " + ", ".join(f'"{choice}"' for choice in choices) + did_you_mean(str(value), choices)
    if kind in ("too_short", "too_long", "missing"):
        annotation = _annotation(root, path)
        items = get_args(annotation) if get_origin(annotation) is tuple else ()
        if items and ... not in items:
            return f"a list of {len(items)}"
        return f"a list of at least {context['min_length']}" if kind == "too_short" else details["msg"]
    if kind == "string_pattern_mismatch":
        return f"as described: {_description(root, path)}"
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**context)
    return details["msg"]


def _unknown(root: type[Table], path: KeyPath, raw: Mapping[str, Any]) -> str:
    if path[-1] in _fields(_annotation(root, path[:-1])):  # of several tables that may stand there, another's
        return f"`{dotted(path)}` is not a key of {literal(reach(raw, (*path[:-1], 'name'))[1])}"
    return f"unknown key `{dotted(path)}`{_suggestion(root, path)}"


def _suggestion(root: type[Table], path: KeyPath) -> str:
    """Near keys of the same table, else near keys anywhere, else what the table knows."""
    siblings = list(_fields(_annotation(root, path[:-1])))
    word = str(path[-1])
    by_name = {known.rpartition(".")[2]: known for known in reversed(list(_known(root)))}
    return (
        did_you_mean(word, siblings, written=lambda name: dotted((*path[:-1], name)))
        or did_you_mean(word, by_name, cutoff=0.8, written=by_name.__getitem__)
        or f"; known here: {', '.join(siblings)}"
    )


def _missing(root: type[Table], path: KeyPath, table: Any) -> str:
    description = _description(root, path)
    about = f" ({description})" if description else ""
    if isinstance(table, Mapping):
        known = _fields(_annotation(root, path[:-1]))
        near = get_close_matches(str(path[-1]), [key for key in table if key not in known], n=1)
        if near:
            return f"{about} - is it `{dotted((*path[:-1], near[0]))}`?"
    return about


def _description(root: type[Table], path: KeyPath) -> str:
    field = _fields(_annotation(root, path[:-1])).get(str(path[-1]))
    return (field.description or "").split(". ")[0].rstrip(".") if field else ""


def _annotation(annotation: Any, path: KeyPath) -> Any:
    """The type at `path` below a table type, or None."""
    for part in path:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            field = _fields(annotation).get(str(part))
            annotation = field.annotation if field else None
    return annotation


def _fields(annotation: Any) -> Mapping[str, Any]:
    return {name: field for table in reversed(variants(annotation)) for name, field in table.model_fields.items()}


def _known(annotation: Any, prefix: str = "") -> Iterator[str]:
    """Every key below a table type, dotted, but for those of tables that need not be there; `NAME` where any name may
    stand."""
    for name, field in _fields(annotation).items():
        yield prefix + name
        inner = field.annotation
        if get_origin(inner) is dict:
            yield from _known(get_args(inner)[1], f"{prefix}{name}.NAME.")
        elif field.is_required() or field.get_default() is not None:
            yield from _known(inner, f"{prefix}{name}.")


def _either(choices: list[str]) -> str:
    return " or ".join([", ".join(choices[:-1]), choices[-1]]) if len(choices) > 1 else choices[0]


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
