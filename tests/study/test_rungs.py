"""The ladder's rules: which runs a rung needs, given the rungs below."""

from typing import Any

import pytest

from isoflop.config import StudyConfig, parse
from isoflop.errors import ModelError, StudyError
from isoflop.study.plan import forecast
from isoflop.study.planned import Catalogue
from isoflop.study.rungs import extensions, first_rung, ladder_sizes, next_rung, rate_grid, usual_exponent

SIZES = ["vit_w8d2p8", "vit_w12d2p8", "vit_w16d2p8"]


def study_config(**changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "study": {"name": "toy", "budgets": [2e9, 4e9, 8e9], "target_budget": 4e10},
        "batch_size": 64,
        "data": {"source": "fractals?classes=20", "heldout": 64},
        "schedule": {"warmup": 10},
        "families": {"vit": {"sizes": SIZES, "learning_rates": [0.005, 0.01, 0.02]}},
    }
    return parse({**values, **changes}, StudyConfig)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(study_config())


def test_the_first_rung_tries_every_rate_for_every_size(catalogue: Catalogue) -> None:
    config = catalogue.config
    sizes = ladder_sizes(config, catalogue)
    runs = first_rung(config, catalogue, sizes)
    assert sizes == {"vit": tuple(SIZES)}
    assert len(runs) == 9
    assert len({run.run_id for run in runs}) == 9
    for run in runs:
        assert run.train_flops == pytest.approx(2e9, rel=0.05)


def test_planning_twice_plans_the_same_runs(catalogue: Catalogue) -> None:
    other = Catalogue(study_config())
    sizes = ladder_sizes(catalogue.config, catalogue)
    ours = [run.run_id for run in first_rung(catalogue.config, catalogue, sizes)]
    assert ours == [run.run_id for run in first_rung(other.config, other, sizes)]


def test_a_rate_at_the_edge_widens_the_grid_and_an_inner_one_does_not(catalogue: Catalogue) -> None:
    sizes = {"vit": ("vit_w8d2p8",)}
    runs = first_rung(catalogue.config, catalogue, sizes)
    rising = {run.run_id: run.config.optim.learning_rate for run in runs}
    (below,) = extensions(runs, rising, catalogue)
    assert below.config.optim.learning_rate == 0.0025
    falling = {run.run_id: -run.config.optim.learning_rate for run in runs}
    (above,) = extensions(runs, falling, catalogue)
    assert above.config.optim.learning_rate == 0.04
    inner = {run.run_id: abs(run.config.optim.learning_rate - 0.01) for run in runs}
    assert extensions(runs, inner, catalogue) == []


def test_the_second_rung_tries_a_lower_rate_too_and_the_third_only_the_best(catalogue: Catalogue) -> None:
    config, sizes = catalogue.config, {"vit": ("vit_w8d2p8",)}
    first = first_rung(config, catalogue, sizes)
    second = next_rung(1, config, catalogue, sizes, first, {r.run_id: r.config.optim.learning_rate for r in first})
    assert [run.config.optim.learning_rate for run in second] == [0.0025, 0.005]
    third = next_rung(2, config, catalogue, sizes, second, {second[0].run_id: 2.0, second[1].run_id: 1.0})
    assert [run.config.optim.learning_rate for run in third] == [0.005]


def test_diverged_runs_never_count_as_best(catalogue: Catalogue) -> None:
    config, sizes = catalogue.config, {"vit": ("vit_w8d2p8",)}
    first = first_rung(config, catalogue, sizes)
    losses = {first[0].run_id: float("inf"), first[1].run_id: 1.0, first[2].run_id: float("inf")}
    second = next_rung(1, config, catalogue, sizes, first, losses)
    assert [run.config.optim.learning_rate for run in second] == [0.005, 0.01]


def test_runs_of_one_size_and_rate_share_a_trunk_and_others_do_not(catalogue: Catalogue) -> None:
    short = catalogue.run("vit", "vit_w8d2p8", 2e9, 0.01)
    assert short.trunk_id == catalogue.run("vit", "vit_w8d2p8", 8e9, 0.01).trunk_id
    assert short.trunk_id != catalogue.run("vit", "vit_w8d2p8", 8e9, 0.02).trunk_id
    assert short.trunk_id != catalogue.run("vit", "vit_w12d2p8", 2e9, 0.01).trunk_id
    assert short.config.schedule.warmup == catalogue.run("vit", "vit_w8d2p8", 8e9, 0.01).config.schedule.warmup


def test_sizes_are_chosen_from_the_ladder_when_only_counted() -> None:
    study = {"name": "toy", "budgets": [1e11, 2e11, 4e11], "target_budget": 2e12}
    config = study_config(study=study, families={"vit": {"sizes": 3}, "resnet": {"sizes": 2}})
    sizes = ladder_sizes(config, Catalogue(config))
    assert [len(names) for names in sizes.values()] == [3, 2]


def test_a_budget_too_small_for_the_smallest_model_is_told_with_what_it_needs() -> None:
    config = study_config(study={"name": "toy", "budgets": [1e7, 3e7, 1e8], "target_budget": 1e9})
    with pytest.raises(StudyError, match=r"too few for vit_w8d2p8.*30 steps of batch 64 cost .*FLOPs"):
        ladder_sizes(config, Catalogue(config))


