"""A study that is judged by another number than the held-out loss says so everywhere."""

import copy
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import StudyError
from isoflop.report import StudyTables, differences, tables, write_comparison, write_report
from isoflop.report.clean import clean_rows
from isoflop.report.page import report_figures
from isoflop.report.rows import Metric, metric_of
from isoflop.report.watch.server import snapshot
from isoflop.report.watch.state import Live
from tests.report.test_watch import write_json, write_run, write_table

CONFIG = {"target": {"metric": "fewshot10"}, "transfer": {"dataset": "parquet:/data/cifar10"}}


def judged_by(config: dict[str, Any]) -> Metric:
    return metric_of({"study": {"config": config}})


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("fewshot10", "10-shot error on digits"),
        ("fewshot", "ridge-regression error on digits"),
        ("knn5", "5-shot nearest-neighbour error on digits"),
        ("finetune25", "25-shot fine-tuning error on digits"),
        ("probe", "linear-probe error on digits"),
        ("heldout_loss", "held-out loss"),
        ("<script>", "held-out loss"),
    ],
)
def test_every_metric_has_a_name_that_a_reader_knows(metric: str, name: str) -> None:
    assert judged_by({"target": {"metric": metric}, "transfer": {"dataset": "digits"}}).name == name


def test_the_unit_of_an_error_is_told_and_damaged_answers_are_survived() -> None:
    assert judged_by(CONFIG).axis == "10-shot error on cifar10 (share of test images)"
    assert judged_by({"objective": {"name": "masked"}}).axis == "held-out reconstruction loss"
    assert judged_by({"objective": {"name": "lejepa"}}).axis == "held-out LeJEPA loss"
    for damaged in ({}, {"study": 5}, {"study": {"config": [1]}}, {"study": {"config": {"target": "x"}}}):
        assert metric_of(damaged) == Metric()


@pytest.fixture
def few_shot(planted: Any) -> Any:
    study = copy.deepcopy(planted)
    study.answer["study"]["config"] = CONFIG
    return study


def test_no_figure_and_no_table_calls_an_error_a_loss(few_shot: Any, tmp_path: Path) -> None:
    figures = report_figures(few_shot.rows, few_shot.answer, few_shot.curves)
    titles = [axis.title for figure in figures for panel in figure.panels for axis in (panel.x, panel.y)]
    assert [title for title in titles if "held-out loss" in title or "predicted loss" in title] == []
    assert titles.count("10-shot error on cifar10 (share of test images)") >= 8
    page = write_report(few_shot.rows, few_shot.answer, few_shot.curves, tmp_path / "report.html").read_text()
    body = page[page.index("<body>") : page.index('<script type="application/json"')]
    assert "expected 10-shot error on cifar10 0." in body
    assert "held-out loss" not in body
    assert '<th scope="col">predicted error</th>' in body


def test_the_table_of_runs_has_what_the_probe_found_where_it_found_anything(planted: Any) -> None:
    probed = [{**row, "probe_accuracy": 0.25, "rankme": 17.25} for row in planted.rows]
    table = tables.runs(clean_rows(probed), planted.answer)
    assert table.count("17.25") >= len(probed)
    assert "probe accuracy" in table
    assert "probe accuracy" not in tables.runs(clean_rows(planted.rows), planted.answer)


def test_the_live_view_shows_the_error_and_not_the_loss(few_shot: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "study.json", {"name": "few", "config": CONFIG | {"study": {"target_budget": 6e12}}})
    rows = few_shot.rows[:4]
    write_table(tmp_path, rows)
    for row in rows:
        write_run(tmp_path, row, few_shot.curves[row["run_id"]])
    for row in rows[:3]:
        write_json(tmp_path / "runs" / row["run_id"] / "target.json", {"error": 0.25})
    live = Live(tmp_path)
    live.refresh()
    assert [(row["status"], row["heldout_loss"]) for row in live.rows] == [("done", 0.25)] * 3 + [("running", None)]
    shown = snapshot(live)
    assert "10-shot error on cifar10" in shown["html"]["live-runs"]
    assert shown["figures"]["frontier"]["layout"]["yaxis"]["title"]["text"].startswith("10-shot error")


def test_a_comparison_is_of_one_metric(planted: Any, few_shot: Any, tmp_path: Path) -> None:
    error, loss = StudyTables(few_shot.rows, few_shot.answer, "a"), StudyTables(planted.rows, planted.answer, "b")
    with pytest.raises(StudyError, match=r"different metrics \(fewshot10, heldout_loss\) cannot be compared"):
        write_comparison([error, loss], tmp_path / "both.html")
    assert "vit: the error is no higher" in " ".join(differences([error, error]))
