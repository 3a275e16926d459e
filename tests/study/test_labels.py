"""The data axis of a study, `study.images`: its runs on fixed rungs, its part of the answer, its figure."""

from pathlib import Path
from typing import Any

import pytest

from isoflop.config import FamilyConfig, StudyConfig, parse
from isoflop.errors import ConfigError
from isoflop.report.page import render
from isoflop.study.answer import labels_document
from isoflop.study.plan import plan_study
from isoflop.study.run import Ended, run_study, stages
from tests.study.here import Here

FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"sizes": ["vit_w4d1p8"], "learning_rates": [1e-2]},
    "resnet9": {"sizes": ["resnet9_w4"], "learning_rates": [1e-2]},
}


def parse_families(families: dict[str, Any]) -> dict[str, FamilyConfig]:
    return {name: FamilyConfig.model_validate(table) for name, table in families.items()}


def study(**table: Any) -> StudyConfig:
    values = {"name": "toy", "budgets": [4e9, 8e9, 1.6e10], "target_budget": 6e10, "images": [0.25, 0.5, 1.0], **table}
    data = {"source": "digits", "heldout": 200, "image_size": 16}
    return parse(
        {
            "study": values,
            "data": data,
            "precision": "float32",
            "batch_size": 32,
            "laws": {"bootstrap": 20},
            "families": FAMILIES,
        },
        StudyConfig,
    )


def test_on_fixed_rungs_the_best_of_the_last_goes_on_shares_of_the_images() -> None:
    config = study()
    plan = plan_study(config, known={("vit", "vit_w4d1p8"): 1e-4, ("resnet9", "resnet9_w4"): 1e-4})
    trained: dict[str, Ended] = {}
    batches = []
    for batch in stages(plan, trained.copy, 1):
        batches.append(batch)
        trained.update({run.run_id: Ended(1.0) for run in batch.runs})
    *rungs, last = batches
    assert {batch.count for batch in batches} == {5}
    assert last.number == 4
    images = len(plan.catalogue.source)
    found = {(run.family, run.config.data.images, run.budget) for run in last.runs}
    parts = [round(images / 4), round(images / 2)]
    assert found == {(family, part, 1.6e10) for family in FAMILIES for part in parts}
    assert not any(run.config.data.images for batch in rungs for run in batch.runs)


@pytest.mark.long
def test_families_of_one_size_are_answered_by_belief_and_compared_by_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"vit": {**FAMILIES["vit"], "sizes": ["vit_w4d1p8"]}, "other": {**FAMILIES["vit"], "ladder": "vit"}}
    small["other"]["sizes"] = ["vit_w8d1p8"]
    config = study(budgets=[3.2e7, 4.8e7, 7.2e7], target_budget=1.5e8, output=str(tmp_path / "study"), workers=1)
    config = config.model_copy(update={"families": parse_families(small), "tensorboard": False})
    monkeypatch.setattr("isoflop.report.write_report", lambda rows, answer, curves, path, pictures: path.touch())
    document = run_study(config, executor=Here())
    assert not document["left_out"]
    assert set(document["families"]) == {"vit", "other"}
    assert sum(entry["p_best"] for entry in document["families"].values()) == pytest.approx(1.0)
    assert document["final"]["status"] == "done"
    assert {len(entry["images"]) for entry in document["labels"]["families"].values()} == {3}


def row(family: str, images: int, loss: float, **more: Any) -> dict[str, Any]:
    same = {"role": "ladder", "status": "done", "model": f"{family}_m", "budget": 1e12, "learning_rate": 1e-3}
    told = {"recipe": "", "seed": 0, "heldout_accuracy": 0.5, "heldout_loss": loss, "target": loss}
    return {"family": family, "unique_images": images, **same, **told, **more}


def test_the_answer_tells_what_labels_bring_and_where_families_cross() -> None:
    """Planted: slopes of 0.1 and 0.4 that cross at 1,500 images."""
    rows = [
        row(family, images, (images / 1500) ** -slope)
        for family, slope in (("flat", 0.1), ("steep", 0.4))
        for images in (500, 1000, 2000)
    ]
    rows += [row("flat", 2000, 3.0, learning_rate=1e-1), row("lone", 2000, 1.0), row("steep", 500, 9.0, role="final")]
    found = labels_document(rows, "steep", 0.9)
    assert set(found["families"]) == {"flat", "steep"}
    assert found["families"]["steep"]["twice"]["loss_ratio"] == pytest.approx(2**-0.4)
    assert found["families"]["flat"]["images"] == [500, 1000, 2000]
    (crossing,) = found["crossovers"]
    assert (crossing["earlier"], crossing["later"]) == ("flat", "steep")
    assert crossing["images"] == pytest.approx(1500)
    assert crossing["interval"][0] < 1500 < crossing["interval"][1]
    assert labels_document([row("flat", 2000, 1.0)], "flat", 0.9) == {}

    page = render([], {"labels": found, "families": {}}, {})
    assert "steep overtakes flat at 1,500 labelled images" in page
    damaged = {"families": {"a": {"law": {"level": "x"}}, "b": 3}, "crossovers": [1, {"images": "?"}]}
    assert "against labelled images" not in render([], {"labels": damaged, "families": {}}, {})


@pytest.mark.parametrize(
    ("images", "said"),
    [([0.5, 1.0], "at least 3"), ([0.5, 0.25, 1.0], "must ascend"), ([0.1, 0.2, 0.5], "the last share is 1")],
)
def test_shares_that_cannot_be(images: list[float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study(images=images)