def test_more_sizes_than_the_ladder_has_are_refused() -> None:
    config = study_config(families={"vit": {"sizes": 99}})
    with pytest.raises(StudyError, match=r"families.vit.sizes = 99, but its ladder has"):
        ladder_sizes(config, Catalogue(config))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("vit", ["vit_w8d2p8", "nfnet_w16d2"], "families.vit.sizes: nfnet_w16d2 is of another family than vit"),
        (
            "mine",
            ["vit_w8d2p8", "nfnet_w16d2"],
            "nfnet_w16d2 is of another family than vit_w8d2p8",
        ),
    ],
)
def test_sizes_of_two_families_are_not_one(name: str, sizes: list[str], message: str) -> None:
    config = study_config(families={name: {"sizes": sizes}})
    with pytest.raises(StudyError, match=message):
        ladder_sizes(config, Catalogue(config))


def test_a_misspelt_family_gets_a_suggestion() -> None:
    config = study_config(families={"poolfromer": {}})
    with pytest.raises(ModelError, match=r"did you mean `poolformer`\?"):
        ladder_sizes(config, Catalogue(config))


def test_evaluations_are_priced_by_the_images_that_are_held_out_and_not_by_those_asked_for() -> None:
    def minutes(heldout: int) -> float:
        config = study_config(data={"source": "digits", "heldout": heldout}, families={"vit": {"sizes": SIZES}})
        catalogue = Catalogue(config)
        seconds = {("vit", name): 1e-4 for name in SIZES}
        return sum(rung.core_seconds for rung in forecast(config, catalogue, {"vit": tuple(SIZES)}, seconds))

    assert minutes(1_000_000) == pytest.approx(minutes(287))  # a fifth of the 1,438 training images
    assert minutes(287) > minutes(100)


@pytest.mark.parametrize(
    ("lowest", "batch"),
    [
        (200 * 128 * 246_720 * 1.01, 128),  # 200 steps of the dearest family's smallest size, vit_w8d2p8
        (200 * 128 * 246_720 * 0.99, 64),
        (200 * 32 * 246_720 * 0.99, 16),
        (30 * 16 * 246_720 * 1.01, 16),  # no smaller batch: fewer steps
    ],
)
def test_the_batch_is_the_largest_that_leaves_the_smallest_sizes_200_steps(lowest: float, batch: int) -> None:
    study = {"name": "toy", "budgets": [lowest, 2 * lowest, 4 * lowest], "target_budget": 8 * lowest}
    families = {"vit": {"sizes": ["vit_w12d2p8", "vit_w8d2p8"]}, "nfnet": {"sizes": ["nfnet_w6d1"]}}
    catalogue = Catalogue(study_config(study=study, families=families, batch_size=None))
    assert catalogue.flops_per_image("vit", "vit_w8d2p8") == 246_720
    assert catalogue.batch_size == batch
    run = catalogue.run("vit", "vit_w8d2p8", lowest, 1e-3)
    assert run.config.batch_size == batch
    assert run.config.steps == round(lowest / 246_720 / batch)


def test_of_large_images_64_make_a_batch_and_of_few_no_more_than_there_are() -> None:
    study = {"name": "toy", "budgets": [1e13, 2e13, 4e13], "target_budget": 1e14}
    large = {"source": "fractals?classes=20", "heldout": 64, "image_size": 128}
    assert Catalogue(study_config(study=study, data=large, batch_size=None)).batch_size == 64
    few = {"source": "fractals?classes=20&images=100", "heldout": 64}
    assert Catalogue(study_config(study=study, data=few, batch_size=None)).batch_size == 64


def test_a_data_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(StudyError, match="fewer than one batch"):
        Catalogue(study_config(data={"source": "fractals?classes=20&images=50", "heldout": 64}))


def test_with_rates_that_carry_over_widths_two_sizes_search_and_the_others_take_theirs_over() -> None:
    config = study_config(optim={"mup": 8})
    catalogue = Catalogue(config)
    runs = first_rung(config, catalogue, ladder_sizes(config, catalogue))
    tried = {model: [run.config.optim.learning_rate for run in runs if run.model == model] for model in SIZES}
    assert [len(rates) for rates in tried.values()] == [3, 3, 1]
    assert all(run.config.optim.mup == 8 for run in runs)
    losses = {run.run_id: 2.0 + abs(run.config.optim.learning_rate - 0.005) for run in runs}
    second = next_rung(1, config, catalogue, ladder_sizes(config, catalogue), runs, losses)
    assert [run.config.optim.learning_rate for run in second] == [0.005] * 3
    third = next_rung(2, config, catalogue, ladder_sizes(config, catalogue), second, {r.run_id: 2.0 for r in second})
    assert [run.config.optim.learning_rate for run in third] == [0.005] * 3
    free = study_config(optim={"mup": 8}, families={"vit": {"sizes": SIZES}})
    grids = {rate_grid(free, catalogue, "vit", model) for model in SIZES}
    assert len(grids) == 1
    assert usual_exponent(free, "vit") == 0.0
