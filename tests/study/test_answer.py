"""What an answer is made of: copies of a run are one run, and steps from a trunk are not paid twice."""

import math
from pathlib import Path
from typing import Any

import pytest

from isoflop.config.run import EvaluationConfig
from isoflop.errors import ModelError
from isoflop.models import cost, family_ladder
from isoflop.models.presets import ladder_of
from isoflop.report.interim import best_rates, interim_answer
from isoflop.report.law import answer_sentence
from isoflop.report.page import facts
from isoflop.report.savings import limit_sentence, savings, total_cost, utilisation
from isoflop.report.tables import summary
from isoflop.report.watch.state import Live
from isoflop.study.adaptive import FamilyStanding, Outlook
from isoflop.study.answer import answer_document, answer_from, spending
from isoflop.study.belief import Trial
from isoflop.study.planned import Catalogue, PlannedRun
from isoflop.study.store import Store
from tests.study.test_rungs import study_config
from tests.study.test_study import toy_study


def row(**values: Any) -> dict[str, Any]:
    usual = {"model": "vit_w8d2p8", "images": 1e4, "budget": 1e9, "learning_rate": 0.01, "status": "done"}
    return {
        **usual,
        "heldout_loss": 2.0,
        "flops_per_image": 1e5,
        "train_flops": 1e9,
        "steps": 100,
        "trunk_steps": 0,
        **values,
    }


def test_copies_of_a_run_count_as_their_mean_so_that_luck_does_not() -> None:
    lucky, unlucky = row(heldout_loss=1.8), row(heldout_loss=2.4)
    steady = row(learning_rate=0.02, heldout_loss=2.0)
    (best,) = best_rates([lucky, unlucky, steady])
    assert (best["learning_rate"], best["heldout_loss"]) == (0.02, 2.0)
    (best,) = best_rates([lucky, row(heldout_loss=2.0), steady])
    assert (best["learning_rate"], best["heldout_loss"]) == (0.01, pytest.approx(1.9))


def test_runs_that_diverged_or_failed_are_never_the_best() -> None:
    assert best_rates([row(status="diverged", heldout_loss=None), row(status="failed", heldout_loss=0.1)]) == []


def test_what_trunks_saved_is_told_in_flops() -> None:
    spent = spending([row(), row(train_flops=4e9, steps=400, trunk_steps=80), row(status="planned", trunk_steps=None)])
    assert spent["separate_flops"] == 5e9
    assert spent["trained_flops"] == pytest.approx(4.2e9)
    assert spent["saved"] == pytest.approx(0.16)


def test_what_trunks_saved_is_said_only_where_they_did() -> None:
    told = savings([row(), row(train_flops=4e9, steps=400, trunk_steps=80)]).sentences()
    assert told == ["shared trunks saved 8×10⁸ FLOPs, 16\u00a0% of what separate runs would have taken"]
    assert savings([row()]).sentences() == []


def test_a_run_that_an_earlier_version_stopped_costs_what_it_took() -> None:
    stopped = row(train_flops=4e9, steps=400, trunk_steps=80, status="stopped", stopped_at=200, seconds=100.0)
    assert total_cost([stopped]) == (pytest.approx(1.2e9), pytest.approx(60.0))


def test_a_variant_under_its_own_name_is_answered_from_the_ladder_of_its_sizes() -> None:
    """As in an ablation: `[families.no_mixer]` of a PoolFormer's sizes."""
    sizes = ["poolformer_w4d1p8", "poolformer_w6d1p8"]
    families = {"no_mixer": {"sizes": sizes, "model": {"pool_size": 1}}, "bit": {"sizes": ["bit_r50x1"]},
                "one": {"ladder": "poolformer", "sizes": sizes[:1], "model": {"mixers": ["identity"]}}}  # fmt: skip
    catalogue = Catalogue(study_config(families=families))
    assert set(catalogue.presets("no_mixer")) == set(ladder_of(sizes[0]))
    assert set(ladder_of(sizes[0])) >= {*sizes, *family_ladder("poolformer")}
    assert catalogue.presets("bit") == ("bit_r50x1",)
    assert catalogue.presets("one") == (sizes[0],)  # its one size: others have other stages
    source, side = catalogue.source, catalogue.image_size("one")
    shape: dict[str, int] = {
        "num_classes": source.num_classes or 0,
        "image_size": side,
        "in_channels": source.channels,
    }
    assert catalogue.cost("one", sizes[0]) == cost(sizes[0], mixers="identity", **shape)


def test_levels_of_regularisation_are_families_of_one_ladder() -> None:
    families = {"vit": {"sizes": 2, "recipe": "light"}, "regular": {"sizes": 2, "ladder": "vit", "recipe": "strong"}}
    catalogue = Catalogue(study_config(families=families))
    assert catalogue.starting_sizes("regular") == catalogue.starting_sizes("vit")
    assert catalogue.presets("regular") == catalogue.presets("vit")
    runs = {family: catalogue.run(family, catalogue.presets(family)[0], 1e10, 1e-3) for family in families}
    assert runs["regular"].config.data.cutmix == 1.0
    assert runs["regular"].config.optim.label_smoothing == 0.1
    assert runs["vit"].config.data.augment == "crop_flip"
    assert runs["vit"].run_id != runs["regular"].run_id
    with pytest.raises(ModelError, match="not of 'vitt' - did you mean `vit`"):
        Catalogue(study_config(families={"mine": {"sizes": 2, "ladder": "vitt"}})).starting_sizes("mine")


