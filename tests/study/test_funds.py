"""What a study may cost: what the answers take is set aside, and limits that cannot be kept are refused by name."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isoflop.config import StudyConfig
from isoflop.errors import CheckpointError, ConfigError, DataError, DataNotice, StudyError
from isoflop.models import family_ladder
from isoflop.runs.times import Times
from isoflop.study.adaptive import (
    NOTHING_BESIDE,
    TARGET_DISTANCE,
    UNCHOSEN,
    Ladder,
    Overheads,
    choose_budgets,
    decide,
    next_stage,
)
from isoflop.study.plan import Plan, plan_study
from isoflop.study.planned import EVALUATION_SHARE, Catalogue
from isoflop.study.run import Ended, run_study, stages
from isoflop.study.search_space import Ledger, TrialResult
from isoflop.study.store import Store
from isoflop.train import train
from tests.study.test_rungs import SIZES, study_config

SECONDS = {("vit", name): 1e-4 * (k + 1) for k, name in enumerate(SIZES)}
RUNGS = [2e9, 4e9, 8e9]


def limited(**study: Any) -> StudyConfig:
    return study_config(study={"name": "toy", "target_budget": 4e10, **study})


def plan(config: StudyConfig, overheads: Overheads = NOTHING_BESIDE) -> Plan:
    return plan_study(config, known=SECONDS, overheads=overheads)


def test_the_answer_is_set_aside_first_and_the_ladder_gets_the_rest() -> None:
    funds = plan(limited(budget=3e11)).funds
    assert funds is not None
    assert (funds.unit, funds.reserved, funds.allowance) == ("FLOPs", 4e10, 2.6e11)


def test_money_is_device_hours_times_their_price_at_measured_speed() -> None:
    hours, money = (
        plan(limited(budgets=RUNGS, device_hours=2.0)),
        plan(limited(budgets=RUNGS, money=6.0, price_per_hour=3.0)),
    )
    assert hours.funds is not None
    assert money.funds is not None
    largest = "vit", SIZES[-1]  # answers are priced like it
    alone = 4e10 * SECONDS[largest] / hours.catalogue.flops_per_image(*largest) / 3600
    assert hours.funds.reserved == pytest.approx(alone * (1 + EVALUATION_SHARE))
    assert money.funds.reserved == pytest.approx(3 * hours.funds.reserved)
    assert hours.funds.price("vit", 1e5) == pytest.approx(money.funds.price("vit", 1e5) / 3)
    assert hours.funds.price_of_evaluation("vit", 1e5) > 0


def test_a_family_under_its_own_name_needs_no_ladder_of_that_name() -> None:
    config = study_config(
        study={"name": "toy", "budget": 3e12},
        families={"mine": {"sizes": list(SIZES), "learning_rates": [0.005, 0.01, 0.02]}},
    )
    catalogue = plan_study(config).catalogue
    assert catalogue.budgets == plan(study_config(study={"name": "toy", "budget": 3e12})).catalogue.budgets


def test_hours_of_the_machine_are_device_hours_over_its_workers() -> None:
    one, two = plan(limited(hours=1.0, workers=2)), plan(limited(device_hours=2.0))
    assert one.funds is not None
    assert two.funds is not None
    assert one.funds.unit == "hours"
    assert one.funds.reserved == pytest.approx(two.funds.reserved / 2)
    assert one.funds.allowance == pytest.approx(two.funds.allowance / 2)
    assert one.catalogue.budgets == two.catalogue.budgets


def test_what_a_study_takes_beside_its_runs_is_set_aside_too() -> None:
    """A minute before the first run, two after the last; on two threads the answer's steps take 0.7 of the time."""
    overheads = Overheads(preparation=60.0, evaluation=120.0, threads=2, share=0.7)
    limits: dict[str, dict[str, Any]] = {
        "hours": {"hours": 2.0, "workers": 2},
        "device_hours": {"device_hours": 4.0},
        "money": {"money": 8.0, "price_per_hour": 2.0},
    }
    answering = {"hours": 0.7 * 2, "device_hours": 0.7 * 2, "money": 0.7 * 2}
    beside = {"hours": 0.05, "device_hours": 0.05, "money": 0.1}
    for name, limit in limits.items():
        plain, told = plan(limited(budgets=RUNGS, **limit)).funds, plan(limited(budgets=RUNGS, **limit), overheads)
        assert plain is not None
        assert told.funds is not None
        before = plain.reserved / plain.answering
        assert told.funds.reserved == pytest.approx(before * answering[name])
        assert told.funds.beside == pytest.approx(beside[name])
        assert told.funds.allowance == pytest.approx(limit[name] - told.funds.reserved - beside[name])
    planned = told.clock_seconds(2)
    assert planned["everything else"] == 180.0
    spent = Times(iter([0.0, 30.0, 100.0, 100.0, 100.0]).__next__)
    spent.begin("ladder")
    spent.begin("answer")
    assert told.funds.spent([], spent) == pytest.approx(30 * 2 / 3600)  # preparation, at 2 an hour
    with pytest.raises(StudyError, match=r"takes .* hours on this machine, preparation and evaluation 0.05; raise it"):
        plan(limited(budgets=RUNGS, hours=0.05), overheads)


