"""Classifiers on frozen features agree with scikit-learn's, and the probe does what its paper says."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from isoflop.config import OptimConfig
from isoflop.transfer import few_shot
from isoflop.transfer.few_shot import logistic_scores, neighbour_scores, probe_scores


def clouds(n: int, width: int = 8, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    return 3 * (centres[labels] + torch.randn(n, width, generator=generator)) + 5, labels


@pytest.mark.parametrize("inverse_l2", [0.01, 1.0])
def test_logistic_regression_is_that_of_scikit_learn(inverse_l2: float) -> None:
    (x, y), (test, _) = clouds(200), clouds(50, seed=1)
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    theirs = LogisticRegression(C=inverse_l2, tol=1e-10, max_iter=10_000)
    theirs.fit(((x - mean) / std).numpy().astype(np.float64), y.numpy())
    expected = theirs.predict_proba(((test - mean) / std).numpy().astype(np.float64))
    ours = logistic_scores(x, y, test, 4, inverse_l2=inverse_l2).softmax(dim=1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_its_penalty_is_chosen_on_held_out_images() -> None:
    (x, y), (test, answers) = clouds(60, width=40), clouds(400, width=40, seed=1)

    def accuracy(**options: float) -> float:
        return float((logistic_scores(x, y, test, 4, **options).argmax(dim=1) == answers).double().mean())

    assert accuracy() >= accuracy(inverse_l2=10.0)
    one_each = logistic_scores(x[:4], y[:4], test, 4)
    assert float((one_each.argmax(dim=1) == answers).double().mean()) > 0.5


def test_neighbours_are_those_of_scikit_learn() -> None:
    (x, y), (test, _) = clouds(300), clouds(80, seed=1)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp(-d / 0.07)).fit(x.numpy(), y.numpy())
    votes = neighbour_scores(x, y, test, 4)
    np.testing.assert_allclose(
        (votes / votes.sum(dim=1, keepdim=True)).numpy(), theirs.predict_proba(test.numpy()), atol=1e-4
    )
    assert neighbour_scores(x[:3], y[:3], test, 4).shape == (80, 4)  # fewer than twenty neighbours all vote


def test_the_batch_norm_of_the_probe_has_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, ...]] = []
    real = few_shot.build_optimizer

    def build(model: nn.Module, options: OptimConfig) -> torch.optim.Optimizer:
        trained.append(tuple(name for name, _ in model.named_parameters()))
        return real(model, options)

    monkeypatch.setattr(few_shot, "build_optimizer", build)
    probe_scores(*clouds(40), clouds(8)[0], 4, epochs=1)
    assert trained == [("1.weight", "1.bias")]


def test_the_probe_learns_and_does_not_care_for_the_scale_of_features() -> None:
    (x, y), (test, answers) = clouds(400), clouds(400, seed=1)
    one, two = (probe_scores(x * s, y, test * s, 4, epochs=10) for s in (1.0, 100.0))
    assert float((one.argmax(dim=1) == answers).double().mean()) > 0.85
    torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)
    assert not torch.equal(one, probe_scores(x, y, test, 4, epochs=10, seed=1))