def ladder(family: str, **values: Any) -> list[dict[str, Any]]:
    return [
        row(family=family, role="ladder", budget=b, images=b / n, train_flops=b, flops_per_image=n,
            model=f"{family}{n}", heldout_loss=0.5 + 10 * n**-0.3 + 20 * (b / n) ** -0.3, **values)
        for b in (1e9, 3e9, 1e10, 3e10) for n in (2e4, 5e4, 1e5)
    ]  # fmt: skip


def test_a_family_that_did_not_train_is_shown_with_what_became_of_its_runs() -> None:
    lost = [{**run, "status": "diverged", "heldout_loss": None, "error": "no longer finite"} for run in ladder("lost")]
    rows = [*ladder("sound"), *lost, *ladder("few")[:2], *({**run, "status": "stopped"} for run in ladder("stopped"))]
    found = interim_answer(rows, 1e11, families=("sound", "absent"))
    assert found["left_out"] == {
        "absent": "it has no runs",
        "lost": "all its runs, 12, diverged (the first: no longer finite)",
        "few": "2 of its 2 runs gave a loss; a law of size and data has 5 parameters: 2 runs are too few, "
        "give at least 5",
        "stopped": "all its runs, 12, were stopped halfway",
    }
    assert found["families"]["sound"]["p_best"] is None  # it was compared with nothing
    told = answer_sentence(rows, found)
    assert "lost is not compared: all its runs, 12, diverged" in told
    assert "probability" not in told
    page = summary(rows, found)
    assert "P(best)" not in page  # a column in which nothing would stand
    assert page.count("no law") == 4


def test_page_and_command_count_each_step_once() -> None:
    rows = [row(seconds=100.0), row(train_flops=4e9, steps=400, trunk_steps=80, seconds=400.0)]
    assert total_cost(rows) == (pytest.approx(1e9 + 3.2e9), pytest.approx(100 + 320))
    assert spending(rows)["trained_flops"] == pytest.approx(total_cost(rows)[0])


def test_page_command_and_live_view_agree_on_runs_that_did_not_end_well(tmp_path: Path) -> None:
    rows = [
        row(seconds=100.0, utilisation=0.5, run_id="a"),
        row(train_flops=4e9, steps=400, trunk_steps=80, seconds=400.0, utilisation=0.25, run_id="b"),
        row(status="failed", seconds=50.0, utilisation=0.1, run_id="c"),
        row(status="planned", trunk_steps=None, seconds=None, utilisation=None, run_id="d"),
    ]
    flops, seconds = total_cost(rows)
    assert (flops, seconds) == (pytest.approx(1e9 + 3.2e9 + 1e9), pytest.approx(470))
    spent = spending(rows)
    assert (spent["trained_flops"], spent["seconds"]) == (pytest.approx(flops), pytest.approx(seconds))
    (tmp_path / "study.json").write_text('{"study": "0", "name": "toy", "config": {}}')
    watched = Live(tmp_path)
    watched.rows = [{**run, "role": "ladder", "budget": 1e9} for run in rows]
    assert watched.progress()["flops"] == pytest.approx(flops)
    assert watched.progress()["seconds"] == pytest.approx(seconds)
    assert spent["utilisation"] == pytest.approx((100 * 0.5 + 320 * 0.25 + 50 * 0.1) / 470)
    assert "utilisation 29 %" in facts([{**run, "images": 100} for run in rows], {})
    assert utilisation([row(seconds=1.0)]) is None


def test_a_limit_that_was_exceeded_is_said() -> None:
    planner = {"unit": "device-hours", "limit": 2.0, "spent": 7.0}
    assert limit_sentence({"planner": planner}).endswith("the limit was exceeded by 250\u00a0%")
    assert limit_sentence({"planner": {**planner, "spent": 1.5}}).startswith("1.50 of 2.00 device-hours spent")
    assert limit_sentence({}) == ""


