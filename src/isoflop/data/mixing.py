"""Mixup and CutMix, on the device, the same for any number of ranks.

The images at places 2i and 2i+1 of the global batch are mixed with each other. How, depends on (seed, step, i) alone;
`loader.rank_part` never puts the two on different ranks.
"""

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional as F

from isoflop.data.keyed import derive_key, uniforms
from isoflop.errors import DataError


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as float32 (n, num_classes): of int64 (n,) a one at the class; what has that shape already stays so."""
    return labels if labels.ndim == 2 else F.one_hot(labels, num_classes).to(torch.float32)


def mix(
    images: Tensor,
    targets: Tensor,
    *,
    seed: int,
    step: int,
    first: int,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch: float = 0.5,
    probability: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) and targets float (n, classes), each pair mixed; on the device of `images`.

    With `probability` a pair is mixed, and then with probability `switch` by CutMix (arXiv 1905.04899: a rectangle of
    the partner, of the area 1-λ), else by Mixup (arXiv 1710.09412: λ·image + (1-λ)·partner); λ ~ Beta(α, α). An α of
    0 turns one of the two off. The defaults are DeiT's (arXiv 2012.12877). An image without a partner stays as it is.

    `first` is `Batch.first`. Raises DataError for an image alone, or if `first` is odd: its partner may be on another
    rank.
    """
    if first % 2 or len(images) < 2:
        raise DataError("Mixup and CutMix need a batch of at least two images per rank")
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    n, _, height, width = images.shape
    pairs = (first + np.arange(n, dtype=np.int64)) // 2
    u = uniforms(derive_key("mixing", seed), step, pairs, 5)
    is_cut = (u[:, 1] < switch) if mixup_alpha > 0 and cutmix_alpha > 0 else np.full(n, cutmix_alpha > 0)
    alpha = np.where(is_cut, max(cutmix_alpha, 1e-6), max(mixup_alpha, 1e-6))
    share = betaincinv(alpha, alpha, u[:, 2])
    share[u[:, 0] >= probability] = 1.0
    if n % 2:
        share[-1] = 1.0
    # The rectangle of CutMix, clipped at the border; λ follows the area that is left.
    half = np.sqrt(1 - share) / 2
    top, bottom = (np.clip(np.rint(height * (u[:, 3] + s * half)), 0, height) for s in (-1, 1))
    left, right = (np.clip(np.rint(width * (u[:, 4] + s * half)), 0, width) for s in (-1, 1))
    share = np.where(is_cut, 1 - (bottom - top) * (right - left) / (height * width), share)

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(images.device).view(n, 1, 1, 1)

    partner = torch.arange(n, device=images.device) ^ 1
    partner[partner >= n] = n - 1
    rows = torch.arange(height, device=images.device).view(1, 1, height, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, width)
    inside = (rows >= column(top)) & (rows < column(bottom)) & (columns >= column(left)) & (columns < column(right))
    weight = torch.where(column(is_cut) > 0, (~inside).to(torch.float32), column(share)).to(images.dtype)
    mixed = images * weight + images[partner] * (1 - weight)
    own = column(share).view(n, 1).to(targets.dtype)
    return mixed, targets * own + targets[partner] * (1 - own)
