"""What a model has learned about the picture plane: its position embeddings, its first filters, its features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.metaformer import MetaFormer
from isoflop.models.timm_adapter import TimmBackbone

Array = NDArray[np.float64]


def position_similarity(model: Backbone) -> Array:
    """Cosine similarity of every two position embeddings (rows, columns, rows, columns) (arXiv 2010.11929, fig. 7).

    Raises ModelError for a model without them.
    """
    table, grid = _positions(model)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True).clip(1e-12)
    return np.asarray((unit @ unit.T).reshape(*grid, *grid), dtype=np.float64)


def first_filters(model: Backbone) -> Array:
    """The weights of the first convolution (filters, height, width, channels)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == model.in_channels and module.groups == 1:
            weight = module.weight.detach().double().cpu().numpy()
            return np.asarray(weight.transpose(0, 2, 3, 1), dtype=np.float64)
    raise ModelError(f"{getattr(model, 'preset', 'this model')} has no convolution over the image to look at")


def principal_components(vectors: Array, count: int) -> tuple[Array, Array]:
    """The first `count` principal directions (count, d) of `vectors` (m, d), and their shares of variance.

    The sign is chosen so that the largest entry of each is positive.
    """
    centred = vectors - vectors.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:count]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    share = spread**2 / max(float((spread**2).sum()), 1e-300)
    return directions * np.sign(np.where(largest == 0, 1, largest)), share[:count]


def filter_components(filters: Array, count: int = 28) -> tuple[Array, Array]:
    """The main patterns among `filters`: (count, height, width, channels), and their shares of the variance."""
    directions, share = principal_components(filters.reshape(len(filters), -1), count)
    return directions.reshape(-1, *filters.shape[1:]), share


def feature_components(model: Backbone, images: Tensor, components: int = 3) -> tuple[Array, Array]:
    """The last feature map along its principal directions (batch, rows, columns, components), and variance shares.

    Images share the directions, so that one colour means one thing in all of them.
    """
    training = model.training
    try:
        with torch.no_grad():
            maps = model.eval().feature_maps(images)[-1]
    finally:
        model.train(training)
    cells = maps.double().cpu().permute(0, 2, 3, 1).numpy()
    vectors = cells.reshape(-1, cells.shape[-1])
    directions, share = principal_components(vectors, components)
    projected = (vectors - vectors.mean(axis=0)) @ directions.T
    return projected.reshape(*cells.shape[:-1], len(directions)), share


def _positions(model: Backbone) -> tuple[Array, tuple[int, int]]:
    """The position embeddings (cells, width) of the first grid that has them, and that grid (rows, columns)."""
    if isinstance(model, MetaFormer):
        for table, grid in zip(model.positions, model.grids, strict=True):
            if table is not None:
                return np.asarray(table[0].detach().double().cpu(), dtype=np.float64), (grid[0], grid[1])
    if isinstance(model, TimmBackbone):
        embedding = getattr(model.model, "pos_embed", None)
        size = getattr(getattr(model.model, "patch_embed", None), "grid_size", None)
        if isinstance(embedding, Tensor) and embedding.ndim == 3 and size is not None:
            patches = embedding[0, -size[0] * size[1] :]
            return np.asarray(patches.detach().double().cpu(), dtype=np.float64), (size[0], size[1])
    raise ModelError(f"{getattr(model, 'preset', 'this model')} has no position embeddings to compare")
