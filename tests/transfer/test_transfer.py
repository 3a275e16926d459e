"""Transfer of a trained run: every protocol, kept and resumed; and what cannot judge anything."""

import errno
import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.config import TransferConfig
from isoflop.data import Subset, open_source
from isoflop.errors import CheckpointError, ConfigError, DataError, DataNotice
from isoflop.models import create_model
from isoflop.train import train
from isoflop.transfer import Pretrained, load_backbone, open_backbone, transfer
from isoflop.transfer import protocols as module
from isoflop.transfer.finetune import PUBLISHED
from tests.processes import at_once, failures
from tests.promises.chaos import run_config


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ISOFLOP_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    train(run_config(steps=60), folder)
    return folder


def config(**values: Any) -> TransferConfig:
    return TransferConfig.model_validate(
        {"shots": 5, "seeds": (0, 1), "finetune_steps": 40, "finetune_learning_rate": 1e-2, **values}
    )


def test_a_trained_run_transfers_to_real_digits(run: Path) -> None:
    backbone = open_backbone(run)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    rows = transfer(backbone, config(), "trained")
    assert [(row["protocol"], row["shots"], row["seeds"]) for row in rows] == [("ridge", 5, 2), ("finetune", 5, 2)]
    for row in rows:
        low, high = row["interval"]
        assert 0.0 <= low < row["accuracy_mean"] < high <= 1.0
        assert row["accuracy_mean"] > 0.15  # ten classes: chance is 0.1, and its deviation 0.016
        assert row["top5"] > row["accuracy_mean"]
        assert sum(map(sum, row["confusion"])) == row["test_images"] == 359
        assert len(row["per_class"]) == 10
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())
    again = transfer(backbone, config(), "trained")
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in rows]


def test_every_protocol_on_features_learns_with_all_images(run: Path) -> None:
    protocols = ("ridge", "knn", "logistic", "probe")
    rows = transfer(open_backbone(run), config(shots=(5, 0), seeds=(0,), protocols=protocols, probe_epochs=5))
    found = {(row["protocol"], row["shots"]): row["accuracy_mean"] for row in rows}
    assert len(found) == 8
    for protocol in protocols:
        assert found[protocol, 5] > 0.13
        assert found[protocol, 0] > 0.25


@pytest.mark.parametrize(
    "protocol", ["finetune_vit", "finetune_bit", "finetune_mae", "finetune_nfnet", "finetune_vtab"]
)
def test_every_published_fine_tuning_runs_through_the_one_loop(run: Path, tmp_path: Path, protocol: str) -> None:
    small = {"steps": 4, "batch_size": 16, "schedule": {"warmup": 1}}
    values = config(protocols=(protocol,), seeds=(0,), run=small, last_blocks=1)
    (row,) = transfer(open_backbone(run), values, folder=tmp_path)
    assert row["steps"] == 4
    assert row["state"] == "done"
    configs = [json.loads(path.read_text()) for path in tmp_path.rglob("config.json")]
    assert len(configs) == (2 if protocol == "finetune_vit" else 1)  # two learning rates to choose from
    assert all(found["start"]["weights"].endswith(".safetensors") for found in configs)
    assert "stages.0.0.norm1.weight" in configs[0]["optim"]["groups"]["frozen"]["parameters"]


