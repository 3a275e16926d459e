"""Every kind of data trains from a configuration alone; a run that is stopped ends with the bits of one that is not."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isoflop.config import RunConfig, parse
from isoflop.data import batches, convert, open_split
from isoflop.errors import DataError
from isoflop.objectives import Objective, Uniforms
from isoflop.train import read_journal, train, verify_ledger
from isoflop.train.ranks import Ranks
from isoflop.train.step import Step
from tests.data.pictures import encoded, picture
from tests.promises.chaos import EVERY_STEP, train_under_fire, train_whole

MIXED = {"mixup": 0.8, "cutmix": 1.0}
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 JPEGs in three classes as a folder, as shards and as tables; their caches, too."""
    place = tmp_path_factory.mktemp("kinds")
    rows = []
    for k in range(60):
        path = place / "folder" / "train" / CLASSES[k % 3] / f"{k:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(k, 48, 64)))
        rows.append((path.relative_to(place), CLASSES[k % 3], "|".join(CLASSES[: k % 3]) or "|"))
    for name, column in (("one", 1), ("several", 2)):
        with (place / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *((row[0], row[column]) for row in rows)])
    convert(str(place / "folder"), place / "shards", parts=("train",), samples_per_shard=13, shuffle=True)
    return place


@pytest.fixture(autouse=True)
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", str(place / "cache"))


def run_config(place: Path, source: str, **data: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": {"name": "vit_w12d2p8", "drop_path": 0.1},
        "steps": 14,
        "batch_size": 11,
        "precision": "float32",
        "threads": 1,
        "log_every": 3,
        "tensorboard": False,
        "data": {"source": source.replace("PLACE", str(place)), "image_size": 16, "heldout": 9, **data},
        "optim": {"label_smoothing": 0.1},
        "checkpoint": EVERY_STEP,
    }
    return parse(values, RunConfig)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a table": ("table:PLACE/one.csv?decode=each", {"augment": "randaugment"}),
    "a table of several labels": ("table:PLACE/several.csv?decode=each", {"augment": "inception", **MIXED}),
    "shards": ("shards:PLACE/shards?window=2", {"augment": "crop_flip_erase"}),
    "a folder": ("folder:PLACE/folder?decode=each", {"augment": "inception", **MIXED}),
    "repeated augmentation": ("folder:PLACE/folder?repeat=3&decode=each", {"augment": "deit", **MIXED}),
    "a balanced mixture": (
        "mixture:2*folder:PLACE/folder?balance=1 + 1*shards:PLACE/shards?balance=1&decode=each",
        {"augment": "mae", "cutmix": 1.0},
    ),
}


class Stop(Exception):
    """Somebody stopped the run."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_ends_with_the_same_bits(place: Path, tmp_path: Path, kind: str) -> None:
    uri, data = KINDS[kind]
    config = run_config(place, uri, **data)
    train(config, tmp_path / "calm")

    def stop(row: dict[str, Any]) -> None:
        if row["step"] in (3, 9):
            raise Stop

    for workers in (0, 1 if "mixture" in kind else 0):  # the number of workers changes nothing
        changed = run_config(place, uri, **data, workers=workers)
        with pytest.raises(Stop):
            train(changed, tmp_path / "stopped", on_row=stop)
    train(config, tmp_path / "stopped")
    one, other = (tmp_path / name / "model.safetensors" for name in ("calm", "stopped"))
    assert one.read_bytes() == other.read_bytes()
    source = open_split(config.data, "train")
    positions = np.arange(14 * 11).reshape(14, 11)
    order = (source.order.locate(row, config.data.seed) for row in positions)
    if not source.order.sorts_batches:
        assert verify_ledger(read_journal(tmp_path / "stopped"), order) == config.steps


@pytest.mark.long
def test_kills_change_no_bit_of_a_run_on_augmented_and_mixed_jpegs(place: Path, tmp_path: Path) -> None:
    uri, data = KINDS["a folder"]
    config = run_config(place, uri, **data).model_copy(update={"steps": 60})
    train_whole(config, tmp_path / "calm")
    hits = train_under_fire(config, tmp_path / "fire", kills=6, chance=random.Random(1))
    assert hits
    one, other = (tmp_path / name / "model.safetensors" for name in ("calm", "fire"))
    assert one.read_bytes() == other.read_bytes()


class Recorder(Objective):
    """Keeps what it is asked to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        self.seen = images, labels
        return (self.weight * images).mean()

    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        raise NotImplementedError


def test_a_step_mixes_pairs_of_the_global_batch_with_their_labels(place: Path) -> None:
    config = run_config(place, KINDS["a folder"][0], **MIXED)
    source = open_split(config.data, "train")
    recorder = Recorder()
    step = Step(recorder, source, config, Ranks(torch.device("cpu")))
    plan = {"seed": 0, "batch_size": 12, "start_step": 5, "stop_step": 6}
    (whole,) = batches(source, **plan)
    step(whole, 0.0)
    images, targets = recorder.seen
    scale = 1 / (255 * torch.tensor(source.std).view(3, 1, 1))
    plain = whole.images * scale - (torch.tensor(source.mean) / torch.tensor(source.std)).view(3, 1, 1)
    assert not torch.allclose(images, plain)
    # A pair keeps its pixels and its labels: what one image gives, the other takes.
    torch.testing.assert_close(images[::2] + images[1::2], plain[::2] + plain[1::2])
    labels = nn.functional.one_hot(whole.labels, 3).float()
    torch.testing.assert_close(targets[::2] + targets[1::2], labels[::2] + labels[1::2])
    for rank in range(3):
        (part,) = batches(source, rank=rank, world=3, **plan)
        step(part, 0.0)
        assert torch.equal(recorder.seen[0], images[4 * rank : 4 * rank + 4])
        assert torch.equal(recorder.seen[1], targets[4 * rank : 4 * rank + 4])


def test_too_much_damage_stops_a_run_with_one_line(place: Path, tmp_path: Path) -> None:
    for k in range(20):
        folder = tmp_path / "damaged" / "train" / ("cat", "dog")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:02d}.jpg").write_bytes(encoded(picture(k))[: 200 if k == 5 else None])
    for decode in ("once", "each"):
        config = run_config(place, f"folder:{tmp_path / 'damaged'}?decode={decode}")
        with pytest.raises(DataError, match=r"of \d+ images are damaged.*05\.jpg: ") as caught:
            train(config, tmp_path / decode)
        assert "\n" not in str(caught.value)


def test_images_without_labels_are_refused_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for k in range(5):
        (tmp_path / "images" / f"{k}.png").write_bytes(encoded(picture(k), "PNG"))
    for changes, message in (({}, "supervised training needs labels"), ({"mixup": 0.8}, "Mixup and CutMix mix labels")):
        with pytest.raises(DataError, match=f"{message}, and these images have none"):
            train(run_config(place, f"folder:{tmp_path / 'images'}", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
