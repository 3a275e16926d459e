"""Damaged samples are replaced alike in every run, listed with reasons, and stop the run when they are too many."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from isoflop.data import Damage, Quarantine, batches, open_source
from isoflop.errors import DataError
from tests.data.pictures import encoded, picture

PLAN = {"seed": 0, "batch_size": 10, "start_step": 0, "stop_step": 12}


@pytest.fixture
def with_damage(image_folder: Path) -> Path:
    """48 training images (12 are held out) of which three are damaged in different ways."""
    (image_folder / "train" / "cat" / "03.png").write_bytes(b"")
    (image_folder / "train" / "dog" / "05.png").write_bytes(encoded(picture(0))[:300])
    (image_folder / "train" / "owl" / "07.png").write_bytes(b"<html>404</html>")
    return image_folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decode", ["once", "each"])
def test_too_much_damage_stops_the_run_with_the_first_name(with_damage: Path, decode: str, workers: int) -> None:
    def run() -> None:
        source = open_source(f"folder:{with_damage}?decode={decode}", split="train", image_size=16, heldout=0)
        list(batches(source, workers=workers, **PLAN))

    with pytest.raises(DataError, match=r"damaged, more than the allowed 0\.1%; the first: .*png: .*data check"):
        run()


def test_damaged_samples_are_replaced_alike_for_any_workers(with_damage: Path, tmp_path: Path) -> None:
    source = open_source(f"folder:{with_damage}?decode=each", split="train", image_size=16, heldout=0)
    quarantine = Quarantine(len(source), allowed_share=0.1)
    alone = list(batches(source, quarantine=quarantine, augment="inception", **PLAN))
    together = list(batches(source, quarantine=Quarantine(60, 0.1), augment="inception", workers=2, **PLAN))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.damages == other.damages
    reasons = sorted((Path(d.name).parent.name, d.reason) for d in quarantine.found.values())
    assert [name for name, _ in reasons] == ["cat", "dog", "owl"]
    assert "zero bytes" in reasons[0][1]
    assert "truncated" in reasons[1][1] or "not an image" in reasons[1][1]
    assert "not an image" in reasons[2][1]
    quarantine.save(tmp_path / "quarantine.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(row["name"]).name for row in listed} == {"03.png", "05.png", "07.png"}
    Quarantine(60).save(tmp_path / "quarantine.jsonl")  # of a later attempt that has met none of them
    assert [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()] == listed


def test_a_replacement_is_never_a_heldout_sample(with_damage: Path) -> None:
    train = open_source(f"folder:{with_damage}?decode=each", split="train", image_size=16, heldout=12)
    heldout = open_source(f"folder:{with_damage}?decode=each", split="heldout", image_size=16, heldout=12)
    seen = {image.numpy().tobytes() for image in train.read(np.arange(len(train)))[0]}
    held = {image.numpy().tobytes() for image in heldout.read(np.arange(len(heldout)))[0]}
    assert not seen & held


def test_a_single_damaged_image_in_a_thousand_is_allowed_and_listed(tmp_path: Path) -> None:
    for k in range(1000):
        (tmp_path / f"{k:04d}.bmp").write_bytes(encoded(picture(k, 8, 8), "BMP"))
    (tmp_path / "0500.bmp").write_bytes(b"gone")
    for decode in ("once", "each"):
        source = open_source(f"folder:{tmp_path}?decode={decode}", split="train", image_size=8, heldout=0)
        assert source.read(np.arange(1000))[0].shape == (1000, 3, 8, 8)
        quarantine = Quarantine(1000)
        plan = {"seed": 0, "batch_size": 100, "start_step": 0, "stop_step": 10}
        list(batches(source, quarantine=quarantine, **plan))
        assert [(Path(d.name).name, d.reason) for d in quarantine.found.values()] == [
            ("0500.bmp", "not an image in any known format")
        ]


def test_a_sample_that_vanishes_is_named(image_folder: Path) -> None:
    source = open_source(f"folder:{image_folder}?decode=each", split="train", image_size=16, heldout=0)
    (image_folder / "train" / "owl" / "00.png").unlink()
    with pytest.raises(DataError, match=r"owl/00\.png: .*No such file"):
        list(batches(source, **PLAN))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_code_names_the_sample_in_one_line(
    image_folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"folder:{image_folder}?decode=each", split="train", image_size=16, heldout=0)
    monkeypatch.setattr("isoflop.data.sources.arrays.crop_box", lambda *rest: 1 / 0)
    with pytest.raises(DataError, match=r"\.png: ZeroDivisionError: division by zero") as raised:
        list(batches(source, workers=workers, **PLAN))
    assert "\n" not in str(raised.value)


def test_a_killed_worker_is_one_clear_line(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"folder:{image_folder}?decode=each", split="train", image_size=16, heldout=0)
    parent = os.getpid()

    def die(*rest: object) -> None:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("isoflop.data.sources.arrays.crop_box", die)
    with pytest.raises(DataError, match=r"a data worker died while making step \d+ .*try fewer workers"):
        list(batches(source, workers=1, **PLAN))


def test_a_name_of_any_characters_stays_on_one_line() -> None:
    assert Damage(0, "a/new\nline \udcff é 中.jpg", "gone").line == "a/new\\nline \\udcff é 中.jpg: gone"
