"""The floors of docs/architecture.md: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "isoflop"
MAY_IMPORT = {
    "config": set(),
    "laws": set(),
    "runs": set(),
    "data": {"config", "runs"},
    "models": {"config", "runs"},
    "objectives": {"models", "data", "config", "runs"},
    "train": {"objectives", "data", "models", "config", "runs"},
    "transfer": {"train", "objectives", "data", "models", "config", "runs"},
    "study": {"share", "transfer", "train", "objectives", "data", "models", "config", "laws", "report", "runs"},
    "report": {"laws", "models", "data", "config", "runs"},
    "share": {"transfer", "train", "objectives", "data", "models", "config", "runs"},
    "cli": {"share", "report", "study", "transfer", "train", "objectives", "data", "models", "config", "laws", "runs"},
}


def imported_floors(file: Path) -> set[str]:
    """The packages of isoflop that a file imports anywhere in it."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in modules if name.startswith("isoflop.")} & set(MAY_IMPORT)


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_a_floor_imports_only_from_the_floors_below(floor: str) -> None:
    files = list((SOURCE / floor).rglob("*.py"))
    assert files
    for file in files:
        wrong = imported_floors(file) - MAY_IMPORT[floor] - {floor}
        assert not wrong, f"{file.relative_to(SOURCE)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("floor", ["laws", "runs"])
def test_ground_floors_need_no_torch(floor: str) -> None:
    modules = [f"isoflop.{floor}.{file.stem}" for file in (SOURCE / floor).glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_package_is_a_table_of_contents() -> None:
    """An `__init__.py` re-exports and defines nothing; the lazy one of isoflop itself is the exception."""
    for file in SOURCE.rglob("__init__.py"):
        if file.parent == SOURCE:
            continue
        defined = [
            node.name
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        assert not defined, f"{file.relative_to(SOURCE)} defines {defined}"


def _name(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path, modules: Collection[str], *, late: bool) -> set[str]:
    """The modules that a file imports when it is imported, or (`late`) when its functions are called."""
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                continue  # an expression imports nothing
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and child.module and inside == late:
                names = [f"{child.module}.{alias.name}" for alias in child.names]
                found.update(name if name in modules else str(child.module) for name in names)
            visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return (found & set(modules)) - {_name(file)}


def test_modules_do_not_import_each_other_in_circles_not_even_late() -> None:
    files = {_name(file): file for file in SOURCE.rglob("*.py")}
    early = {name: _imports(file, files, late=False) for name, file in files.items()}

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = early[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    for name, file in files.items():
        assert name not in reached(name), f"{name} imports itself, by way of others"
        for other in _imports(file, files, late=True):
            assert name not in reached(other), f"{name} imports {other} late, which imports {name}"
