"""Attention weights, attention distance and rollout; positions, filters and features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.attention import Attention as TimmAttention
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.metaformer import MetaFormer
from isoflop.models.mixers import Attention
from isoflop.models.timm_adapter import TimmBackbone

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention over all tokens: its name, its heads, the grid of its patches, and how many tokens precede them."""

    name: str
    module: nn.Module
    heads: int
    grid: tuple[int, int]
    cell: tuple[float, float]
    """Height and width of a cell in pixels."""
    prefix: int


def attention_layers(model: Backbone) -> list[AttentionLayer]:
    """The layers of plain multi-head attention over all tokens, first to last: ours, and those of timm's ViTs.

    Attention in windows, with a reduced map or with rotated positions is another function and not listed.
    """
    if isinstance(model, MetaFormer):
        places = [(f"stages.{s}.", s) for s in range(len(model.stages))]
        found = []
        for name, module in model.named_modules():
            stage = next((s for start, s in places if name.startswith(start)), None)
            if isinstance(module, Attention) and stage is not None:
                prefix = model.config.prefix_tokens if stage == len(model.stages) - 1 else 0
                found.append(_layer(name, module, module.heads, model.grids[stage], model.image_size, prefix))
        return found
    if isinstance(model, TimmBackbone) and hasattr(model.model, "patch_embed"):
        grid = getattr(model.model.patch_embed, "grid_size", None)
        prefix = int(getattr(model.model, "num_prefix_tokens", 0))
        return [
            _layer(name, module, module.num_heads, grid, model.image_size, prefix)
            for name, module in model.named_modules()
            if type(module) is TimmAttention and grid is not None
        ]
    return []


def attention_weights(model: Backbone, images: Tensor) -> list[Tensor]:
    """The attention of every layer of `attention_layers`: (batch, heads, tokens, tokens), each row summing to one.

    They are computed again from each layer's input, because fused attention never has them in memory. The model is
    used as in evaluation and left as it was. Raises ModelError for a model without such layers.
    """
    layers = attention_layers(model)
    if not layers:
        raise ModelError(f"{_name(model)} has no attention over all tokens to look at")
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.module.register_forward_pre_hook(lambda _, args, name=layer.name: inputs.__setitem__(name, args[0]))
        for layer in layers
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        return [_weights(layer, inputs[layer.name]) for layer in layers]


def attention_distance(weights: Tensor, layer: AttentionLayer) -> Array:
    """How far each head looks, in pixels: the distance between query and key, weighted by attention (heads,).

    The mean over images and queries (arXiv 2010.11929, fig. 7). Prefix tokens have no place: they are left out, and
    what remains of each query's attention is taken as a whole.
    """
    patches = weights[:, :, layer.prefix :, layer.prefix :].double()
    share = patches / patches.sum(dim=-1, keepdim=True)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in layer.grid), indexing="ij")
    places = torch.stack([rows.flatten() * layer.cell[0], columns.flatten() * layer.cell[1]], dim=1)
    distances = torch.cdist(places, places).to(share.device)
    return np.asarray((share * distances).sum(dim=-1).mean(dim=(0, 2)).cpu(), dtype=np.float64)


def attention_rollout(weights: list[Tensor]) -> Tensor:
    """Attention followed through all layers: (batch, tokens, tokens), each row summing to one.

    The product over layers of the heads' mean, half of it and half of the shortcut (arXiv 2005.00928, eq. 1).
    Raises ModelError where the number of tokens changes between layers.
    """
    if len({layer.shape[-1] for layer in weights}) != 1:
        raise ModelError("attention can be followed only through layers of the same tokens")
    total = torch.eye(weights[0].shape[-1], dtype=torch.float64).expand(weights[0].shape[0], -1, -1)
    for layer in weights:
        mean = layer.double().mean(dim=1).cpu()
        total = (0.5 * mean + 0.5 * torch.eye(mean.shape[-1], dtype=torch.float64)) @ total
    return total


def rollout_maps(rollout: Tensor, layer: AttentionLayer) -> Array:
    """Where in the picture a rollout comes from: (batch, rows, columns), each map summing to one.

    As seen by the class token where there is one, else the mean over all patches.
    """
    seen = rollout[:, 0] if layer.prefix else rollout.mean(dim=1)
    patches = seen[:, layer.prefix :]
    patches = patches / patches.sum(dim=1, keepdim=True)
    return np.asarray(patches.reshape(-1, *layer.grid), dtype=np.float64)


def _weights(layer: AttentionLayer, x: Tensor) -> Tensor:
    module = layer.module
    x = x.flatten(1, -2)
    assert isinstance(module, Attention | TimmAttention)
    q, k, _ = module.qkv(x).unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = module.q_norm(q), module.k_norm(k)
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)


def _layer(
    name: str, module: nn.Module, heads: int, grid: tuple[int, int], image_size: tuple[int, int], prefix: int
) -> AttentionLayer:
    cell = (image_size[0] / grid[0], image_size[1] / grid[1])
    return AttentionLayer(name, module, heads, (grid[0], grid[1]), cell, prefix)


def _name(model: Backbone) -> str:
    return getattr(model, "preset", type(model).__name__)


# What a model has learned about the picture plane: its position embeddings, its first filters, its features.


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
