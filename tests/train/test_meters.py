"""Meters say what the clock and the data sheets say."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from isoflop.config import RunConfig, parse
from isoflop.models import cost
from isoflop.train import read_journal, train
from isoflop.train.device import ACCELERATORS, CPU_WATTS, _kept_peak, identify, matrix_rate, peak_of
from isoflop.train.forecast import train_flops_per_image
from isoflop.train.record import MEASURED, Meters, wall_of_attempts
from tests.promises.chaos import run_config


def test_every_row_of_a_run_tells_how_well_the_machine_is_used(tmp_path: Path) -> None:
    began = time.perf_counter()
    train(run_config(steps=40), tmp_path / "run")
    elapsed = time.perf_counter() - began
    for row in read_journal(tmp_path / "run"):
        assert set(row) >= MEASURED
        assert 0 < row["mfu"] < 1
        assert 0 < row["goodput"] <= 1
        assert row["wall"] <= elapsed
        assert row["memory_bytes"] > 50e6
        assert row["device_hours"] == pytest.approx(row["wall"] / 3600, rel=0.01)
        assert row["energy_kwh"] == pytest.approx(row["device_hours"] * CPU_WATTS / 1000, rel=0.01)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the meters take for the time is its one element."""
    clock = [100.0]
    monkeypatch.setattr("isoflop.train.record.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    return clock


def test_utilisation_is_flops_over_what_the_machine_can_do(tmp_path: Path, clock: list[float]) -> None:
    device = torch.device("cpu")
    meters = Meters(tmp_path, flops_per_image=1e6, device=device, devices=4, began=99.0)
    meters.resume(100)
    clock[0] += 0.5
    read = meters.read(300, seconds=0.01)
    assert read["images_per_second"] == 400
    expected = read["images_per_second"] * 1e6 / (4 * matrix_rate(device)[0])
    assert read["mfu"] == pytest.approx(expected, rel=0.01)


def test_goodput_counts_what_earlier_attempts_lost(tmp_path: Path, clock: list[float]) -> None:
    for number, walls in enumerate([[3.0, 60.0], [5.0, 30.0], []], start=1):
        folder = tmp_path / "attempts" / str(number)
        folder.mkdir(parents=True)
        trained = [{"kind": "train", "step": 1, "images": 8, "loss": 2.0, "wall": wall} for wall in walls]
        rows = [{"kind": "start", "step": 0}, *trained]
        text = "\n".join(map(json.dumps, rows)) + '\n{"kind": "train", "wa'  # torn by a kill
        (folder / "metrics-0001.jsonl").write_text(text)
    assert wall_of_attempts(tmp_path) == 90.0
    meters = Meters(tmp_path, flops_per_image=1.0, device=torch.device("cpu"), devices=2, began=clock[0] - 10.0)
    read = meters.read(1, seconds=75.0)
    assert read["goodput"] == 0.75
    assert read["device_hours"] == pytest.approx(2 * 100 / 3600, rel=1e-3)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_accelerators_are_known_by_what_their_drivers_call_them(driver: str, name: str) -> None:
    assert identify(driver) == ACCELERATORS[name]


def test_a_device_that_is_in_no_table_is_not_taken_for_another() -> None:
    assert identify("Tesla K80") is None


def test_two_passes_of_sharpness_aware_minimisation_are_counted() -> None:
    run = {"model": {"name": "vit_w16d2p8"}, "steps": 10}
    plain, sam = (parse({**run, "optim": optim}, RunConfig) for optim in ({}, {"sam": 0.05}))
    counted = cost("vit_w16d2p8", num_classes=10, image_size=32, in_channels=1).train_flops_per_image
    assert train_flops_per_image(plain, 10, 1) == counted
    assert train_flops_per_image(sam, 10, 1) == 2 * counted


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a process that has measured nothing."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    _kept_peak.cache_clear()
    monkeypatch.setattr("isoflop.train.device.product_rate", lambda device, kind, side: (5e9, 1.0))
    yield tmp_path
    _kept_peak.cache_clear()


def test_the_peak_is_measured_once_for_a_machine_and_a_number_of_threads(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, first = torch.device("cpu"), peak_of(torch.device("cpu"), 1)
    assert first.rates == {"float32": 5e9, "bfloat16": 5e9}
    (file,) = (cache / "machine").iterdir()
    assert json.loads(file.read_text())["machine"]["threads"] == 1
    _kept_peak.cache_clear()  # another process
    monkeypatch.setattr("isoflop.train.device.product_rate", lambda device, kind, side: (9e9, 1.0))
    assert peak_of(cpu, 1, again=True) == first
    assert peak_of(cpu, 2).fastest == 9e9
    file.write_text("{")  # damaged: measured again
    _kept_peak.cache_clear()
    assert peak_of(cpu, 1).fastest == 9e9


def test_a_peak_measured_beside_other_work_says_so_and_is_measured_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("isoflop.train.device.product_rate", lambda device, kind, side: (2e9, 0.5))
    busy = peak_of(cpu, 1)
    assert not busy.quiet
    assert "measured beside other work" in str(busy)
    _kept_peak.cache_clear()
    monkeypatch.setattr("isoflop.train.device.product_rate", lambda device, kind, side: (5e9, 1.0))
    assert peak_of(cpu, 1) == busy  # good enough for a run's meters
    assert peak_of(cpu, 1, again=True).fastest == 5e9  # and not for a plan
    _kept_peak.cache_clear()
    assert peak_of(cpu, 1).quiet


def test_the_rate_of_a_product_is_its_flops_over_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.train.device import product_rate

    rate, share = product_rate(torch.device("cpu"), torch.float32, 64)
    assert 1e7 < rate < 1e13
    assert 0 < share < 1.5
