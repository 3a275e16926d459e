"""`isoflop inspect`: all pictures and numbers of one model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from isoflop.errors import ModelError, StudyError
from isoflop.models import Backbone
from isoflop.report.export import write_figures
from isoflop.report.figure import write_whole
from isoflop.report.figures import attention_distance
from isoflop.report.inspection import attention, pictures
from isoflop.runs.files import write_json
from isoflop.runs.results import ATTENTION, ATTENTION_NUMBERS

Part = Callable[[Backbone, Tensor, Path], dict[str, Any]]


def inspect_model(model: Backbone, images: Tensor, folder: Path) -> dict[str, Any]:
    """Write what `model` shows on `images` to `folder`, and return the numbers that are also in its `inspect.json`.

    Args:
        model: any backbone of ours, or a ViT of timm's behind our interface.
        images: normalised as in training, (batch, channels, height, width).
        folder: made if missing.

    A part that a model does not have (attention in a NFNet) is in `skipped` with the reason.
    Raises ModelError for weights that are not finite, StudyError when the storage refuses.
    """
    wrong = [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]
    if wrong:
        raise ModelError(f"nothing to see: {len(wrong)} of the model's weights are not finite numbers ({wrong[0]})")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder}: cannot write: {error.strerror}") from error
    found: dict[str, Any] = {"model": getattr(model, "preset", type(model).__name__), "images": len(images)}
    skipped: dict[str, str] = {}
    for name, part in PARTS.items():
        try:
            found[name] = part(model, images, folder)
        except ModelError as error:
            skipped[name] = str(error)
    found["skipped"] = skipped
    write_whole(folder / "inspect.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


MOST_WEIGHTS = 2**27  # of attention, of all layers and images


def save_attention(model: Backbone, images: Tensor, run: Path) -> None:
    """Writes the attention distances and the rollout of `model` on `images` into the folder of its run.

    Raises ModelError for a model without attention over all tokens, or with too many tokens.
    """
    layers = attention.attention_layers(model)
    weights = sum(layer.heads * (layer.prefix + layer.grid[0] * layer.grid[1]) ** 2 for layer in layers)
    if len(images) * weights > MOST_WEIGHTS:
        raise ModelError("the attention of so many tokens takes too much memory")
    found = _distances(model, images)
    with suppress(ModelError):  # the tokens change between layers
        _rollout(model, images, run)
    write_json(run / ATTENTION_NUMBERS, found)


def _positions(model: Backbone, _: Tensor, folder: Path) -> dict[str, Any]:
    similarity = attention.position_similarity(model)
    rows, columns = similarity.shape[:2]
    tiles = pictures.colored(pictures.stretched(similarity, -1.0, 1.0).reshape(-1, rows, columns))
    # The whole sheet should be some 500 pixels wide, whatever the grid.
    tiles = pictures.enlarged(tiles, max(1, round(500 / (columns * columns))))
    pictures.save_png(folder / "position-similarity.png", pictures.mosaic(tiles, columns))
    return {"picture": "position-similarity.png", "cosine": similarity.round(6).tolist()}


def _distance(model: Backbone, images: Tensor, folder: Path) -> dict[str, Any]:
    found = _distances(model, images)
    files = write_figures([attention_distance(found["pixels"])], folder, ("svg", "csv"))
    return {"picture": files[0].name, **found}


def _distances(model: Backbone, images: Tensor) -> dict[str, Any]:
    layers, weights = attention.attention_layers(model), attention.attention_weights(model, images)
    distances = [attention.attention_distance(w, layer).tolist() for w, layer in zip(weights, layers, strict=True)]
    return {
        "layers": [layer.name for layer in layers],
        "pixels": [[round(v, 6) for v in heads] for heads in distances],
    }


def _rollout(model: Backbone, images: Tensor, folder: Path) -> dict[str, Any]:
    layer, weights = attention.attention_layers(model)[-1:], attention.attention_weights(model, images)
    maps = attention.rollout_maps(attention.attention_rollout(weights), layer[0])
    height, width = images.shape[-2:]
    shown = _shown(images)
    zoomed = maps.repeat(height // maps.shape[1], axis=1).repeat(width // maps.shape[2], axis=2)
    zoomed = np.stack([pictures.stretched(m) for m in zoomed])
    if zoomed.shape[1:] == shown.shape[1:3]:
        lit = pictures.colour_images(shown * (0.15 + 0.85 * zoomed[..., None]))
        pairs = np.concatenate([pictures.colour_images(shown), lit], axis=2)
    else:
        pairs = pictures.colored(zoomed)
    pictures.save_png(folder / ATTENTION, pictures.mosaic(_visible(pairs), 4, margin=4))
    return {"picture": ATTENTION, "maps": maps.round(8).tolist()}


def _filters(model: Backbone, _: Tensor, folder: Path) -> dict[str, Any]:
    filters = attention.first_filters(model)
    share = None
    # Patches are projected to so many numbers that their patterns say more than the rows do (arXiv 2010.11929, fig. 7).
    if filters.shape[1] > 7:
        filters, share = attention.filter_components(filters)
    tiles = np.stack([0.5 + 0.5 * f / max(float(np.abs(f).max()), 1e-12) for f in filters])
    pictures.save_png(folder / "filters.png", pictures.mosaic(_visible(pictures.colour_images(tiles), 64), 7, margin=4))
    shape = {"count": len(filters), "height": filters.shape[1], "width": filters.shape[2]}
    return {"picture": "filters.png", **shape, "variance": None if share is None else share.round(6).tolist()}


def _features(model: Backbone, images: Tensor, folder: Path) -> dict[str, Any]:
    projected, share = attention.feature_components(model, images)
    if projected.shape[-1] < 3:
        raise ModelError("the last feature map has too few cells for three principal directions")
    ends = np.percentile(projected, [1, 99], axis=(0, 1, 2))
    tiles = np.stack([pictures.stretched(projected[..., i], *ends[:, i]) for i in range(3)], axis=-1)
    size = images.shape[-1]
    pictures.save_png(
        folder / "feature-components.png",
        pictures.mosaic(_visible(pictures.colour_images(tiles), max(size, 96)), 4, margin=4),
    )
    return {"picture": "feature-components.png", "variance": share.round(6).tolist()}


def _shown(images: Tensor) -> Any:
    """Normalised images (n, c, h, w) as they look (n, h, w, c): each stretched to its own range."""
    pixels = images.detach().double().cpu().permute(0, 2, 3, 1).numpy()
    return np.stack([pictures.stretched(image) for image in pixels])


def _visible(tiles: pictures.Pixels, least: int = 96) -> pictures.Pixels:
    """Tiles enlarged by a whole factor to at least `least` pixels of height."""
    return pictures.enlarged(tiles, max(1, -(-least // tiles.shape[1])))


PARTS: dict[str, Part] = {
    "position_similarity": _positions,
    "attention_distance": _distance,
    "attention_rollout": _rollout,
    "first_filters": _filters,
    "feature_components": _features,
}
