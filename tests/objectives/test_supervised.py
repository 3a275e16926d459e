"""Supervised losses are timm's and torch's, and the metrics scikit-learn's."""

from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, label_ranking_average_precision_score
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone, create_model
from isoflop.objectives import Supervised
from isoflop.objectives.supervised import average_precision, classifier_bias

CLASSES = 7
CHANCE = torch.Generator().manual_seed(0)
LOGITS = torch.randn(32, CLASSES, generator=CHANCE) * 3
LABELS = torch.randint(0, CLASSES, (32,), generator=CHANCE)
SHARES = torch.rand(32, CLASSES, generator=CHANCE).softmax(dim=1)
SEVERAL = (torch.rand(32, CLASSES, generator=CHANCE) < 0.3).float()


def backbone(name: str = "vit_w12d2p8", **options: Any) -> Backbone:
    return create_model(name, num_classes=CLASSES, image_size=16, in_channels=1, seed=0, **options)


def no_noise(stream: str, count: int) -> Tensor:
    raise AssertionError("supervised learning draws nothing")


class Echo(nn.Module):
    """A backbone whose logits are its images."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.num_classes, self.preset = nn.Linear(1, CLASSES), CLASSES, "echo"

    def forward(self, images: Tensor) -> Tensor:
        return images


def loss_of(labels: Tensor, **options: Any) -> Tensor:
    return Supervised(Echo(), **options)(LOGITS, labels, no_noise)  # type: ignore[arg-type]


def sums_of(labels: Tensor, **options: Any) -> dict[str, float]:
    sums = Supervised(Echo(), **options).evaluate(LOGITS, labels, no_noise)  # type: ignore[arg-type]
    return {name: float(total) for name, total in sums.items()}


@pytest.mark.parametrize(
    ("labels", "options", "reference"),
    [
        (LABELS, {}, nn.CrossEntropyLoss()),
        (LABELS, {"label_smoothing": 0.1}, LabelSmoothingCrossEntropy(0.1)),
        (SHARES, {}, SoftTargetCrossEntropy()),
        (LABELS, {"loss": "sigmoid"}, BinaryCrossEntropy(0.0, sum_classes=True)),
        (LABELS, {"loss": "sigmoid", "label_smoothing": 0.1}, BinaryCrossEntropy(0.1, sum_classes=True)),
        (SHARES, {"loss": "sigmoid"}, BinaryCrossEntropy(0.0, sum_classes=True)),
        (SEVERAL, {"has_several_labels": True}, nn.BCEWithLogitsLoss(reduction="sum")),
    ],
)
def test_losses_are_those_of_timm_and_torch(labels: Tensor, options: dict[str, Any], reference: nn.Module) -> None:
    expected = reference(LOGITS, labels) / (len(LOGITS) if isinstance(reference, nn.BCEWithLogitsLoss) else 1)
    torch.testing.assert_close(loss_of(labels, **options), expected)


def test_smoothing_moves_each_of_several_labels_towards_a_half() -> None:
    smoothed = SEVERAL * 0.9 + 0.05
    expected = nn.functional.binary_cross_entropy_with_logits(LOGITS, smoothed, reduction="sum") / 32
    torch.testing.assert_close(loss_of(SEVERAL, has_several_labels=True, label_smoothing=0.1), expected)


def test_mixed_labels_are_smoothed_as_plain_ones_are() -> None:
    """Smoothing and mixing are linear: an image mixed with one of its own class has a plain target."""
    plain = nn.functional.one_hot(LABELS, CLASSES).float()
    for loss in ("softmax", "sigmoid"):
        options = {"loss": loss, "label_smoothing": 0.1}
        torch.testing.assert_close(loss_of(plain, **options), loss_of(LABELS, **options))


def test_evaluation_has_no_smoothing_and_counts_the_right_answers() -> None:
    sums = sums_of(LABELS, label_smoothing=0.1)
    assert sums["loss"] == pytest.approx(float(nn.functional.cross_entropy(LOGITS, LABELS, reduction="sum")))
    assert sums["accuracy"] == int((LOGITS.argmax(1) == LABELS).sum())
    assert sums_of(LABELS, loss="sigmoid")["accuracy"] == sums["accuracy"]


def test_metrics_of_several_labels_are_those_of_scikit_learn() -> None:
    for logits in (LOGITS, LOGITS.round(), torch.zeros_like(LOGITS)):  # with ties, too
        sums = Supervised(Echo(), has_several_labels=True).evaluate(logits, SEVERAL, no_noise)  # type: ignore[arg-type]
        expected = label_ranking_average_precision_score(SEVERAL.numpy(), logits.numpy())
        assert float(sums["average_precision"]) / 32 == pytest.approx(expected)
        assert float(sums["accuracy"]) / 32 == accuracy_score(SEVERAL.numpy(), logits.numpy() > 0)


def test_an_image_without_classes_is_ranked_right() -> None:
    assert average_precision(LOGITS[:2], torch.zeros(2, CLASSES)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["vit_w12d2p8", "nfnet_w8d1", "poolformer_w8d2p8", "timm:resnet10t"])
def test_a_sigmoid_starts_with_a_bias_of_minus_ten(name: str) -> None:
    model = backbone(name)
    before = classifier_bias(model).clone()
    Supervised(model)
    assert torch.equal(classifier_bias(model), before)
    Supervised(model, loss="sigmoid")
    assert classifier_bias(model).tolist() == [-10.0] * CLASSES
    logits = model.eval()(torch.zeros(2, 1, 16, 16))
    assert (logits < -8).all()  # every class is improbable at first


def test_several_labels_start_where_the_model_does_unless_told() -> None:
    model = backbone()
    Supervised(model, has_several_labels=True)
    assert classifier_bias(model).tolist() == [0.0] * CLASSES
    Supervised(model, has_several_labels=True, head_bias=-2.0)
    assert classifier_bias(model).tolist() == [-2.0] * CLASSES


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match="softmax is for one class an image"):
        Supervised(backbone(), loss="softmax", has_several_labels=True)
    model = backbone()
    model.head = nn.Linear(12, CLASSES, bias=False)
    with pytest.raises(ModelError, match="has no bias"):
        Supervised(model, loss="sigmoid")
