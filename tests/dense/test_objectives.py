"""Detectors and segmenters learn, and what they find lies where it is."""

import numpy as np
import pytest
import torch
from torch import Tensor

from isoflop.config import DetectConfig, RunConfig, SegmentConfig, parse
from isoflop.data import open_source, open_split
from isoflop.data.dense import Objects, pack_objects, unpack_objects
from isoflop.errors import DataError
from isoflop.models import cost
from isoflop.objectives import make_objective, objective_cost
from isoflop.objectives.dense.segmenter import pixel_loss
from isoflop.train import build_objective
from tests.dense.small import BACKBONES, DETECT, FPN, MASKS, SIZE, UPERNET, backbone, batch, objective, uniforms

CONFIGS = {"retinanet": DETECT, "mask_rcnn": MASKS, "semantic_fpn": FPN, "upernet": UPERNET}


@pytest.mark.parametrize("head", CONFIGS)
def test_every_trained_weight_has_a_gradient_that_is_finite(head: str) -> None:
    config = CONFIGS[head]
    model = objective(config)
    loss = model(*batch(config.name), uniforms)
    loss.backward()
    names = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert names <= {"backbone.norm.weight", "backbone.norm.bias", "maps.norms.0.weight", "maps.norms.0.bias"}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def nothing(with_masks: bool) -> Objects:
    return Objects(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, bool),
        np.zeros(0, np.float32),
        np.zeros((0, SIZE, SIZE), bool) if with_masks else None,
    )


@pytest.mark.parametrize("head", CONFIGS)
@pytest.mark.parametrize("how", ["all", "one", "crowds"])
def test_a_batch_without_objects_is_learnt_from(head: str, how: str) -> None:
    config = CONFIGS[head]
    model = objective(config)
    images, labels = batch(config.name)
    if config.name == "segment":
        labels = torch.full_like(labels, 255) if how == "all" else torch.cat([labels[:1], labels[1:].fill_(255)])
    else:
        truth = open_source("scenes?classes=3&images=8", split="train", image_size=SIZE).records.truth(0)  # type: ignore[attr-defined]
        crowds = Objects(truth.boxes, truth.classes, ~truth.crowds, truth.areas, truth.masks)
        none = nothing(with_masks=True)
        labels = pack_objects({"all": [none, none], "one": [truth, none], "crowds": [crowds, crowds]}[how], SIZE)
    loss = model(images, labels, uniforms)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in model.backbone.parameters())
    assert bool(model.evaluate(images, labels, uniforms)["loss"].isfinite())


@pytest.mark.parametrize("name", [n for n in BACKBONES if n != "poolformer_s12"])
def test_any_backbone_goes_under_any_head(name: str) -> None:
    for config in (DETECT, FPN):
        loss = objective(config, name)(*batch(config.name), uniforms)
        assert bool(loss.isfinite())


def learn(config: DetectConfig | SegmentConfig, steps: int) -> tuple[object, Tensor, Tensor, list[float]]:
    torch.manual_seed(0)
    model = objective(config, widths=(16, 16, 32, 32), seed=1)
    images, labels = batch(config.name)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(steps):
        loss = model(images, labels, uniforms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), images, labels, losses


def test_two_scenes_are_learnt_by_heart_by_retinanet() -> None:
    model, images, labels, losses = learn(DETECT, 40)
    assert losses[-1] < 0.4 * losses[0]
    for found, truth in zip(model.find(images), unpack_objects(labels, SIZE), strict=True):  # type: ignore[attr-defined]
        overlap = _overlap(truth["boxes"], found["boxes"])
        assert overlap.max(dim=1).values.mean() > 0.3


def test_the_pixels_of_two_scenes_are_learnt_by_heart() -> None:
    model, images, labels, losses = learn(FPN, 60)
    assert losses[-1] < 0.25 * losses[0]
    told = model.evaluate(images, labels, uniforms)  # type: ignore[attr-defined]
    assert told["accuracy"] / 2 > 0.9


def test_masks_that_are_found_have_the_form_of_their_boxes() -> None:
    model = objective(MASKS).eval()
    found = model.find(batch("detect")[0])
    assert all(one["masks"].shape[1:] == (28, 28) and len(one["masks"]) == len(one["boxes"]) for one in found)
    assert all(int(one["labels"].min()) >= 0 for one in found if len(one["labels"]))


