"""Families that learn differently, in one study: from labels, from a teacher, first without labels, from weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.config import DistilledConfig, MaskedConfig, StudyConfig, parse
from isoflop.errors import ConfigError, IsoflopError
from isoflop.objectives import objective_cost
from isoflop.report.rows import contender, metric_of, objectives
from isoflop.report.tables import summary
from isoflop.report.watch.state import Live
from isoflop.runs.directory import read_status
from isoflop.study import Store, run_study
from isoflop.study.executors import RunTask
from isoflop.study.plan import forecast, plan_study
from isoflop.study.planned import Catalogue
from isoflop.study.run import Clock
from isoflop.train import train
from tests.promises.chaos import run_config
from tests.study.here import Here
from tests.study.test_rungs import study_config

LIGHT = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
DIGITS = {"source": "digits", "heldout": 64}
ONE = {"sizes": ["vit_w8d2p8"], "learning_rates": [0.01]}
TWO = {"sizes": ["vit_w8d1p8", "vit_w8d2p8"], "learning_rates": [0.01]}
FIRST = {"objective": LIGHT, "share": 0.4, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train(run_config(model={"name": "vit_w8d2p8"}, steps=8, evaluation={}, schedule={}, data=DIGITS), folder)
    return folder


def contenders(folder: Path, teacher: Path, **changes: Any) -> StudyConfig:
    study = {"name": "ways", "budgets": [4e8, 6e8, 9e8], "target_budget": 1e9, "output": str(folder), "workers": 1}
    distilled = {"name": "distilled", "teacher": str(teacher), "through": "logits"}
    families = {
        "labels": ONE,
        "first": {**TWO, "pretraining": FIRST},
        "taught": {**ONE, "objective": distilled},
        "tuned": {**ONE, "start": {"weights": str(teacher)}},
    }
    values = {"study": study, "families": families, "batch_size": 32, "precision": "float32", "tensorboard": False}
    values |= {"data": DIGITS}
    return study_config(**{**values, **changes})


def test_labels_masking_a_teacher_and_weights_are_trained_at_equal_compute(tmp_path: Path, teacher: Path) -> None:
    config = contenders(tmp_path / "study", teacher)
    config.directory.mkdir()
    plan, store = plan_study(config), Store(config.directory)
    first = {run.family: run for run in plan.first}
    clock = Clock(plan)
    clock.begin(list(first.values()), 0.0)
    done = []
    for event in Here().run([RunTask(run, store.run_directory(run.run_id), None) for run in first.values()]):
        run = next(run for run in first.values() if run.run_id == event.run_id)
        if event.kind == "progress":
            clock.at(run, event.step, event.phase)
        elif event.kind == "ended":
            assert event.state == "done"
            clock.finished(run)
        done.append(clock.done)
    assert done == sorted(done)
    rows = {family: store.row(run, None) for family, run in first.items()}
    assert set(rows) == {"labels", "first", "taught", "tuned"}
    for family, row in rows.items():
        assert row["train_flops"] == pytest.approx(4e8, rel=0.05)
        status = read_status(store.run_directory(row["run_id"]) / "pretraining")
        assert (status is not None) == (family == "first")
        assert row["seconds"] > (status.seconds if status else 0.0)
    entry = {"model": "vit_w8d2p8", "flops_per_image": 4e5, "images": 2000}
    answer = {"families": dict.fromkeys(first, entry), "study": {"config": config.model_dump(mode="json")}}
    shown = summary(list(rows.values()), answer)
    for told in (
        "masked (40 % of the compute), then labels",
        "from teacher, then labels",
        "and the teacher teacher",
    ):
        assert told in shown


@pytest.mark.long
def test_a_pretrained_and_a_distilled_family_are_answered_and_judged(tmp_path: Path, teacher: Path) -> None:
    families = {name: contenders(tmp_path, teacher).families[name] for name in ("first", "taught")}
    config = contenders(tmp_path / "study", teacher, laws={"bootstrap": 20}).model_copy(update={"families": families})
    document = run_study(config, executor=Here())
    assert document["final"]["measured_loss"] > 0
    assert document["selected"]["accuracy"]["images"] > 0


def test_what_is_learnt_first_takes_its_share_of_the_compute(tmp_path: Path, teacher: Path) -> None:
    config = contenders(tmp_path / "study", teacher)
    catalogue = Catalogue(config)
    shape = {"num_classes": 10, "image_size": 32, "in_channels": 1}
    masked = objective_cost(parse(LIGHT, MaskedConfig), "vit_w8d2p8", **shape).train_flops_per_image
    labels = objective_cost(config.objective, "vit_w8d2p8", **shape).train_flops_per_image
    for budget in (4e8, 9e8, 1e10):
        run = catalogue.run("first", "vit_w8d2p8", budget, 0.01)
        assert run.config.pretraining
        first, later = run.config.pretraining.steps * 32 * masked, run.config.steps * 32 * labels
        assert first / (first + later) == pytest.approx(0.4, abs=0.01)
        assert first + later == pytest.approx(run.train_flops, rel=0.02)
        assert run.trunk_id is None
        assert catalogue.run("labels", "vit_w8d2p8", budget, 0.01).trunk_id
    by_name = {"labels": ("vit_w8d2p8",)}, {"first": ("vit_w8d2p8",)}
    seconds = {(family, "vit_w8d2p8"): 1.0 for family in ("labels", "first")}
    shared, alone = (sum(rung.flops for rung in forecast(config, catalogue, each, seconds)) for each in by_name)
    assert shared < alone == pytest.approx(4e8 + 2 * 6e8 + 9e8, rel=0.05)
    taught = parse({"name": "distilled", "teacher": str(teacher)}, DistilledConfig)
    twice = objective_cost(taught, "vit_w8d2p8", **shape).train_flops_per_image
    assert catalogue.flops_per_image("taught", "vit_w8d2p8") == twice > labels


def test_a_live_study_counts_what_is_learnt_first(tmp_path: Path, teacher: Path) -> None:
    config = contenders(tmp_path / "study", teacher, families={"first": {**ONE, "pretraining": FIRST}})
    config.directory.mkdir()
    store, catalogue = Store(config.directory), Catalogue(config)
    run = catalogue.run("first", "vit_w8d2p8", 4e8, 0.01)
    store.claim(catalogue.config, catalogue.source.fingerprint)
    assert run.config.pretraining
    folder, first, later = store.run_directory(run.run_id), run.config.pretraining.steps, run.config.steps
    half, third = first // 2, later // 3
    found = []
    for steps in (half, first - half + third):  # after which the run is cut off, once in either phase
        asked = iter(range(steps - 1))
        train(run.config, folder, stop=lambda asked=asked: next(asked, None) is None)  # type: ignore[misc]
        for path in (folder / "status.json", folder / "pretraining" / "status.json"):
            path.write_text(path.read_text().replace("preempted", "running"))
        store.write_rows([store.row(run, None)])
        live = Live(config.directory)
        live.refresh()
        found.append((live.progress()["share"], live.rows[0]["seconds"]))
    flops = run.train_flops / (run.train_flops + 6e8 + 9e8 + 1e9)  # of what is foreseen
    (one, before), (two, after) = found
    assert one == pytest.approx(flops * 0.4 * half / first)
    assert two == pytest.approx(flops * (0.4 + 0.6 * third / later))
    assert 0 < before < after


def test_only_what_is_judged_by_the_same_number_is_compared() -> None:
    masked = {"labels": ONE, "masked": {**ONE, "objective": LIGHT}}
    with pytest.raises(
        ConfigError, match=r"`families.masked.objective` makes the held-out losses of labels and"
    ) as told:
        study_config(families=masked)
    assert "\n" not in str(told.value)
    judged = study_config(families=masked, target={"metric": "fewshot10"})
    assert judged.objective_of("masked").name == "masked"
    other = {**masked, "labels": {**ONE, "objective": {**LIGHT, "ratio": 0.5}}}
    with pytest.raises(ConfigError, match="masked otherwise"):
        study_config(families=other)
    with pytest.raises(ConfigError, match=r"labels and x different numbers \(distilled and masked\)"):
        study_config(
            families={"labels": ONE, "x": {**ONE, "objective": {"name": "distilled", "teacher": "t"}}}, objective=LIGHT
        )
    larger = {**masked, "labels": {**ONE, "objective": {**LIGHT, "decoder_width": 32}}}
    told_of = study_config(families=larger).model_dump(mode="json")
    assert objectives(told_of) == {"masked"}
    assert metric_of({"study": {"config": told_of}}).name == "held-out reconstruction loss"
    assert contender(told_of, "masked") == "masked"
    tuned = study_config(families={"x": {**ONE, "start": {"weights": "runs/teacher/"}}}).model_dump(mode="json")
    assert contender(tuned, "x") == "from teacher, then labels"
    assert contender({"families": {"x": 3}}, "x") == ""


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ({"pretraining": {**FIRST, "share": 1.0}}, r"`families.x.pretraining.share` = 1.0 must be less than 1"),
        ({"pretraining": {**FIRST, "steps": 9}}, r"unknown key `families.x.pretraining.steps`"),
        ({"pretraining": {"objective": "supervised"}}, r"`families.x.pretraining.objective` = supervised is what"),
        ({"objective": "maskd"}, r'`families.x.objective` = "maskd" must be one of .* - did you mean `masked`'),
        ({"pretraining": {**FIRST, "source": "folder:/nowhere"}}, r"families.x.pretraining: .*nowhere"),
        ({"pretraining": {"objective": "masked"}, "low": 1e9}, r"families.x.pretraining: its share of a run of 1e\+09"),
        ({"sizes": ["mixer_s16"], "pretraining": FIRST}, r"families.x.pretraining: mixer_s16"),
        ({"sizes": ["mixer_s16"], "objective": LIGHT}, r"families.x: mixer_s16"),
        ({"objective": {"name": "distilled", "teacher": "TEACHER", "through": "token"}}, r"families.x: .*token"),
        ({"objective": {"name": "distilled", "teacher": "/nowhere"}}, r"families.x: `objective.teacher` = /nowhere"),
        ({"objective": {"name": "distilled", "teacher": "TEACHER"}, "classes": 7}, r"families.x: .*7 classes"),
        (
            {"start": {"weights": "TEACHER", "head": "keep"}, "pretraining": FIRST},
            r"families.x`.*keep does not go with",
        ),
    ],
)
def test_what_a_contender_cannot_be_is_one_line_before_anything_is_trained(
    tmp_path: Path, teacher: Path, family: dict[str, Any], told: str
) -> None:
    family = json.loads(json.dumps(family).replace("TEACHER", str(teacher)))
    classes, low = family.pop("classes", None), family.pop("low", 1e12)
    changes: dict[str, Any] = {"data": {"source": f"fractals?classes={classes}"}} if classes else {}
    changes |= {
        "study": {"name": "x", "budgets": [low, 2e12, 3e12], "target_budget": 4e12, "output": str(tmp_path / "study")}
    }
    changes |= {"target": {"metric": "fewshot10"}} if "objective" in family else {}
    with pytest.raises(IsoflopError, match=told) as caught:
        plan_study(contenders(tmp_path / "study", teacher, families={"x": {**ONE, **family}}, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()
