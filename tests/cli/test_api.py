"""`import isoflop` costs nothing, and everything is found under it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import isoflop
from isoflop.runs.results import COLUMNS, write_results


def test_importing_isoflop_and_its_errors_and_laws_never_loads_torch() -> None:
    code = "import sys, isoflop; isoflop.ConfigError; isoflop.laws; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


READS = {
    "status": "main(['study', 'status', 'study'])",
    "report": "main(['report', 'study'])",
    "comparison": "main(['report', 'study', 'study', '--output', 'both.html'])",
    "fit": "main(['fit', 'table.csv', '--x', 'compute', '--y', 'loss'])",
    "watch": "from isoflop.report.watch import Watch; Watch(pathlib.Path('study')); sys.exit(0)",
    "open_study": "isoflop.open_study('study').figures; sys.exit(0)",
}


@pytest.mark.parametrize("name", READS)
def test_reading_a_study_or_a_table_never_loads_torch(name: str, tmp_path: Path) -> None:
    """It costs seconds and hundreds of megabytes."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text(json.dumps({"study": "0", "name": "toy"}))
    (tmp_path / "study" / "answer.json").write_text("{}")
    numbers = dict.fromkeys(COLUMNS, 1) | {"run_id": "a", "family": "vit", "model": "vit_w8d1", "role": "ladder"}
    write_results(tmp_path / "study", [numbers | {"status": "done", "error": ""}])
    (tmp_path / "table.csv").write_text("compute,loss\n" + "".join(f"{10**k},{3 - 0.2 * k}\n" for k in range(1, 9)))
    code = f"""import pathlib, sys, isoflop
from isoflop.cli.app import main
try:
    {READS[name]}
except SystemExit as end:
    print(end.code, "torch" in sys.modules, file=sys.stderr)
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    assert told.splitlines()[-1] == "0 False"


@pytest.mark.parametrize("name", sorted(set(isoflop.__all__)))
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(isoflop, name) is not None
    assert name in dir(isoflop)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="creat_model"):
        _ = isoflop.creat_model
