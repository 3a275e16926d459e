import csv
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import StudyError
from isoflop.report import report_figures, write_figures
from isoflop.report.figure import Axis, Figure, Panel, Series

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def frontier(planted: Any) -> Figure:
    return report_figures(planted.rows, planted.answer, {})[0]


def test_a_figure_becomes_svg_pdf_and_its_data(frontier: Figure, planted: Any, tmp_path: Path) -> None:
    svg, pdf, data = write_figures([frontier], tmp_path / "figures")
    words = " ".join(ElementTree.parse(svg).getroot().itertext())
    for family in ("vit", "poolformer", "nfnet", "training compute (FLOPs)", "held-out loss", "the answer, measured"):
        assert family in words
    assert pdf.read_bytes().startswith(b"%PDF")
    with data.open(newline="") as file:
        lines = list(csv.DictReader(file))
    star = next(line for line in lines if line["series"] == "the answer, measured")
    assert float(star["y"]) == planted.answer["final"]["measured_loss"]


def test_the_same_figure_gives_the_same_bytes(frontier: Figure, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_figures([frontier], tmp_path / "a")]
    assert first == [path.read_bytes() for path in write_figures([frontier], tmp_path / "b")]


def test_every_figure_can_be_exported(planted: Any, tmp_path: Path) -> None:
    figures = report_figures(planted.rows[::7] + planted.rows[-1:], planted.answer, planted.curves)
    written = write_figures(figures, tmp_path, ("svg",))
    assert [path.stem for path in written] == [figure.key for figure in figures if figure.panels]


def test_what_is_written_holds_no_markup_and_no_formula(tmp_path: Path) -> None:
    bad = ["=1+1", "$\\frac{", "<script>alert(1)</script>", "@SUM(A1)"]
    x = Axis("</text><script>", "category", tuple(bad))
    bars = Series("bar", bad, [1.0, 2.0, 3.0, 4.0], name="$\\undefined$", notes=bad)
    figure = Figure("bad", "bad", "", "", (Panel(x, Axis("$"), (bars,), "<b>"),))
    svg, data = write_figures([figure], tmp_path, ("svg", "csv"))
    assert not list(ElementTree.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}script"))
    assert "<script" not in svg.read_text()
    assert "'=1+1" in data.read_text()
    write_figures(
        [replace(figure, panels=(Panel(Axis("x"), x, (replace(bars, x=bars.y, y=bad),)),))], tmp_path, ("pdf",)
    )


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, planted: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"file/figures: cannot write here: Not a directory"):
        write_figures(report_figures(planted.rows, planted.answer, planted.curves), tmp_path / "file" / "figures")


def test_an_unknown_format_is_refused(frontier: Figure, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="docx"):
        write_figures([frontier], tmp_path, ("docx",))


def test_legends_of_long_names_and_ticks_of_narrow_panels_fit(tmp_path: Path) -> None:
    """What stood over the edge, and over each other, on paper 482 points wide."""
    names = [f"a backbone of the ladder with a long name, number {k}" for k in range(6)]
    series = tuple(Series("points", [1.6e9, 8e10], [1.0, 2.0], name=name) for name in names)
    panel = Panel(Axis("training compute (FLOPs)", "log"), Axis("y", "log"), series)
    (path,) = write_figures([Figure("wide", "", "", "", (panel, panel, panel))], tmp_path, ("svg",))
    drawn = ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")
    places = [(str(e.text), float(e.get("x", "nan"))) for e in drawn]
    ticks = sorted(x for text, x in places if "10" in text)
    assert len(ticks) == 9
    assert min(right - left for left, right in pairwise(ticks)) > 28  # a label is 22 wide
    legend = [x for text, x in places if text in names]
    assert len(legend) == 6
    assert max(legend) + 4.3 * len(names[0]) < 482
