"""What a masked autoencoder sees and what it makes of it, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isoflop.report.inspection.pictures import GREY, Pixels, colour_images, enlarged, mosaic
from isoflop.report.pictures import Picture
from isoflop.report.rows import Row
from isoflop.runs.reconstructions import SavedReconstruction, read_reconstructions

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
        pictures.append(Picture(title, caption, progress_sheet(history)))
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
