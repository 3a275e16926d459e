"""Closed-form few-shot classification at ImageNet's size, beside scikit-learn's Ridge; and intervals of accuracies.

python benchmarks/transfer.py            # 1,000 classes × 10 shots of ViT-G's 1,664 features; seconds, median of 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import Ridge

from isoflop.transfer.few_shot import BIAS, L2, neighbour_scores, ridge, ridge_scores
from isoflop.transfer.metrics import accuracy_interval

CLASSES, SHOTS, WIDTH = 1000, 10, 1664


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median time of `repeats` calls after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(CLASSES * SHOTS, WIDTH, generator=generator)
    labels = torch.arange(CLASSES * SHOTS) % CLASSES
    test = torch.randn(10_000, WIDTH, generator=generator)
    targets = 2.0 * np.eye(CLASSES)[labels.numpy()] - 1.0
    with_bias = np.concatenate([features.numpy(), np.full((len(features), 1), BIAS)], axis=1).astype(np.float64)
    theirs = Ridge(alpha=L2, fit_intercept=False, solver="cholesky")
    few = torch.arange(CLASSES)  # one shot: fewer images than features, so that the dual form is smaller
    rows = {
        "ridge, 10 shots (primal)": lambda: ridge(features, labels, CLASSES),
        "scikit-learn's Ridge on the same": lambda: theirs.fit(with_bias, targets),
        "ridge, 1 shot (dual)": lambda: ridge(features[few], labels[few], CLASSES),
        "ridge with whitening and 10,000 test images": lambda: ridge_scores(features, labels, test, CLASSES),
        "20 nearest neighbours of 10,000 test images": lambda: neighbour_scores(features, labels, test, CLASSES),
        "interval of 3 seeds × 50,000 images": lambda: accuracy_interval(
            np.random.default_rng(0).random((3, 50_000)) < 0.8
        ),
    }
    ours = ridge(features, labels, CLASSES).numpy()
    for name, work in rows.items():
        print(f"{name}: {seconds(work, arguments.repeats):.2f} s", flush=True)
    print(f"largest difference of weights from scikit-learn's: {np.abs(ours - theirs.coef_.T).max():.1e}")


if __name__ == "__main__":
    main()
