"""What is found is measured as pycocotools measures it, pixels as ADE20K counts them, and bad tasks are refused."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import jaccard_score
from torchvision.models.detection.roi_heads import paste_masks_in_image

from isoflop.cli import main
from isoflop.config import DenseTransferConfig, parse
from isoflop.data import open_source
from isoflop.data.dense import CocoRecords, DenseSource, Objects
from isoflop.data.dense.coco import run_lengths
from isoflop.data.dense.scenes import write_scenes
from isoflop.errors import ModelError
from isoflop.models import create_model
from isoflop.transfer.backbones import Pretrained
from isoflop.transfer.dense.average_precision import Detections, average_precision, in_own_pixels, pasted
from isoflop.transfer.dense.judge import judge_dense, mean_interval
from isoflop.transfer.dense.pictures import class_maps, confusion, intersection_over_union, slide
from tests.dense.small import BACKBONES, FPN, backbone, objective


def guesses(truth: Objects, size: tuple[int, int], rng: np.random.Generator) -> Detections:
    """The objects, shifted, some of them left out, some of another class, with others that are not there."""
    assert truth.masks is not None
    boxes, masks, classes = [], [], []
    for box, mask, kind in zip(truth.boxes, truth.masks, truth.classes, strict=True):
        if rng.random() < 0.2:
            continue
        down, across = rng.integers(-3, 4, 2)
        boxes.append((box + np.array([across, down, across, down])).clip(0, size[1]))
        masks.append(np.roll(mask, (down, across), (0, 1)))
        classes.append(kind if rng.random() < 0.8 else rng.integers(3))
    for _ in range(3):
        corner = rng.integers(0, size[0] // 2, 2)
        boxes.append(np.array([*corner, *(corner + rng.integers(3, size[0] // 2, 2))], float))
        masks.append(np.zeros(size, bool))
        masks[-1][int(boxes[-1][1]) : int(boxes[-1][3]), int(boxes[-1][0]) : int(boxes[-1][2])] = True
        classes.append(rng.integers(3))
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(n, 4),
        np.array(classes, np.int64),
        rng.random(n).astype(np.float32),
        np.array(masks, bool).reshape(n, *size),
    )


def test_average_precision_is_that_of_pycocotools(tmp_path: Path) -> None:
    """On 24 scenes with crowds among the objects, to 1e-6, boxes and masks, by size and by class."""
    folder = tmp_path / "scenes"
    write_scenes(folder, images=24, val_images=1, size=96, classes=3)
    found = json.loads((folder / "train.json").read_text())
    for annotation in found["annotations"][::7]:
        annotation["iscrowd"] = 1
    (folder / "train.json").write_text(json.dumps(found))
    records = CocoRecords(folder, "train", masks=True)
    rng = np.random.default_rng(0)
    pairs = [(guesses(records.truth(k), (96, 96), rng), records.truth(k)) for k in range(len(records))]
    ours = average_precision(pairs, records.class_names, masks=True)
    results = [
        {
            "image_id": records.entries[k]["id"],
            "category_id": int(kind) + 1,
            "score": float(score),
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "segmentation": run_lengths(mask),
        }
        for k, (told, _) in enumerate(pairs)
        for box, kind, score, mask in zip(told.boxes, told.classes, told.scores, told.masks, strict=True)  # type: ignore[arg-type]
    ]
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = COCO(folder / "train.json")
            told = [{k: v for k, v in one.items() if kind == "segm" or k != "segmentation"} for one in results]
            told = [{k: v for k, v in one.items() if kind == "bbox" or k != "bbox"} for one in told]
            reference = COCOeval(truth, truth.loadRes(told), kind)
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
        names = ("", "50", "75", "_small", "_medium", "_large")
        for suffix, expected in zip(names, reference.stats[:6], strict=True):
            value = ours[f"{name}_ap{suffix}"]
            assert (value is None) == (expected < 0)
            assert value is None or abs(value - expected) < 1e-6, (name, suffix)
        assert 0.01 < ours[f"{name}_ap"] < 0.95
        for c, label in enumerate(records.class_names):
            precision = reference.eval["precision"][:, :, c, 0, 2]
            assert abs(ours[f"{name}_ap_classes"][label] - precision[precision > -1].mean()) < 1e-6


def test_objects_come_back_to_the_pixels_of_their_picture() -> None:
    """A picture of 60 × 120 lies on a canvas of 64 at 64/120 of its size."""
    masks = torch.ones(1, 28, 28)
    boxes = torch.tensor([[16.0, 8.0, 32.0, 24.0]])
    found = {"boxes": boxes, "labels": torch.tensor([1]), "scores": torch.tensor([0.9]), "masks": masks}
    told = in_own_pixels(found, 60, 120, 64)
    np.testing.assert_allclose(told.boxes, [[30, 15, 60, 45]])
    assert told.masks is not None
    assert told.masks.shape == (1, 60, 120)
    assert abs(int(told.masks.sum()) - 900) < 150
    assert told.masks[0, 20:40, 35:55].all()


def test_masks_are_pasted_as_torchvision_pastes_them() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([70.0, 50.0])
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=generator) * 30], dim=1)
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, 80), boxes[:, 1::2].clamp(0, 60)
    masks = torch.rand(40, 28, 28, generator=generator)
    expected = paste_masks_in_image(masks[:, None], boxes, (60, 80))[:, 0] > 0.5
    assert expected.any(dim=(1, 2)).sum() > 30
    np.testing.assert_array_equal(pasted(masks, boxes, 60, 80), expected.numpy())
    assert pasted(masks[:0], boxes[:0], 60, 80).shape == (0, 60, 80)


def test_intersection_over_union_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, told = rng.integers(0, 4, (2, 20, 30)).astype(np.uint8)
    truth[:5] = 255
    found = intersection_over_union(confusion(told, truth, 5), ("a", "b", "c", "d", "e"))
    expected = jaccard_score(truth[5:].ravel(), told[5:].ravel(), average=None)
    np.testing.assert_allclose([found["iou_classes"][name] for name in "abcd"], expected)
    assert found["iou_classes"]["e"] is None
    assert abs(found["miou"] - expected.mean()) < 1e-12


def test_windows_cover_every_pixel_and_one_window_is_the_model_itself() -> None:
    model = objective(FPN).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(slide(model, image, 64), model.logits(image))
        wide = torch.cat([image, image], dim=3)
        assert slide(model, wide, 64).shape == (1, 4, 64, 128)
        torch.testing.assert_close(slide(model, wide, 64)[..., :42], model.logits(image)[..., :42])


def test_class_maps_have_the_size_of_their_pictures(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", images=2, val_images=2, size=96, classes=3)
    source = open_source(f"ade20k:{tmp_path / 's'}", split="test", image_size=64)
    assert isinstance(source, DenseSource)
    told = list(class_maps(objective(FPN), source, device=torch.device("cpu")))
    assert [one.shape for one in told] == [(96, 96)] * 2


def test_an_interval_over_seeds_is_students() -> None:
    from scipy.stats import t

    low, high = mean_interval([0.2, 0.3, 0.25]) or (0, 0)
    np.testing.assert_allclose((low, high), t.interval(0.95, 2, 0.25, 0.05 / 3**0.5))
    assert mean_interval([0.2]) is None


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["transfer", *words])
    return int(caught.value.code or 0)


@pytest.mark.parametrize(("protocol", "kind"), [("detect", "coco"), ("segment", "ade20k")])
def test_a_checkpoint_is_judged_with_one_command(
    protocol: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "data", images=8, val_images=2, size=64, classes=3)
    told = [
        "--random",
        "--image-size",
        "64",
        "--data",
        f"{kind}:{tmp_path / 'data'}",
        "-o",
        str(tmp_path / "out"),
        "seeds=[0,1]",
    ]
    short = ["run.steps=2", "run.batch_size=2", "run.objective.width=16", "run.schedule.warmup=0", "heldout=2"]
    assert command("timm:resnet10t", "--protocol", protocol, *told, *short) == 0
    shown = capsys.readouterr()
    assert ("box AP" if protocol == "detect" else "mIoU") in shown.out
    rows = json.loads((tmp_path / "out" / f"{protocol}.json").read_text())["rows"]
    assert rows[0]["seeds"] == 2
    assert command("timm:resnet10t", "--protocol", protocol, *told, *short) == 0
    assert "step" not in capsys.readouterr().err  # what is done is not done again


def short(source: str) -> DenseTransferConfig:
    run = {"steps": 1, "batch_size": 2, "schedule": {"warmup": 0}, "objective": {"width": 16}}
    return parse({"protocol": "segment", "dataset": source, "seeds": [0], "run": run}, DenseTransferConfig)


def test_pictures_are_normalised_as_the_backbone_is_used_to(tmp_path: Path) -> None:
    moments = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    theirs = Pretrained(backbone("timm:resnet10t"), "theirs", "timm:resnet10t", moments=moments)
    source = "scenes?classes=3&images=16&task=segment"
    judge_dense(theirs, short(source), folder=tmp_path)
    (data,) = tmp_path.glob("segment-*/data.json")
    facts = json.loads(data.read_text())
    assert (facts["mean"], facts["std"]) == ([0.5] * 3, [0.25] * 3)
    test = open_source(source, split="test", image_size=64)
    assert isinstance(test, DenseSource)
    assert (test.normalized_by(moments).some(4).mean, len(test.some(4).normalized_by(moments))) == (moments[0], 4)


def test_a_backbone_for_grey_images_is_refused_in_one_line(tmp_path: Path) -> None:
    grey = create_model("vit_s16", num_classes=3, image_size=64, in_channels=1, seed=0, **BACKBONES["vit_s16"])
    with pytest.raises(ModelError, match="grey takes images of 1 channels; pictures to detect and to segment in have"):
        judge_dense(Pretrained(grey, "grey", "vit_s16", BACKBONES["vit_s16"]), short("scenes"), folder=tmp_path)


def test_what_is_left_out_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "data", images=6, val_images=2, size=64, classes=3)
    found = json.loads((tmp_path / "data" / "train.json").read_text())
    found["annotations"][0]["bbox"] = [500, 500, 9, 9]
    (tmp_path / "data" / "train.json").write_text(json.dumps(found))
    told = [
        "timm:resnet10t",
        "-p",
        "detect",
        "-d",
        f"coco:{tmp_path / 'data'}",
        "-o",
        str(tmp_path / "out"),
        "--random",
    ]
    short = ["seeds=[0]", "run.steps=1", "run.batch_size=1", "run.objective.width=16", "run.schedule.warmup=0"]
    assert command(*told, "--image-size", "64", "heldout=1", *short) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    told = "boxes outside of their image left out: 1 (annotation 1 of train/000000.png)"
    assert lines == [f"warning: coco:{tmp_path}/data: {told}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "detect", "-p", "ridge", "-d", "scenes"], "--protocol detect cannot be combined"),
        (["-p", "detect", "-d", "digits"], "objective `detect` needs objects"),
        (["-p", "segment", "-d", "scenes"], "objective `segment` needs maps of classes"),
        (["-p", "detect"], "`dataset`"),
        (["-p", "detect", "-d", "coco:/nowhere"], "no such folder"),
    ],
)
def test_tasks_that_cannot_be_are_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["timm:resnet10t", "--random", "--image-size", "64", "-o", str(tmp_path)]
    assert command(*told, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
