"""docs/scaling.md shows what the functions say."""

from pathlib import Path

import pytest

from benchmarks.scaling import tables

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["ViT-G/14", pytest.param("NFNet-F7+", marks=pytest.mark.long)])
def test_the_tables_of_the_page_are_those_of_the_functions(name: str) -> None:
    for table in tables(name):
        assert table in PAGE
