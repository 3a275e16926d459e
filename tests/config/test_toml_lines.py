"""Every value of a TOML text is found on the line where it stands."""

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.config.load import key_lines

TEXT = '''\
# a comment with = and [brackets]
steps = 100   # trailing
"quoted key" . plain = 'literal # no comment'
[model]
name = "a \\" b # ]"

[optim]
betas = [0.9, # first
  0.95]
text = """
three = 1
lines"""
after = { a = 1, "b.c" = [1, { d = 2 }] }
[ families . "v i t" ]
sizes = [
  "one",

  "two",
]
x.y.z = 1979-05-27 07:32:00
[[runs]]
a = 1
[runs.inner]
b = 2
[[runs]]
a = 3
quotes = \'\'\'it\'s\'\'\'\'
last = 1'''


def test_lines_of_a_file_with_everything_that_toml_has() -> None:
    tomllib.loads(TEXT)
    assert key_lines(TEXT) == {
        ("steps",): 2,
        ("quoted key",): 3,
        ("quoted key", "plain"): 3,
        ("model",): 4,
        ("model", "name"): 5,
        ("optim",): 7,
        ("optim", "betas"): 8,
        ("optim", "betas", 0): 8,
        ("optim", "betas", 1): 9,
        ("optim", "text"): 10,
        ("optim", "after"): 13,
        ("optim", "after", "a"): 13,
        ("optim", "after", "b.c"): 13,
        ("optim", "after", "b.c", 0): 13,
        ("optim", "after", "b.c", 1): 13,
        ("optim", "after", "b.c", 1, "d"): 13,
        ("families",): 14,
        ("families", "v i t"): 14,
        ("families", "v i t", "sizes"): 15,
        ("families", "v i t", "sizes", 0): 16,
        ("families", "v i t", "sizes", 1): 18,
        ("families", "v i t", "x"): 20,
        ("families", "v i t", "x", "y"): 20,
        ("families", "v i t", "x", "y", "z"): 20,
        ("runs",): 21,
        ("runs", 0): 21,
        ("runs", 0, "a"): 22,
        ("runs", 0, "inner"): 23,
        ("runs", 0, "inner", "b"): 24,
        ("runs", 1): 25,
        ("runs", 1, "a"): 26,
        ("runs", 1, "quotes"): 27,
        ("runs", 1, "last"): 28,
    }


keys = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True), st.text(max_size=4))
scalars = st.one_of(st.integers(-99, 99), st.booleans(), st.floats(allow_nan=False), st.text(max_size=8))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
tables = st.dictionaries(keys, st.dictionaries(keys, values, max_size=4), max_size=4)


def written(value: Any, gap: str) -> str:
    """A value in TOML; `gap` stands wherever a list may hold a line break."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key_text(key)} = {written(item, gap)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{gap}" + "".join(f"{written(item, gap)}{gap},{gap}" for item in value) + "]"
    if isinstance(value, str):
        return key_text(value)
    return json.dumps(value).replace("Infinity", "inf")


def key_text(text: str) -> str:
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


def paths(value: Any, above: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {above} - {()} | {path for key, item in items for path in paths(item, (*above, key))}


@settings(max_examples=30)
@given(tables, st.sampled_from(["", " ", "\n", ' # ] } , "\n', "\r\n\t"]))
def test_the_paths_found_are_those_that_tomllib_reads(document: dict[str, Any], gap: str) -> None:
    text = "".join(
        f"[{key_text(name)}] # c\n" + "".join(f"{key_text(key)}={written(item, gap)}\n" for key, item in table.items())
        for name, table in document.items()
    )
    assert set(key_lines(text)) == paths(tomllib.loads(text))


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "\r\n# x\r\n"])
def test_a_text_without_values_has_no_lines(text: str) -> None:
    assert key_lines(text) == {}