def test_without_a_target_the_answer_gets_its_share_of_the_limit() -> None:
    def target(**study: Any) -> float:
        config = study_config(study={"name": "toy", **study})
        return plan(config).catalogue.config.study.target_flops

    assert target(budget=3e11) == 2.1e11
    likely = "vit", SIZES[-1]  # of named sizes the largest
    flops = Catalogue(limited(device_hours=1.0)).flops_per_image(*likely)
    of_an_hour = target(device_hours=1.0)
    assert of_an_hour == pytest.approx(2520 / SECONDS[likely] * flops, rel=0.05)
    assert target(hours=0.25, workers=4) == of_an_hour
    assert target(device_hours=2.0) == pytest.approx(2 * of_an_hour, rel=0.05)
    with pytest.raises(StudyError, match=r"limit, 0.001 device-hours, is too low: 70% of it buys an answer of "):
        target(device_hours=0.001, budgets=[1e10, 2e10, 4e10])


def test_a_target_that_was_chosen_stays_that_of_the_study(tmp_path: Path) -> None:
    config = study_config(study={"name": "toy", "device_hours": 1.0, "output": str(tmp_path / "toy")})
    store = Store(config.directory)
    config.directory.mkdir()
    decided = plan(config).catalogue.config
    store.claim(decided, "fingerprint")
    slower = {key: 1.5 * seconds for key, seconds in SECONDS.items()}
    assert (
        plan_study(config, known=slower, overheads=NOTHING_BESIDE).catalogue.config.study.target_flops
        == decided.study.target_flops
    )
    store.claim(
        plan_study(config, known=slower, overheads=NOTHING_BESIDE).catalogue.config, "fingerprint"
    )  # the same study


def test_rungs_that_were_chosen_stay_those_of_the_study(tmp_path: Path) -> None:
    config = study_config(study={"name": "toy", "hours": 0.5, "output": str(tmp_path / "toy")})
    store = Store(config.directory)
    config.directory.mkdir()
    assert store.ladder() == UNCHOSEN
    begun = plan(config).catalogue.budgets
    store.write_prices(SECONDS, 1e10, ladder=Ladder(begun))
    slower = {key: 1.5 * seconds for key, seconds in SECONDS.items()}
    again = plan_study(config, known=slower, overheads=NOTHING_BESIDE, known_ladder=store.ladder())
    assert again.catalogue.budgets == begun != plan_study(config, slower, "", NOTHING_BESIDE).catalogue.budgets
    (config.directory / "prices.json").write_text('{"rungs": [3, 2]}')
    assert store.ladder() == UNCHOSEN


