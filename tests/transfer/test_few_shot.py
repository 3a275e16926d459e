"""Few-shot ridge regression is the one of the textbooks, in either form."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from isoflop.train.probe import ridge, ridge_scores
from isoflop.transfer.task import draw_shots


def problem(n: int, width: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + width)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + torch.randn(n, width, generator=generator), labels


@pytest.mark.parametrize(("n", "width"), [(200, 16), (40, 300)])  # the primal form, and the dual one
@pytest.mark.parametrize("l2", [1.0, 1024.0])
def test_ridge_agrees_with_scikit_learn(n: int, width: int, l2: float) -> None:
    features, labels = problem(n, width)
    targets = 2.0 * np.eye(4)[labels.numpy()] - 1.0
    with_bias = np.concatenate([features.numpy(), np.full((n, 1), 100.0)], axis=1)
    theirs = Ridge(alpha=l2, fit_intercept=False, solver="cholesky").fit(with_bias.astype(np.float64), targets)
    ours = ridge(features, labels, 4, l2=l2).numpy()
    np.testing.assert_allclose(ours, theirs.coef_.T, rtol=1e-6, atol=1e-9)


def test_features_are_whitened_as_the_few_are() -> None:
    """Mean and deviation of the training features, for the test features as well: scikit-learn's scaler and Ridge."""
    (few, labels), test = problem(40, 16), 3 * problem(60, 16)[0] + 1
    scaler = StandardScaler().fit(few.numpy().astype(np.float64))
    x, later = (
        np.concatenate([scaler.transform(part.numpy().astype(np.float64)), np.full((len(part), 1), 100.0)], axis=1)
        for part in (few, test)
    )
    theirs = Ridge(alpha=1024.0, fit_intercept=False, solver="cholesky").fit(x, 2.0 * np.eye(4)[labels.numpy()] - 1.0)
    np.testing.assert_allclose(ridge_scores(few, labels, test, 4).numpy(), theirs.predict(later), rtol=1e-3, atol=1e-5)


def test_a_draw_depends_on_its_seed_alone_and_is_balanced() -> None:
    labels = torch.arange(100) % 5
    drawn = draw_shots(labels, 5, 7, seed=1)
    assert np.array_equal(drawn, draw_shots(labels, 5, 7, seed=1))
    assert not np.array_equal(drawn, draw_shots(labels, 5, 7, seed=2))
    assert np.bincount(labels[drawn]).tolist() == [7] * 5
    assert len(set(drawn.tolist())) == 35


def test_a_class_with_fewer_images_than_shots_gives_what_it_has() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    drawn = draw_shots(labels, 4, 3, seed=0)
    assert np.bincount(labels[drawn], minlength=4).tolist() == [3, 3, 1, 0]
