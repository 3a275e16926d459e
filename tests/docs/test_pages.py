"""Every page can be reached, and links lead to headings that are there; without Sphinx, which `make docs` runs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)


def anchor(heading: str) -> str:
    """A heading as forges and MyST name it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_page_is_in_a_table_of_contents() -> None:
    reached = {DOCS / "index.md"}
    for page in PAGES:
        for block in re.findall(
            r"^```{toctree}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    reached |= set(page.parent.glob(f"{line}.md"))
    assert set(PAGES) - reached == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_to_a_heading_finds_it(page: Path) -> None:
    for file, name in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / file if file else page).read_text(encoding="utf-8")
        assert name in {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def test_every_page_begins_with_its_title() -> None:
    for page in PAGES:
        assert page.read_text(encoding="utf-8").startswith("# "), page


SOURCE = DOCS.parent / "src" / "isoflop"
TERMS = re.findall(r"^\| (.*?) \| `(\S+?)(?::(\S+))?` \|$", (DOCS / "tour.md").read_text("utf-8"), re.MULTILINE)


def test_the_map_has_every_row_and_is_sorted() -> None:
    text = (DOCS / "tour.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("| term | place |")[1].splitlines()[2:] if line]
    assert len(TERMS) == len(rows)
    assert [term.lower() for term, _, _ in TERMS] == sorted(term.lower() for term, _, _ in TERMS)


@pytest.mark.parametrize(("term", "path", "symbol"), TERMS, ids=[term for term, _, _ in TERMS])
def test_every_place_of_the_map_exists(term: str, path: str, symbol: str) -> None:
    names = set()
    for node in ast.parse((SOURCE / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert symbol in names


# Files of other repositories, and an example of a user's own file.
OTHERS = ("nfnets/", "pp/", "util/", "path/")
MODULE = re.compile(r"(?<![\w/:.*{}<-])(?:[\w-]+/)+[\w-]+\.py\b")


def mentioned() -> Iterator[tuple[Path, str]]:
    """Paths of modules in the pages (in backticks) and in the source, and the file that mentions them."""
    for page in [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *PAGES]:
        for quoted in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            yield from ((page, path) for path in MODULE.findall(quoted))
    for module in SOURCE.rglob("*.py"):
        yield from ((module, path) for path in MODULE.findall(module.read_text(encoding="utf-8")))


def test_every_module_that_is_mentioned_exists() -> None:
    stale = {
        f"{file.relative_to(DOCS.parent)}: {path}"
        for file, path in mentioned()
        if not path.startswith(OTHERS)
        and not any((root / path).exists() for root in (DOCS.parent, SOURCE, file.parent, file.parent.parent))
    }
    assert stale == set()