def test_families_that_would_train_the_same_runs_are_refused() -> None:
    families = {"vit": {"sizes": list(SIZES)}, "other": {"ladder": "vit", "sizes": list(SIZES)}}
    with pytest.raises(StudyError, match=r"families.vit and families.other are the same: both would train vit_"):
        plan_study(study_config(study={"name": "toy", "budget": 3e12}, families=families))


def test_there_is_an_answer_when_nothing_is_left_to_train_it() -> None:
    question = plan(limited(budget=3e11)).space
    assert question is not None
    results = [TrialResult(trial, 2.0) for trial in next_stage(question, [], 1e12, 6).trials]
    (name, family), *_ = question.families.items()
    nothing = {name: replace(family, answer_images=dict.fromkeys(family.answers, 0.0))}
    (standing,) = decide(replace(question, families=nothing), results).outlook().standings
    assert standing.answer.d == question.min_steps * question.batch_size


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({}, "`study.budgets` is missing: give the rungs, or what the study may cost as `budget` .FLOPs., `hours`"),
        ({"budgets": RUNGS}, "`study.target_budget` is missing: give the training FLOPs of the answer, or a limit"),
        ({"hours": 1, "device_hours": 1}, "`study.device_hours` and `hours` both limit the study"),
        ({"hours": 1, "executor": "ray"}, "`study.hours` are of this machine, not of ray: give `device_hours`"),
    ],
)
def test_what_a_study_needs_to_know_is_asked_for(study: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_config(study={"name": "toy", **study})


def test_rungs_are_chosen_below_the_target_and_within_the_limit() -> None:
    chosen = plan(limited(budget=3e11))
    budgets = chosen.catalogue.budgets
    assert len(budgets) >= 3
    assert all(1.2 < high / low < 3 for low, high in pairwise(budgets))
    assert budgets[-1] <= 4e10 / TARGET_DISTANCE * 1.05
    assert chosen.space is not None
    assert chosen.funds is not None
    ledger = Ledger(chosen.space)
    first = next_stage(chosen.space, [], chosen.funds.allowance, 6).trials
    assert sum(ledger.enter(trial) for trial in first) < 0.3 * chosen.funds.allowance
    assert [run.run_id for run in chosen.first] == [
        chosen.catalogue.run(t.family, t.model, t.budget, t.rate, number=t.copy).run_id for t in first
    ]


def test_more_to_spend_brings_the_rungs_nearer_to_the_target() -> None:
    catalogue = Catalogue(limited(budget=3e13, target_budget=4e12))
    small, large = (choose_budgets(catalogue.config, catalogue, flops, str) for flops in (2e11, 2e13))
    assert small[-1] < large[-1]


def test_sizes_that_were_only_counted_may_be_followed_by_their_neighbours() -> None:
    config = limited(budget=3e11)
    counted = {"vit": config.families["vit"].model_copy(update={"sizes": 2})}
    space = plan_study(limited(budget=3e13, target_budget=4e12).model_copy(update={"families": counted})).space
    assert space is not None
    candidate = space.families["vit"]
    assert len(candidate.start) == 2
    assert len(candidate.sizes) > 10
    named = plan(config).space
    assert named is not None
    assert tuple(named.families["vit"].sizes) == tuple(SIZES)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"device_hours": 1e-4, "budgets": RUNGS}, r"study.device_hours = 0.0001 leaves nothing to measure: .* takes"),
        (
            {"money": 1e-3, "price_per_hour": 2.0},
            r"study.money = 0.001 leaves nothing to measure: training the answer alone \(1 × 4e\+10 FLOPs\) takes",
        ),
        ({"budget": 4.2e10}, r"leaves 2e\+09 FLOPs for the ladder, but 3 sizes from .* need about"),
        ({"budget": 6e10, "budgets": [8e9, 2e10, 4e10]}, "its first two rungs, 8e.* and 2e.* FLOPs a run, take"),
        ({"budget": 1e12, "target_budget": 1e9}, "target_budget = 1e.* is too near to what the smallest presets need"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(study: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        plan(limited(**study))


@pytest.mark.parametrize("study", [{"budget": 4.2e10, "target_budget": 4e10}, {"device_hours": 0.002}, {"budget": 1e9}])
def test_the_limit_that_would_do_is_told_and_does(study: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"leaves .* FLOPs for the ladder, but 3 sizes") as refused:
        plan(study_config(study={"name": "toy", **study}))
    told = re.search(r": (\S+) (\S+) would do", str(refused.value))
    assert told is not None
    limit = next(key for key in study if key != "target_budget")
    assert plan(study_config(study={"name": "toy", **study, limit: float(told[1])})).catalogue.budgets


def test_sizes_beyond_a_limit_on_the_answer_are_neither_trained_nor_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [Catalogue(limited(budget=3e11)).cost("vit", name).parameters for name in SIZES]
    within = plan(limited(budget=3e11, max_parameters=parameters[1]))
    assert within.space is not None
    candidate = within.space.families["vit"]
    assert set(candidate.sizes) == set(candidate.start) == set(SIZES[:2])
    assert all(within.catalogue.cost("vit", name).parameters <= parameters[1] for name in candidate.answers)
    seconds = dict(zip(SIZES, (2.0, 4.0, 8.0), strict=True))
    monkeypatch.setattr("isoflop.study.planned.latency_ms", lambda config, _: seconds.get(config.model.name, 99.0))
    quick = plan(limited(budget=3e11, max_latency_ms=5.0))
    assert quick.space is not None
    assert set(quick.space.families["vit"].answers) == set(SIZES[:2])
    with pytest.raises(StudyError, match=r"max_latency_ms = 1 leaves no size of family vit: vit_w8d2p8 has .*, 2"):
        plan(limited(budget=3e11, max_latency_ms=1.0))
    with pytest.raises(StudyError, match=r"max_parameters = 7 leaves no size of family vit: \w+ has the least, 676"):
        plan(limited(budget=3e11, max_parameters=7))
    known = Overheads(latency_ms={**quick.catalogue.latency_ms, "vit/vit_w12d2p8": 6.0})
    again = plan(limited(budget=3e11, max_latency_ms=5.0), known)  # what was measured when the study began
    assert again.sizes == {"vit": ("vit_w8d2p8",)}


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ((15, 15, 15), "", r"45 images of 3 classes, 15 a class, are too few .*: 20 a class would do \(60 images\)"),
        ((196, 4), "", r"9[78].*% of the images are of class `0`, .*: 90% or less would do"),
        ((196, 4), "?balance=1", None),
        ((100, 10), "", None),
    ],
)
def test_images_that_a_study_would_learn_nothing_from_are_refused(
    counts: tuple[int, ...], options: str, message: str | None, tmp_path: Path
) -> None:
    for name, count in enumerate(counts):
        folder = tmp_path / "images" / str(name)
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), (7 * number + name) % 256).resize((8, 8)).save(folder / f"{number}.png")
    data = {"source": f"folder:{tmp_path / 'images'}{options}", "image_size": 8, "heldout": 10}
    config = study_config(data=data, batch_size=16)
    if message is None:
        with pytest.warns(DataNotice, match="1 of 2 classes have fewer than 20 images"):
            Catalogue(config)
        return
    with pytest.raises(StudyError, match=message):
        Catalogue(config)


