"""Metrics agree with scikit-learn and with their formulas; intervals hold the truth as often as they say."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from isoflop.transfer.metrics import (
    accuracy_interval,
    accuracy_per_class,
    calibration_error,
    confusion,
    is_right,
    summary,
)


def scored(n: int = 500, classes: int = 8, sharpness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(classes, (n,), generator=generator)
    scores = torch.randn(n, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return scores * sharpness, labels


def test_accuracies_and_confusion_are_those_of_scikit_learn() -> None:
    scores, labels = scored()
    for k in (1, 5):
        theirs = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k)
        assert float(is_right(scores, labels, k).double().mean()) == pytest.approx(theirs)
    table = confusion_matrix(labels.numpy(), scores.argmax(dim=1).numpy())
    assert np.array_equal(confusion(scores, labels).numpy(), table)
    assert accuracy_per_class(scores, labels) == pytest.approx(table.diagonal() / table.sum(axis=1))


def test_a_class_without_test_images_has_no_accuracy() -> None:
    assert accuracy_per_class(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 0])) == [pytest.approx(2 / 3), None, None]


def test_any_of_several_right_classes_counts() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1]])
    several = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert is_right(scores, several).tolist() == [True, False]
    assert is_right(scores, several, k=2).tolist() == [True, True]
    assert summary(scores, several, calibrated=True)["confusion"] is None


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0])
def test_calibration_error_is_that_of_the_formula(sharpness: float) -> None:
    scores, labels = scored(2000, sharpness=sharpness)
    p = scores.softmax(dim=1).numpy()
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels.numpy()
    expected, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(torch.from_numpy(p), labels) == pytest.approx(expected, abs=1e-6)


def test_a_calibrated_coin_has_no_calibration_error() -> None:
    p = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    assert calibration_error(p, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.0)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Draws of training images shift the accuracy by a spread of 0.03; the 400 test images add their own."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        hardness = generator.random(400)
        accuracies = 0.7 + 0.03 * generator.standard_normal(5)
        low, high = accuracy_interval(hardness < accuracies[:, None], draws=300, seed=trial)
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 300 <= 0.98


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_few_seeds_that_differ_are_more_than_their_images(seeds: int) -> None:
    """With many test images the draws of training images are all there is; a bootstrap alone would hold 77 and 87 %."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        hardness = np.sort(generator.random(4000))
        accuracies = 0.7 + 0.03 * generator.standard_normal(seeds)
        low, high = accuracy_interval(hardness < accuracies[:, None], draws=400, seed=trial)
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 300 <= 0.98


def test_one_seed_gives_the_binomial_interval() -> None:
    right = np.arange(1000)[None] < 800
    low, high = accuracy_interval(right)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)
