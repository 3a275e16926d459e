import copy
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import StudyError
from isoflop.report import StudyTables, differences, write_comparison
from isoflop.report.compare import common_compute


def by_law_alone(study: Any) -> Any:
    """The study without forecasts of the frontier, which are of the losses as they were."""
    study = copy.deepcopy(study)
    for entry in study.answer["families"].values():
        entry["law"]["forecast"] = None
    return study


@pytest.fixture
def shifted(planted: Any) -> StudyTables:
    """The planted study of a task on which every loss is half as high again, and vit wins."""
    study = by_law_alone(planted)
    for row in study.rows:
        if row["heldout_loss"] is not None:
            row["heldout_loss"] *= 1.5
    for entry in study.answer["families"].values():
        for name in ("irreducible", "a", "b"):
            entry["law"][name] *= 1.5
    study.answer["best"] = "vit"
    study.answer["study"]["name"] = "harder"
    return StudyTables(study.rows, study.answer)


def test_the_differences_are_the_planted_ones(planted: Any, shifted: StudyTables) -> None:
    told = differences([StudyTables(planted.rows, by_law_alone(planted).answer, "plain"), shifted])
    assert told[0] == "They disagree on the best family: poolformer in plain, vit in harder."
    assert told[1].startswith("Compared at 10¹² training FLOPs")
    vit = next(text for text in told if text.startswith("vit:"))
    assert "the loss is 50\u00a0% higher in harder" in vit
    assert "the best size is no larger" in vit


def test_a_study_equals_itself(planted: Any) -> None:
    study = StudyTables(planted.rows, planted.answer)
    told = differences([study, study])
    assert told[0] == "All agree on the best family: poolformer."
    assert all("no higher" in text and "no larger" in text for text in told[2:])
    assert "(2)" in told[2]


def test_studies_are_aligned_on_the_compute_that_all_have_reached(planted: Any) -> None:
    short = [row for row in planted.rows if row["budget"] <= 1e11]
    both = [StudyTables(planted.rows, planted.answer), StudyTables(short, {})]
    assert common_compute(both) == pytest.approx(1e11, rel=1e-3)


def test_a_study_without_finished_runs_is_named(planted: Any, tmp_path: Path) -> None:
    studies = [StudyTables(planted.rows, planted.answer, "full"), StudyTables([], {}, "empty")]
    assert "empty has no finished run" in differences(studies)[-1]
    assert "No answer yet" in write_comparison(studies, tmp_path / "both.html").read_text()


def test_one_study_is_no_comparison(planted: Any, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="two studies"):
        write_comparison([StudyTables(planted.rows, planted.answer)], tmp_path / "one.html")


def test_families_that_only_one_study_has_are_named(planted: Any) -> None:
    fewer = copy.deepcopy(planted)
    fewer.answer["families"].pop("nfnet")
    rows = [row for row in fewer.rows if row["family"] != "nfnet"]
    told = differences([StudyTables(planted.rows, planted.answer, "a"), StudyTables(rows, fewer.answer, "b")])
    assert told[-1] == "Not in all of them: nfnet."


@pytest.mark.page
def test_the_comparison_is_quiet_in_a_browser(
    chromium: Any, planted: Any, shifted: StudyTables, hostile: Any, tmp_path: Path
) -> None:
    studies = [StudyTables(planted.rows, planted.answer), shifted, StudyTables(hostile.rows, hostile.answer)]
    path = write_comparison(studies, tmp_path / "both.html")
    page, noise = chromium.new_page(), []
    page.set_default_timeout(0)  # the time limit of the test is enough
    page.on("console", lambda m: noise.append(m.text))
    page.on("pageerror", lambda e: noise.append(str(e)))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or noise.append(r.url))
    page.goto(path.as_uri())
    assert page.locator("[data-figure] .main-svg .cartesianlayer").count() == 2
    assert noise == []
    page.close()


def test_losses_of_different_objectives_are_never_compared(planted: Any, tmp_path: Path) -> None:
    def study(objective: str, metric: str) -> StudyTables:
        answer = copy.deepcopy(planted.answer)
        answer["study"]["config"] = {"objective": {"name": objective}, "target": {"metric": metric}}
        return StudyTables(planted.rows, answer, objective)

    with pytest.raises(StudyError, match=r"losses of different objectives \(masked, supervised\) cannot be compared"):
        write_comparison([study("masked", "heldout_loss"), study("supervised", "heldout_loss")], tmp_path / "page.html")
    write_comparison([study("masked", "fewshot10"), study("supervised", "fewshot10")], tmp_path / "page.html")
