"""Runs of a study that are trained as one: which, and what is left of them when their worker is killed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop.runs.directory import read_status
from isoflop.study.executors import LocalPool, Task
from isoflop.study.executors.training import Message, train_load
from isoflop.study.packing import packs
from isoflop.study.planned import Catalogue, PlannedRun
from isoflop.study.store import Store
from tests.promises.same import measured
from tests.study.test_study import toy_study


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(toy_study(tmp_path_factory.mktemp("packing"), checkpoint={"every_seconds": 0.2}))


def rung(catalogue: Catalogue, rates: int, model: str = "vit_w8d2p8", budget: float = 6e8) -> list[PlannedRun]:
    return [catalogue.run("vit", model, budget, 0.01 * 1.1**k) for k in range(rates)]


def test_runs_that_differ_in_rate_or_seed_alone_are_packed(catalogue: Catalogue) -> None:
    runs = [*rung(catalogue, 6), catalogue.run("vit", "vit_w8d2p8", 6e8, 0.01, number=1)]
    others = rung(catalogue, 5, "vit_w12d2p8") + rung(catalogue, 5, budget=1.2e9)  # too few of a kind
    found = packs(runs + others, 2)
    assert set(found) == {run.run_id for run in runs}
    assert {pack.size for pack in found.values()} == {7}
    assert sorted(pack.place for pack in found.values()) == list(range(7))
    assert packs(runs + others, 2) == found


def test_packs_leave_no_worker_idle_and_stay_small(catalogue: Catalogue) -> None:
    runs = rung(catalogue, 24)
    assert {pack.size for pack in packs(runs, 2).values()} == {12}
    assert {pack.size for pack in packs(runs, 3).values()} == {8}
    assert packs(runs, 8) == {}
    assert max(pack.size for pack in packs(rung(catalogue, 40), 1).values()) <= 12


def test_large_models_and_masked_ones_and_answers_are_trained_alone(catalogue: Catalogue, tmp_path: Path) -> None:
    assert packs(rung(catalogue, 8, "vit_w96d3p8", budget=1e11), 1) == {}
    assert packs([replace(run, role="final") for run in rung(catalogue, 8)], 1) == {}
    masked = Catalogue(toy_study(tmp_path, objective={"name": "masked", "decoder_depth": 1, "decoder_width": 16}))
    assert packs(rung(masked, 8), 1) == {}


def test_a_pack_whose_worker_is_killed_ends_as_if_it_had_not_been(
    catalogue: Catalogue, tmp_path: Path, mortal_workers: Callable[..., None]
) -> None:
    runs = rung(catalogue, 6)
    together = packs(runs, 1)

    def tasks(folder: Path) -> list[Task]:
        store = Store(folder)
        return [
            Task(run, store.run_directory(run.run_id), store.trunk_directory(run), pack=together[run.run_id])
            for run in runs
        ]

    messages: list[Message] = []
    train_load([task.to_json() for task in tasks(tmp_path / "undisturbed")], messages.append)
    ended, died = {}, set()
    mortal_workers("")
    with LocalPool(1) as pool:
        for event in pool.run(tasks(tmp_path / "killed")):
            if event.kind == "died":
                died.add(event.run_id)
            if event.kind == "ended":
                ended[event.run_id] = event.state
    assert died == set(ended) == set(together)
    for undisturbed, killed in zip(tasks(tmp_path / "undisturbed"), tasks(tmp_path / "killed"), strict=True):
        assert measured(undisturbed.directory) == measured(killed.directory)
        same = [(task.directory / "model.safetensors").read_bytes() for task in (undisturbed, killed)]
        assert same[0] == same[1]
        assert read_status(killed.directory).state == "done"
