"""Arrays as pictures: colour scales, mosaics with a margin, masked images with their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isoflop.report.figure import RAMP, png_text
from isoflop.report.page import Picture
from isoflop.report.rows import Row
from isoflop.runs.reconstructions import SavedReconstruction, read_reconstructions

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
GREY = 127


def stretched(values: Array, low: float | None = None, high: float | None = None) -> Array:
    """`values` moved to 0 … 1, from `low` to `high` or from their least to their greatest; constant ones to 0."""
    low = float(np.nanmin(values)) if low is None else low
    high = float(np.nanmax(values)) if high is None else high
    if high <= low:
        return np.zeros_like(values)
    return np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0.0, 1.0)


def colored(values: Array) -> Pixels:
    """Values in 0 … 1 (…) on the report's scale, blue for low and yellow for high: (…, 3)."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP[::-1]], dtype=np.float64)
    place = np.linspace(0, 1, len(stops))
    channels = [np.interp(values, place, stops[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def enlarged(pictures: Pixels, factor: int) -> Pixels:
    """Pictures (n, h, w, 3) with every pixel `factor` times as large."""
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def mosaic(pictures: Pixels, columns: int, margin: int = 2) -> Pixels:
    """Pictures (n, h, w, 3) in rows of `columns`, with white margins between: one picture (height, width, 3)."""
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + margin) + margin, columns * (w + margin) + margin, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (h + margin) + margin, (i % columns) * (w + margin) + margin
        sheet[top : top + h, left : left + w] = picture
    return sheet


def colour_images(images: Array) -> Pixels:
    """Images in 0 … 1 (n, h, w, channels) as (n, h, w, 3); of one channel in grey, of others the first three."""
    shown = images.repeat(3, axis=-1) if images.shape[-1] in (1, 2) else images
    return (255 * np.clip(shown[..., :3], 0, 1)).round().astype(np.uint8)


def save_png(path: Path, picture: Pixels) -> Path:
    """Write a picture (h, w, 3) and return its path."""
    Image.fromarray(picture).save(path, format="PNG")
    return path


# What a masked autoencoder sees and what it makes of it, as pictures.


LABEL_HEIGHT = 16
MOST = 4  # runs shown, so that the page stays small
NORMALISED = "normalised targets: shown with mean and deviation of the hidden pixels, which the model did not know"


def reconstruction_pictures(study: Path, rows: Sequence[Row]) -> list[Picture]:
    """One picture for each of the largest masked runs of a study, the answers first; nothing where none was masked."""
    pictures: list[Picture] = []
    for row in sorted(rows, key=lambda row: (row["role"] != "final", -row["train_flops"])):
        history = read_reconstructions(study / "runs" / row["run_id"])
        if not history:
            continue
        caption = (
            "Each row is a held-out image: what the model was shown, what it made of that after more and more steps, "
            "and the image."
        )
        title = f"{row['model']} at {row['budget']:g} FLOPs"
        pictures.append(Picture(title, caption, png_text(progress_sheet(history))))
        if len(pictures) == MOST:
            break
    return pictures


def reconstruction_sheet(made: SavedReconstruction, columns: int = 2) -> Pixels:
    """Fours of input, masked input, what was predicted, and that over the visible rest; one picture (h, w, 3).

    Its first line names the four; a second one says so where targets were normalised.
    """
    original, filled = _shown(made.images), _shown(made.reconstructed)
    hidden = _pixelwise(made.hidden, original)
    grey = np.full_like(original, GREY)
    fours = [
        original,
        np.where(hidden, grey, original),
        np.where(hidden, filled, grey),
        np.where(hidden, filled, original),
    ]
    fours = [_enlarged(picture) for picture in fours]
    sheet = mosaic(np.concatenate(fours, axis=2), columns, margin=6)
    lines = ["input | masked | reconstruction | overlay"] + ([NORMALISED] if made.is_normalised else [])
    return labelled(sheet, lines)


def progress_sheet(history: Sequence[SavedReconstruction], most: int = 6) -> Pixels:
    """A row for every image: masked, then its reconstruction after more and more steps, then the image (h, w, 3).

    Of a long history, `most` moments are shown, the first and the last among them.
    """
    chosen = [history[round(i)] for i in np.linspace(0, len(history) - 1, min(most, len(history)))]
    last = chosen[-1]
    original = _shown(last.images)
    hidden = _pixelwise(last.hidden, original)
    row = [np.where(hidden, np.uint8(GREY), original), *(_shown(made.reconstructed) for made in chosen), original]
    sheet = mosaic(np.concatenate([_enlarged(picture) for picture in row], axis=2), 1, margin=6)
    steps = ", ".join(f"{made.step:,}" for made in chosen)
    lines = [f"masked | after {steps} steps | input"] + ([NORMALISED] if last.is_normalised else [])
    return labelled(sheet, lines)


def labelled(sheet: Pixels, lines: Sequence[str]) -> Pixels:
    """`sheet` under lines of text, cut into more where it is too narrow for them."""
    font = ImageFont.load_default(size=12)
    fitting: list[str] = []
    for line in lines:
        fitting.append("")
        for word in line.split(" "):
            longer = f"{fitting[-1]} {word}".strip()
            if fitting[-1] and font.getlength(longer) > sheet.shape[1] - 8:
                fitting.append(word)
            else:
                fitting[-1] = longer
    head = Image.new("RGB", (sheet.shape[1], LABEL_HEIGHT * len(fitting)), "white")
    draw = ImageDraw.Draw(head)
    for number, line in enumerate(fitting):
        draw.text((4, LABEL_HEIGHT * number + 1), line, fill="black", font=font)
    return np.concatenate([np.asarray(head), sheet])


def _shown(images: NDArray[np.uint8]) -> Pixels:
    return colour_images(images.transpose(0, 2, 3, 1) / 255.0)


def _pixelwise(hidden: NDArray[np.bool_], images: Pixels) -> NDArray[np.bool_]:
    high, wide = images.shape[1] // hidden.shape[1], images.shape[2] // hidden.shape[2]
    return hidden.repeat(high, axis=1).repeat(wide, axis=2)[..., None]


def _enlarged(pictures: Pixels, least: int = 64) -> Pixels:
    """Enlarged by a whole factor to at least `least` pixels of height, with a thin margin to the right."""
    larger = enlarged(pictures, max(1, -(-least // pictures.shape[1])))
    return np.pad(larger, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)