def test_a_family_whose_smallest_size_no_chosen_rung_can_train_is_named() -> None:
    config = study_config(
        study={"name": "toy", "budgets": [1e9, 2e9, 4e9], "target_budget": 4e10, "budget": 1e11},
        families={"vit": {"sizes": SIZES}, "nfnet": {"sizes": ["nfnet_w64d2"]}},
    )
    with pytest.raises(StudyError, match="are too few for nfnet_w64d2, the smallest nfnet"):
        plan_study(config, known={**SECONDS, ("nfnet", "nfnet_w64d2"): 1e-3})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"transfer": {"dataset": "folder:absent"}}, "folder:absent: no such folder"),
        ({"transfer": {"dataset": "vtab:here"}}, "unknown data source `vtab:here`"),
    ],
)
def test_a_task_that_cannot_judge_the_answers_is_told_before_anything_is_trained(
    tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        plan_study(study_config(**tables), known=SECONDS)


def test_what_cannot_be_planned_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="for the ladder"):
        run_study(limited(budget=4.2e10, output=str(tmp_path / "toy")))
    assert not (tmp_path / "toy").exists()


def test_prices_that_were_wrong_are_corrected_by_what_runs_took_and_the_limit_holds() -> None:
    """Steps take four times what three of them took before the start, and workers wait as long as they work a third of
    the time: hours are those of the clock, which nobody asks here."""
    free = plan(limited(budgets=RUNGS, device_hours=100.0))
    assert free.space is not None
    assert free.funds is not None
    first = sum(map(Ledger(free.space).enter, next_stage(free.space, [], 100.0, 6).trials))
    hours = 8 * (first + free.funds.reserved)
    study = plan(limited(budgets=RUNGS, hours=hours, workers=1))
    assert study.funds is not None
    ended: dict[str, Ended] = {}
    rows: list[dict[str, Any]] = []
    trunks: dict[str, float] = {}
    clock: dict[int, float] = {}

    def elapsed(stage: int) -> float:
        return clock.setdefault(stage, 4 / 3 * sum(row["seconds"] for row in rows) / 3600)

    for batch in stages(study, lambda: ended, 1, elapsed):
        for run in batch.runs:
            images = run.images - trunks.get(run.trunk_id or "", 0.0)
            seconds = images * 4 * SECONDS["vit", run.model]
            loss = 1.0 + 30 * run.flops_per_image**-0.3 + 20 * run.images**-0.3
            loss *= 1 + 0.02 * math.log(run.config.optim.learning_rate / 1e-2) ** 2
            ended[run.run_id] = Ended(loss, images=images, seconds=seconds)
            rows.append({"status": "done", "family": "vit", "flops_per_image": run.flops_per_image,
                         "train_flops": run.train_flops, "seconds": seconds})  # fmt: skip
            trunks[run.trunk_id or ""] = 0.8 * run.images
    last = batch.plan
    assert last is not None
    assert last.funds is not None
    assert last.seconds_per_image == pytest.approx({key: 4 * SECONDS[key] for key in last.seconds_per_image})
    assert last.funds.reserved == pytest.approx(4 * study.funds.reserved)
    spent = last.funds.spent(rows)
    assert len(rows) > 6
    assert spent + last.funds.reserved < elapsed(0) + last.funds.reserved <= hours
    again = [run.run_id for batch in stages(study, lambda: ended, 1, elapsed) for run in batch.runs]
    assert again == list(ended)


