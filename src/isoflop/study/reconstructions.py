"""What the masked runs of a study make of held-out images while they train, for its report."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.report.inspection import Made, progress_sheet
from isoflop.report.pictures import Picture
from isoflop.runs.results import Row
from isoflop.study.store import Store
from isoflop.train.reconstructions import SavedReconstruction, read_reconstructions

MOST = 4  # runs shown, so that the page stays small


def made(saved: SavedReconstruction) -> Made:
    """The arrays of a saved reconstruction, for drawing."""
    images, reconstructed, hidden = (t.numpy() for t in (saved.images, saved.reconstructed, saved.hidden))
    return Made(images, reconstructed, hidden, saved.is_normalised, saved.step)


def reconstruction_pictures(store: Store, rows: Sequence[Row]) -> list[Picture]:
    """One picture for each of the largest masked runs, the answers first; nothing where none was masked."""
    pictures: list[Picture] = []
    for row in sorted(rows, key=lambda row: (row["role"] != "final", -row["train_flops"])):
        history = [made(saved) for saved in read_reconstructions(store.run_directory(row["run_id"]))]
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
