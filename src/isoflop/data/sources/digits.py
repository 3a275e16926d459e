"""`digits`: scikit-learn's 1,797 real handwritten digits of 8×8 pixels (UCI Optical Recognition, 1998), enlarged."""

import numpy as np
import torch
from torch.nn import functional as F

from isoflop.data.keyed import derive_key
from isoflop.data.order import permute
from isoflop.data.source import Split, SplitIndices
from isoflop.data.sources.arrays import ArraySource, array_statistics

_TEST_SHARE = 5  # a fifth of the digits is the test split


def digits(*, split: Split, image_size: int, heldout: int, seed: int, channels: int = 1) -> ArraySource:
    """The digits as a source: four fifths for training (with a held-out part), one fifth for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None] * (255 / 16)
    large = F.interpolate(small, size=(image_size, image_size), mode="bilinear", align_corners=False)
    images = large.round_().clamp_(0, 255).to(torch.uint8).expand(-1, channels, -1, -1).contiguous().numpy()
    labels = np.asarray(bunch.target, dtype=np.int64)
    shuffled = permute(np.arange(len(labels)), len(labels), derive_key("digits test split"))
    test, train = np.sort(shuffled[: len(labels) // _TEST_SHARE]), np.sort(shuffled[len(labels) // _TEST_SHARE :])
    rows = test if split == "test" else train[SplitIndices(len(train), split, heldout, seed).all()]
    return ArraySource(
        images,
        labels,
        uri="digits",
        class_names=tuple("0123456789"),
        fingerprint=f"{derive_key('digits-v1', image_size, channels, int(labels.sum())):016x}",
        rows=rows,
        statistics=array_statistics(images[train]),
    )