def test_a_short_limit_leaves_fewer_sizes_and_then_fewer_families_and_says_so(tmp_path: Path) -> None:
    families = {"vit": {"sizes": 2}, "poolformer": {"sizes": 2, "recipe": "search"}}
    known = {(family, name): 1e-4 for family in families for name in family_ladder(family)}
    told = []
    for budget in (3e13, 1.5e13, 1.1e13, 8e12, 4.5e12):
        config = study_config(study={"name": "toy", "budget": budget, "output": str(tmp_path)}, families=families)
        planned = plan_study(config, known, overheads=NOTHING_BESIDE)
        told.append((sum(map(len, planned.sizes.values())), len(planned.sizes)))
        assert planned.ladder.left_out.keys() == set(families) - set(planned.sizes)
    assert told[0] == (4, 2)
    assert told == sorted(told, reverse=True)
    assert (2, 2) in told
    assert told[-1][1] == 1
    (why,) = planned.ladder.left_out.values()
    assert "would do" in why

    # The study goes on with the families that it began with.
    store = Store(tmp_path)
    store.claim(planned.catalogue.config, "fingerprint")
    store.write_prices(planned.seconds_per_image, ladder=planned.ladder)
    again = plan_study(config, store.prices(), overheads=NOTHING_BESIDE, known_ladder=store.ladder())
    assert (again.sizes, again.ladder, again.first) == (planned.sizes, planned.ladder, planned.first)
    store.claim(again.catalogue.config, "fingerprint")  # the same study


