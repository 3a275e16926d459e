"""The report of a published table."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import fit_curve, fit_table, load_table
from isoflop.report import tabled_report
from isoflop.report.text import between, quantity
from tests.report.conftest import HOSTILE


@pytest.fixture
def nfnet(tmp_path: Path) -> Path:
    """Held-out loss of NFNets against TPU-v4 core-hours (arXiv 2310.16764, figure 2, digitised)."""
    columns = load_table("nfnet_jft4b_digitised")
    return write(
        tmp_path / "nfnet.csv", [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_points_of_a_paper_become_a_page_with_their_laws(nfnet: Path, tmp_path: Path) -> None:
    made = tabled_report(nfnet, x=("tpu_v4_core_hours",), y="value", by="model", budget=2e5)
    law, residuals = made.figures
    assert law.title == "Value against tpu v4 core hours"
    f1 = next(s for s in law.panels[0].series if s.name == "F1")
    line = next(s for s in law.panels[0].series if s.kind == "line" and s.group == "F1")
    np.testing.assert_allclose(line.y, fit_curve(f1.x, f1.y).predict(line.x))
    drawn = [s for s in residuals.panels[0].series if s.name == "F1"]
    np.testing.assert_allclose(drawn[0].y, 100 * (np.array(f1.y) / fit_curve(f1.x, f1.y).predict(f1.x) - 1))
    page = made.write(tmp_path / "report.html").read_text()
    assert "predicted at 200,000" in page
    assert len(page) < 3e6


def test_a_table_of_ours_gets_the_figures_of_a_study(planted: Any, tmp_path: Path) -> None:
    made = tabled_report(write(tmp_path / "results.csv", planted.rows), budget=6e12)
    shown = {figure.key for figure in made.figures}
    assert {"frontier", "profiles", "optima", "agreement", "efficiency", "ablation", "hours", "cost"} <= shown
    assert "With 6×10¹² FLOPs of training, train poolformer" in made.page


def test_sizes_and_images_under_other_names_are_a_table_of_runs(planted: Any, tmp_path: Path) -> None:
    rows = [
        {"net": r["family"], "n": r["flops_per_image"], "d": r["images"], "top1": 100 - 10 * r["heldout_loss"]}
        for r in planted.rows
        if r["status"] == "done"
    ]
    path = write(tmp_path / "theirs.csv", rows)
    made = tabled_report(path, x=("n", "d"), y="top1", by="net")
    frontier = next(figure for figure in made.figures if figure.key == "frontier")
    assert frontier.panels[0].y.title == "error in % (100 - top1)"
    assert {"frontier", "profiles", "agreement"} <= {figure.key for figure in made.figures}


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [
        (
            "a,b\n1,2\n",
            {},
            "no column looks like a loss, an error or an accuracy: name it with --y. It has: a, b",
        ),
        ("a,b\n1,2\n", {"x": ("a",), "y": "c"}, "no column `c`"),
        ("a,b\n1,2\n2,x\n", {"x": ("a",), "y": "b"}, "t.csv:3: `b` is not a number"),
        ("a,b\n1,2\n2,3\n", {"x": ("a",), "y": "b"}, "at least 4 different x"),
        ("", {}, "is empty"),
        ("family,flops_per_image,images,heldout_loss\nvit,,,\n", {}, "no row has both a size and a number of images"),
    ],
)
def test_what_is_no_table_of_results_is_said_in_one_line(
    tmp_path: Path, text: str, named: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(LawError, match=message) as caught:
        tabled_report(path, **named)
    assert "\n" not in str(caught.value)


@pytest.mark.page
def test_hostile_cells_of_a_table_run_nothing(chromium: Any, nfnet: Path, planted: Any, tmp_path: Path) -> None:
    bad = [text.replace("\x00", "") for text in HOSTILE]
    with nfnet.open() as file:
        points = list(csv.DictReader(file))
    names = {name: bad[k % len(bad)] + name for k, name in enumerate(dict.fromkeys(row["model"] for row in points))}
    curve = write(tmp_path / "c.csv", [row | {"model": names[row["model"]]} for row in points])
    runs = [row | {"family": bad[0] + row["family"], "model": bad[k % len(bad)]} for k, row in enumerate(planted.rows)]
    pages = [
        tabled_report(curve, x=("tpu_v4_core_hours",), y="value", by="model").write(tmp_path / "c.html"),
        tabled_report(write(tmp_path / "r.csv", runs)).write(tmp_path / "r.html"),
    ]
    for path in pages:
        page, noise = chromium.new_page(), []
        page.set_default_timeout(0)  # the time limit of the test is enough
        page.on("console", lambda m, noise=noise: noise.append(m.text))
        page.on("pageerror", lambda e, noise=noise: noise.append(str(e)))
        page.on("dialog", lambda d, noise=noise: noise.append(d.message))
        page.on("request", lambda r, noise=noise: r.url.startswith(("file:", "data:")) or noise.append(r.url))
        page.goto(path.as_uri())
        assert page.locator("[data-figure] .main-svg .cartesianlayer").count() >= 2
        assert page.locator("img, iframe, base, [onerror], [onload]").count() == 0
        assert noise == []
        page.close()


def test_the_page_of_runs_says_what_the_command_says(tmp_path: Path) -> None:
    """234 runs of arXiv 2203.15556 as digitised in arXiv 2404.10102. Once 2.1e10 stood beside 3.2e9 FLOPs an image."""
    path = Path(__file__).parent / "chinchilla_234.csv"
    (group,) = fit_table(path, x=("N", "D"), y="loss", budget=1e22).groups
    assert group.prediction is not None
    made = tabled_report(path, x=("N", "D"), y="loss", budget=1e22)
    low, high = group.prediction.interval
    assert f"expected loss {group.prediction.value:.3f} (90 % interval {low:.3f}–{high:.3f})" in made.page
    assert quantity(group.prediction.n, 3) in made.page
    assert "isoflop report chinchilla_234.csv --x N --x D --y loss --budget 1e+22" in made.page


def test_columns_that_are_not_named_are_guessed_as_the_command_does(tmp_path: Path) -> None:
    path = Path(__file__).parent / "chinchilla_234.csv"
    (group,) = fit_table(path, budget=1e22).groups
    assert group.prediction is not None
    assert f"expected loss {group.prediction.value:.3f}" in tabled_report(path, budget=1e22).page


def test_a_column_called_model_hides_no_runs(planted: Any, tmp_path: Path) -> None:
    rows = [
        {"model": "one", "n": r["flops_per_image"], "d": r["images"], "loss": r["heldout_loss"]}
        for r in planted.rows
        if r["status"] == "done" and r["family"] == "vit"
    ]
    made = tabled_report(write(tmp_path / "theirs.csv", rows), x=("n", "d"), y="loss")
    agreement = next(figure for figure in made.figures if figure.key == "agreement")
    drawn = next(s for s in agreement.panels[0].series if s.kind == "points")
    assert len(drawn.x) == len({(r["n"], r["d"]) for r in rows})


def test_an_interval_that_says_nothing_is_not_printed_and_spans_no_axis() -> None:
    assert between((0.0004, 618114.0)) == "not determined by these runs"
    assert between((0.8, 0.95)) == "0.800–0.950"
