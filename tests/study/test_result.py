"""What stands in a notebook when its last line is one of our objects."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

import isoflop
from isoflop.config import RunConfig, parse
from isoflop.errors import MissingExtra, StudyError
from isoflop.laws import fit_size_data, fit_table
from isoflop.runs.results import COLUMNS
from isoflop.study import open_study

KEPT = Path(__file__).resolve().parents[2] / "docs" / "results" / "demo" / "results-seed0.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that has runs and no answer yet."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.json").write_text('{"study": "0", "name": "kept", "config": {}}')
    (folder / "results.csv").write_bytes(KEPT.read_bytes())
    return folder


def test_a_study_says_what_it_found_and_shows_its_figures(folder: Path) -> None:
    study = open_study(folder)
    finished = sum(row["status"] == "done" for row in study.rows)
    assert f"No answer yet: {finished} of {len(study.rows)} runs have finished." in repr(study)
    assert "profiles" in study.figures
    assert all(figure.panels for figure in study.figures.values())
    assert repr(study.figures["profiles"]).startswith("Figure('profiles', 'IsoFLOP profiles")
    page = study._repr_html_()
    assert page.startswith("<iframe ")
    assert 'sandbox="allow-scripts"' in page
    assert page.count("<iframe") == 1  # the page inside is text of an attribute
    assert "data-figure=&quot;profiles&quot;" in page
    assert "data-figure=&quot;frontier&quot;" not in study.figures["profiles"]._repr_html_()


@pytest.mark.parametrize("installed", ["pandas", "polars", ""])
def test_the_table_is_a_frame_of_what_is_installed(
    folder: Path, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ModuleType(installed)
    made.__dict__["DataFrame"] = lambda columns, **options: (columns, options)
    made.__spec__ = ModuleSpec(installed, None)
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, made if name == installed else None)
    study = open_study(folder)
    if not installed:
        with pytest.raises(MissingExtra, match="needs pandas or polars"):
            _ = study.table
        return
    columns, options = study.table
    assert options == ({"strict": False} if installed == "polars" else {})
    assert list(columns) == list(COLUMNS)
    found = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert found == [dict.fromkeys(COLUMNS) | row for row in study.rows]  # a table of earlier versions lacks some


def test_the_folder_of_an_answer_is_named_or_refused(folder: Path, tmp_path: Path) -> None:
    study = open_study(folder)
    final = next(row for row in study.rows if row["role"] == "final")
    assert study.run_directory(final["family"]) == folder / "runs" / final["run_id"]
    with pytest.raises(StudyError, match="no answer of gmlp was trained"):
        study.run_directory("gmlp")
    with pytest.raises(StudyError, match="not a study"):
        open_study(tmp_path)


def test_reprs_fit_on_a_line_or_two() -> None:
    n = [1e5, 3e5, 1e6] * 4
    d = [c / k for c, k in zip([1e9] * 3 + [1e10] * 3 + [1e11] * 3 + [1e12] * 3, n, strict=True)]
    law = fit_size_data(n, d, [0.5 + 80 * a**-0.4 + 300 * b**-0.5 for a, b in zip(n, d, strict=True)])
    assert repr(law).startswith("SizeDataLaw(")
    assert f"alpha={law.alpha:.4g}" in repr(law)
    assert len(repr(law)) < 1000
    table = fit_table({"c": ["1", "2", "4", "8", "16"], "y": ["9", "7", "6", "5.5", "5.2"]}, x=["c"], y="y", budget=32)
    assert len(repr(table)) < 3000
    assert "value=" in repr(table.groups[0].prediction)
    assert table._repr_html_().startswith("<svg ")
    assert "At 32:" in table._repr_html_()
    config = parse({"steps": 3, "model": {"name": "vit_s16"}, "optim": {"learning_rate": 0.5}}, RunConfig)
    assert repr(config) == "RunConfig(model.name='vit_s16', steps=3, optim.learning_rate=0.5)"
    model = isoflop.create_model("vit_w8d1p8", num_classes=10, image_size=32)
    assert f"vit_w8d1p8: {sum(p.numel() for p in model.parameters()):,} parameters, images 3×32×32" in repr(model)