def test_of_several_learning_rates_the_one_that_is_best_on_held_out_images_is_taken(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = PUBLISHED["vit"]
    monkeypatch.setitem(PUBLISHED, "vit", lambda *of: replace(published(*of), held_out=0.3))
    small = {"steps": 80, "batch_size": 64, "schedule": {"warmup": 1}}
    values = config(protocols=("finetune_vit",), shots=(50,), seeds=(0,), run=small, learning_rates=(1e-9, 0.1, 1e-8))
    (row,) = transfer(open_backbone(run), values, folder=tmp_path)
    assert row["learning_rate"] == 0.1
    assert row["accuracy_mean"] > 0.15


def test_nfnets_are_fine_tuned_as_their_paper_says() -> None:
    """arXiv 2102.06171, A.5, of 15,000 steps of 2,048 images; the 50 epochs are those of arXiv 2310.16764."""
    recipe = PUBLISHED["nfnet"](1_281_167, create_model("nfnet_w4d1", num_classes=2, image_size=32))
    optim, schedule = recipe.run["optim"], recipe.run["schedule"]
    assert recipe.run["batch_size"] == 2048
    assert recipe.run["steps"] == round(50 * 1_281_167 / 2048)
    assert schedule == {"name": "cosine", "warmup": recipe.run["steps"] * 5_000 // 15_000}
    published = {"learning_rate": 0.1, "sam": 0.05, "weight_decay": 1e-5, "agc": 0.01, "average": 0.9999}
    assert {key: optim[key] for key in published} == published
    assert recipe.model == {"drop_path": 0.1, "dropout": 0.25}


def test_only_the_last_blocks_are_trained_if_so_wished(run: Path, tmp_path: Path) -> None:
    backbone = open_backbone(run)
    transfer(backbone, config(protocols=("finetune",), seeds=(0,), last_blocks=1), folder=tmp_path)
    (place,) = (path.parent for path in tmp_path.rglob("config.json"))
    tuned, _ = load_backbone(place)
    for name, tensor in tuned.state_dict().items():
        same = name.startswith(("stem", "positions", "stages.0.0."))
        assert torch.equal(tensor, backbone.model.state_dict().get(name, torch.empty(0))) == same, name
    with pytest.raises(ConfigError, match="last_blocks = 3, but vit_w12d2p8 has 2 blocks"):
        transfer(backbone, config(protocols=("finetune",), last_blocks=3))


def test_what_was_done_is_not_done_again_and_what_was_cut_off_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transfer(open_backbone(run), config(), folder=tmp_path / "whole")
    real, calls = module.finetune, []

    def cut(*values: Any, **named: Any) -> Any:
        calls.append(named["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*values, **named)

    monkeypatch.setattr(module, "finetune", cut)
    with pytest.raises(KeyboardInterrupt):
        transfer(open_backbone(run), config(), folder=tmp_path / "cut")
    told: list[str] = []
    again = transfer(open_backbone(run), config(), folder=tmp_path / "cut", tell=told.append)
    assert calls == [0, 1, 1]
    assert [line.partition(":")[0] for line in told] == ["4 of 4"]
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in whole]


def test_features_are_computed_once_and_go_on_where_they_were(
    run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isoflop.transfer import features
    from isoflop.transfer.task import open_task

    monkeypatch.setattr(features, "_SECONDS_BETWEEN_SYNCS", 0.0)
    backbone = open_backbone(run)
    source = open_task("digits", backbone).train

    class CutOff(Exception): ...

    def cut(done: int, total: int) -> None:
        if done >= 768:
            raise CutOff

    with pytest.raises(CutOff):
        features.features_of(backbone, source, on_progress=cut)
    seen: list[int] = []
    resumed = features.features_of(backbone, source, on_progress=lambda done, _: seen.append(done))
    assert seen == [1024, 1280, 1438]  # the first three blocks were on the disk
    whole = features.extract(backbone.model, features.normalize(*_all(source)))
    torch.testing.assert_close(resumed, whole, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(features, "extract", None)  # not called again
    assert torch.equal(features.features_of(backbone, source), resumed)
    assert [path.name for path in (cache / "features").iterdir()] == [features.cache_path(backbone, source).name]
    other = open_backbone(run, random_weights=True)
    assert features.cache_path(other, source) != features.cache_path(backbone, source)
    with monkeypatch.context() as patch:
        patch.setattr(features, "DECODING", 10**6)
        assert features.cache_path(other, source) != features.cache_path(backbone, source)
        assert not features.cache_path(backbone, source).exists()
    others = [open_task(f"fractals?classes=4&images=1438&zipf={zipf}", backbone).train for zipf in (1.0, 1.5)]
    assert features.cache_path(backbone, others[0]) != features.cache_path(backbone, others[1])


def _all(source: Any) -> tuple[torch.Tensor, Any, torch.device]:
    return source.read(np.arange(len(source)))[0], source, torch.device("cpu")


def test_damaged_files_of_what_was_done_are_made_again(run: Path, cache: Path, tmp_path: Path) -> None:
    values = config(protocols=("ridge",), seeds=(0,))
    whole = transfer(open_backbone(run), values, folder=tmp_path)
    (unit,) = tmp_path.rglob("units/*.json")
    for damaged in (b"", b'{"right": ', b"[]", b"\xff\xfe"):
        unit.write_bytes(damaged)
        for file in (cache / "features").glob("*/features.npy"):
            file.write_bytes(file.read_bytes()[:100] if damaged else bytes(file.stat().st_size))
        again = transfer(open_backbone(run), values, folder=tmp_path)
        assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in whole]


def test_transfers_at_once_get_the_features_of_one_alone(
    run: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight processes start together; also where one has been interrupted, and where there are no locks."""
    from isoflop.transfer import features
    from isoflop.transfer.task import open_task

    monkeypatch.setattr(features, "_SECONDS_BETWEEN_SYNCS", 0.0)
    backbone = open_backbone(run)
    source = open_task("digits", backbone).train
    alone = features.features_of(backbone, source).numpy().copy()
    entry = features.cache_path(backbone, source)

    def stop(done: int, total: int) -> None:
        if done >= 512:
            raise KeyboardInterrupt

    def no_locks(*rest: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for begin, locks in ((None, fcntl.flock), (stop, fcntl.flock), (None, no_locks)):
        shutil.rmtree(entry)
        if begin:
            at_once(lambda: features.features_of(backbone, source, on_progress=stop))
        monkeypatch.setattr(fcntl, "flock", locks)
        found = at_once(*[lambda: features.features_of(backbone, source).numpy()] * 8)
        assert not failures(found)
        assert all(np.allclose(one, alone, rtol=1e-5, atol=1e-5) for one in found)
        assert all(np.array_equal(one, features.features_of(backbone, source).numpy()) for one in found)
    assert not list((cache / "features").glob(".*.partial"))


def test_features_are_kept_in_memory_where_nothing_can_be_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", "/proc/nowhere")
    with pytest.warns(UserWarning, match="the cache /proc/nowhere cannot be written"):
        (row,) = transfer(open_backbone(run), config(protocols=("ridge",)))
    assert row["accuracy_mean"] > 0.15


def folder_of_images(root: Path, train_counts: dict[str, int], test_counts: dict[str, int]) -> str:
    for part, counts in (("train", train_counts), ("test", test_counts)):
        for name, count in counts.items():
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                Image.new("L", (32, 32), color=40 * k).save(root / part / name / f"{k}.png")
    return f"folder:{root}"


def test_a_task_that_cannot_judge_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    dataset = folder_of_images(tmp_path / "data", {"a": 5}, {"a": 1})
    with pytest.raises(DataError, match="only one class") as caught:
        transfer(open_backbone(run), config(shots=3, dataset=dataset, protocols=("ridge",)))
    assert "\n" not in str(caught.value)


def test_a_class_with_too_few_images_is_told_once_and_gives_what_it_has(run: Path, tmp_path: Path) -> None:
    dataset = folder_of_images(tmp_path / "data", {"a": 5, "b": 2}, {"a": 1, "b": 1})
    with pytest.warns(
        DataNotice, match="1 of 2 classes have fewer training images than 3 shots, `b` among them .2."
    ) as w:
        rows = transfer(open_backbone(run), config(shots=3, dataset=dataset, protocols=("ridge",)))
    assert len([one for one in w if "fewer training images" in str(one.message)]) == 1
    assert rows[0]["shots"] == 3


def test_ridge_sees_pictures_squeezed_to_squares_and_the_others_their_centre(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        wide = np.zeros((64, 128, 3), dtype=np.uint8)
        wide[:, :32] = 255  # beyond the central square
        Image.fromarray(wide).save(tmp_path / part / "a" / "0.png")
    source = open_source(f"folder:{tmp_path}?decode=each", split="test", image_size=32)
    centre, _ = source.read(np.array([0]))
    squeezed, _ = Subset(source).stretched().read(np.array([0]))
    assert centre.max() < 64
    assert bool((squeezed[0, :, :, :7] == 255).all())
    assert not bool(squeezed[0, :, :, 9:].any())
    assert source.stretched().fingerprint != source.fingerprint
    arrays = open_source(f"folder:{tmp_path}?decode=once", split="test", image_size=32)
    assert arrays.stretched() is arrays


def test_a_class_without_a_test_image_is_said_and_the_others_are_judged(run: Path, tmp_path: Path) -> None:
    dataset = folder_of_images(tmp_path / "data", {"a": 5, "b": 5, "c": 5}, {"c": 3})
    with pytest.warns(DataNotice, match="no test image of 2 of 3 classes, `a` among them"):
        rows = transfer(open_backbone(run), config(shots=3, dataset=dataset, protocols=("ridge",)))
    assert [accuracy is None for accuracy in rows[0]["per_class"]] == [True, True, False]


def test_images_without_labels_are_refused(run: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        Image.new("L", (32, 32)).save(tmp_path / "data" / part / "0.png")
    with pytest.raises(DataError, match="no labels"):
        transfer(open_backbone(run), config(dataset=f"folder:{tmp_path / 'data'}"))


def test_endless_data_are_refused_and_a_number_of_fractals_is_a_task(run: Path) -> None:
    with pytest.raises(DataError, match="generated without limit"):
        transfer(open_backbone(run), config(dataset="fractals?classes=4"))
    values = config(dataset="fractals?classes=4&images=200", protocols=("ridge",))
    assert transfer(open_backbone(run), values)[0]["accuracy_mean"] > 0.3


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a finished run"):
        load_backbone(tmp_path)


def test_weights_of_another_run_are_refused(tmp_path: Path) -> None:
    train(run_config(steps=20), tmp_path / "a")
    train(run_config(steps=20, model={"name": "vit_w16d2p8"}), tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="its SHA-256 is not that in status"):
        load_backbone(tmp_path / "a")


@pytest.mark.parametrize("protocol", ["ridge", "knn", "head"])
def test_weights_that_are_not_finite_are_not_judged_as_if_they_were(run: Path, protocol: str) -> None:
    backbone = open_backbone(run)
    with torch.no_grad():
        next(backbone.model.parameters()).fill_(float("nan"))
    dataset = "fractals?classes=20&images=200" if protocol == "head" else "digits"
    with pytest.raises(CheckpointError, match=r"are not finite numbers, so it cannot (be judged|classify)"):
        transfer(backbone, config(protocols=(protocol,), dataset=dataset))


def test_images_with_other_channels_than_the_backbone_are_refused() -> None:
    model = create_model("vit_w12d2p8", num_classes=10, image_size=32, in_channels=4, seed=0)
    with pytest.raises(DataError, match="4"):
        transfer(Pretrained(model, "x", "vit_w12d2p8"), config())