@pytest.mark.parametrize("head", CONFIGS)
def test_evaluation_is_the_same_each_time_and_changes_nothing(head: str) -> None:
    config = CONFIGS[head]
    model = objective(config).eval()
    state = torch.get_rng_state()
    one, other = (model.evaluate(*batch(config.name), uniforms)["loss"] for _ in range(2))
    assert one == other
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_without_objects_teaches_what_is_nothing() -> None:
    images, labels = batch("detect")
    for config in (DETECT, MASKS):
        empty = torch.zeros(2, 0, labels.shape[-1], dtype=torch.uint8)
        loss = objective(config)(images, empty, uniforms)
        loss.backward()
        assert bool(loss.isfinite())


def test_ignored_pixels_teach_nothing_and_weigh_the_others_no_more() -> None:
    logits = torch.randn(2, 4, 8, 8)
    labels = torch.randint(0, 4, (2, 8, 8))
    labels[0] = 255
    expected = torch.nn.functional.cross_entropy(logits[1:], labels[1:]) / 2
    torch.testing.assert_close(pixel_loss(logits, labels.to(torch.uint8)), expected)
    assert pixel_loss(logits, torch.full((2, 8, 8), 255)) == 0


@pytest.mark.parametrize("head", CONFIGS)
def test_the_cost_of_a_head_is_counted_beside_its_backbone(head: str) -> None:
    shape = {"num_classes": 4, "image_size": SIZE, **BACKBONES["poolformer_s12"]}
    counted = objective_cost(CONFIGS[head], "poolformer_s12", **shape)  # type: ignore[arg-type]
    assert counted.macs > cost("poolformer_s12", **shape).macs  # type: ignore[arg-type]


def test_published_sizes_are_met() -> None:
    """PoolFormer-S12 under RetinaNet and Mask R-CNN has 21.7 M and 31.6 M parameters (arXiv 2111.11418, table 3), under
    Semantic FPN 15.7 M (table 4)."""
    for config, published in (
        (DetectConfig(name="detect"), 21.7),
        (DetectConfig(name="detect", head="mask_rcnn"), 31.6),
        (SegmentConfig(name="segment"), 15.7),
    ):
        classes = 80 if config.name == "detect" else 150
        counted = objective_cost(config, "poolformer_s12", num_classes=classes, image_size=512).parameters / 1e6
        assert abs(counted - published) < 0.05, (config.head, counted)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (
            "digits",
            {"objective": "detect"},
            "objective `detect` needs objects .* have classes alone",
        ),
        ("scenes", {"objective": "segment"}, "objective `segment` needs maps of classes"),
        ("scenes", {}, "these pictures have objects, not a class each: set `objective` to detect"),
        ("scenes", {"objective": "detect", "data": {"mixup": 0.5}}, "Mixup and CutMix mix classes, not objects"),
    ],
)
def test_objectives_and_data_that_do_not_fit_are_refused(source: str, settings: dict, message: str) -> None:  # type: ignore[type-arg]
    data = {"source": source, "image_size": 64, "heldout": 4, **settings.get("data", {})}
    run = {**settings, "data": data, "model": {"name": "poolformer_s12"}, "steps": 1}
    config = parse(run, RunConfig)
    with pytest.raises(DataError, match=message):
        build_objective(config, open_split(config.data, "train"))


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    from torchvision.ops import box_iou

    return box_iou(one, other) if len(other) else torch.zeros(len(one), 1)


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_narrow_heads_begin_as_those_of_256_channels(head: str) -> None:
    """By torchvision's deviation of 0.01, four layers of 32 channels pass on a fiftieth of what those of 256 do."""
    answers = []
    for width in (256, 16):
        config = DetectConfig(name="detect", head=head, width=width)
        model = make_objective(config, backbone("poolformer_s12"), seed=0).detector
        x = torch.randn(1, width, 16, 16, generator=torch.Generator().manual_seed(0))
        layers = model.head.classification_head.conv if head == "retinanet" else model.rpn.head.conv
        with torch.no_grad():
            answers.append(float(layers(x).std()))
    assert answers[1] == pytest.approx(answers[0], rel=0.3)


def test_seeds_decide_the_weights_of_heads() -> None:
    weights = [make_objective(DETECT, backbone("vit_s16"), seed=s).state_dict() for s in (0, 0, 1)]
    names = [name for name in weights[0] if name.startswith("detector.head") and "conv" in name and "weight" in name]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in names)
    assert not np.all([torch.equal(weights[0][name], weights[2][name]) for name in names])