def test_a_planted_law_comes_back_in_the_answer_document(tmp_path: Path) -> None:
    """Without noise the answer is known in closed form: n* = (aA/bB)^(1/(a+b)) · C^(b/(a+b))."""
    floor, big_a, a, big_b, b, target = 1.0, 3e3, 0.6, 5e2, 0.5, 4e11
    sizes = ["vit_w8d2p8", "vit_w12d2p8", "vit_w16d2p8", "vit_w24d2p8"]
    config = toy_study(
        tmp_path / "planted",
        study={"budgets": [2e9, 8e9, 3.2e10, 1.28e11], "target_budget": target},
        families={"vit": {"sizes": sizes, "learning_rates": [0.01, 0.02, 0.04]}},
    )
    catalogue, store = Catalogue(config), Store(tmp_path / "planted")

    def planted(run: PlannedRun) -> float:
        return floor + big_a * run.flops_per_image**-a + big_b * run.images**-b

    rows = []
    for budget in config.study.budgets or ():
        for size in sizes:
            for rate in (0.01, 0.02, 0.04):
                run = catalogue.run("vit", size, budget, rate)
                bowl = 0.05 * math.log(rate / 0.02) ** 2
                loss = planted(run) + bowl
                rows.append({**store.row(run, None), "status": "done", "heldout_loss": loss, "target": loss})
    document = answer_document(answer_from(config, catalogue, rows))
    answer = document["families"]["vit"]
    best = (a * big_a / (b * big_b)) ** (1 / (a + b)) * target ** (b / (a + b))
    presets = catalogue.presets("vit")
    nearest = min(presets, key=lambda name: abs(math.log(catalogue.flops_per_image("vit", name) / best)))
    assert answer["model"] == nearest
    run = catalogue.run("vit", nearest, target, 0.02)
    assert answer["images"] == run.images
    assert answer["learning_rate"] == pytest.approx(0.02, rel=1e-2)
    assert answer["predicted_loss"] == pytest.approx(planted(run), rel=5e-3)
    assert answer["interval"][0] <= planted(run) <= answer["interval"][1]
    for name, exponent in (("alpha", a), ("beta", b), ("size", b / (a + b))):
        assert answer["exponents"][name] == pytest.approx(exponent, rel=1e-6)
    assert answer["law"]["irreducible"] == pytest.approx(floor, rel=1e-6)
    # Losses that have hardly left that of guessing say little about larger runs.
    chance = math.log(catalogue.source.num_classes or 0)
    for share, warned in ((0.75, False), (0.85, True)):
        factor = share * chance / min(row["target"] for row in rows)
        near = [{**row, "heldout_loss": factor * row["target"], "target": factor * row["target"]} for row in rows]
        warnings = answer_from(config, catalogue, near).best.warnings
        assert any("of guessing among" in text for text in warnings) == warned
    # At the best temperature no loss is above that of guessing, and no prediction or interval reaches beyond it.
    above = [{**row, "heldout_loss": chance + row["target"], "target": chance + row["target"]} for row in rows]
    calibrated = config.model_copy(update={"evaluation": EvaluationConfig(calibrate=True)})
    assert answer_from(config, catalogue, above).best.predicted_loss > chance
    held = answer_from(calibrated, Catalogue(calibrated), above).best
    assert (held.predicted_loss, held.interval[1]) == (chance, chance)


def test_the_planners_best_family_is_the_answer_though_its_runs_are_too_few_for_a_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on CIFAR-10 within 12 minutes: 97 % for a ResNet of eight runs, and a PoolFormer was answered."""
    sizes = {"vit": ["vit_w8d2p8", "vit_w12d2p8"], "poolformer": ["poolformer_w4d2p8", "poolformer_w6d2p8"]}
    study = {"name": "toy", "budgets": [1e9, 3e9, 1e10], "target_budget": 1e11, "device_hours": 1.0}
    catalogue = Catalogue(study_config(study=study, families={f: {"sizes": names} for f, names in sizes.items()}))
    rows = [
        {**run, "status": "done", "target": run["heldout_loss"]}
        for run in [*ladder("vit", learning_rate=1e-3), *ladder("poolformer", learning_rate=1e-3)[:4]]
    ]

    def standing(family: str, loss: float, p_best: float) -> FamilyStanding:
        n = catalogue.flops_per_image(family, sizes[family][1])
        answer = Trial(family, sizes[family][1], n, 1e11 / n, 1e11, 2e-3)
        return FamilyStanding(answer, math.log(loss), 0.1, p_best, 0.01)

    outlook = Outlook((standing("poolformer", 0.8, 0.97), standing("vit", 1.2, 0.03)))
    answer = answer_from(catalogue.config, catalogue, rows, outlook)
    assert [family.family for family in answer.families] == ["poolformer", "vit"]
    best = answer.best
    assert (best.run.model, best.run.config.optim.learning_rate) == ("poolformer_w6d2p8", 2e-3)
    assert best.predicted_loss == pytest.approx(0.8)
    assert best.interval == pytest.approx((0.8 * math.exp(-0.1645), 0.8 * math.exp(0.1645)), rel=1e-3)
    assert "4 of its 4 runs gave a loss" in best.warnings[0]
    document = answer_document(answer)
    assert document["best"] == "poolformer"
    assert document["families"]["poolformer"]["p_best"] == 0.97
    assert document["families"]["poolformer"]["law"] is None
    page = summary(rows, document)
    assert "poolformer_w6d2p8" in page
    nobody = Outlook((standing("vit", 1.2, 0.999), standing("poolformer", 2.0, 0.001)))
    assert "given up early" in answer_from(catalogue.config, catalogue, rows, nobody).left_out["poolformer"]
    # A law whose interval tells nothing predicts nothing either.
    monkeypatch.setattr("isoflop.study.answer.tells_nothing", lambda low, high: True)
    vit = next(f for f in answer_from(catalogue.config, catalogue, rows, outlook).families if f.family == "vit")
    assert vit.law is None
    assert vit.predicted_loss == pytest.approx(1.2)