def test_a_recipe_is_searched_within_a_limit_only() -> None:
    families = {"vit": {"sizes": list(SIZES), "recipe": "search"}}
    with pytest.raises(ConfigError, match=r"families.vit.recipe.* = search is for a study with a limit"):
        study_config(families=families)
    planned = plan_study(study_config(study={"name": "toy", "budget": 3e12}, families=families), known=SECONDS)
    augment = {run.recipe: (run.config.data.augment, run.config.optim.label_smoothing) for run in planned.first}
    assert augment["light"] == ("crop_flip", 0.0)
    assert augment["medium"] == ("crop_flip_erase", 0.1)


def test_an_answer_is_as_long_as_its_measured_speed_allows() -> None:
    """The ladder's small models use the machine badly; the answer, timed, gets all that is left, not a third of it."""
    planned = plan(study_config(study={"name": "toy", "hours": 0.5}))
    asked: list[tuple[str, str]] = []

    def timed(family: str, model: str) -> float:
        asked.append((family, model))
        flops = planned.catalogue.flops_per_image(family, model)
        return flops / 4e9 if (family, model) not in SECONDS else SECONDS[family, model] / 3

    def answer(timed: Any) -> tuple[float, float]:
        done: dict[str, Ended] = {}
        for batch in stages(planned, done.copy, 1, lambda stage: 0.05 * stage, timed):
            done |= {run.run_id: Ended(1 + (run.train_flops / 1e9) ** -0.3) for run in batch.runs}
        assert batch.thought
        assert batch.thought.outlook
        assert batch.plan
        chosen = batch.thought.outlook.standings[0].answer
        return chosen.d * chosen.n, chosen.d * batch.plan.seconds_an_image("vit", chosen.n)

    before, after = answer(None), answer(timed)
    assert asked
    assert len(set(asked)) == len(asked)
    assert after[0] > 1.5 * before[0]
    assert after[1] == pytest.approx(before[1], rel=0.1)  # the time that is left


def test_a_family_may_start_from_trained_weights(tmp_path: Path) -> None:
    size = SIZES[0]
    trained = study_config().run_config("vit", model=size, steps=2, learning_rate=1e-3, warmup=0)
    train(trained, tmp_path / "before")
    start = {"weights": str(tmp_path / "before")}
    families = {"vit": {"sizes": list(SIZES)}, "tuned": {"sizes": [size], "start": start}}
    planned = plan_study(study_config(study={"name": "toy", "budget": 3e12}, families=families), known=SECONDS)
    runs = {run.family: run for run in planned.first if run.model == size}
    assert runs["tuned"].config.start is not None
    assert runs["vit"].config.start is None
    assert runs["tuned"].run_id != runs["vit"].run_id
    assert runs["tuned"].flops_per_image == runs["vit"].flops_per_image
    assert planned.space
    assert set(planned.space.families["tuned"].answers) == {size}  # the weights are of no other

    families["tuned"]["sizes"] = [SIZES[1]]
    with pytest.raises(CheckpointError, match="weights of vit_w8d2p8, but `sizes` names vit_w12d2p8"):
        plan_study(study_config(study={"name": "toy", "budget": 3e12}, families=families), known=SECONDS)
    families["tuned"]["sizes"] = list(SIZES)
    with pytest.raises(ConfigError, match=r"families.tuned.*start.weights.* are of one model"):
        study_config(study={"name": "toy", "budget": 3e12}, families=families)
