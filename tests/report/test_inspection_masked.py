"""Pictures of masked autoencoding: what was hidden is hidden, what was seen is as it was, and the label is honest."""

from __future__ import annotations

import dataclasses

import numpy as np

from isoflop.report.inspection.pictures import GREY, LABEL_HEIGHT, labelled, progress_sheet, reconstruction_sheet
from isoflop.runs.reconstructions import SavedReconstruction


def made(normalised: bool = False, step: int = 5) -> SavedReconstruction:
    """One image of 64 px in black, its prediction in white, the left half hidden."""
    images = np.zeros((1, 3, 64, 64), dtype=np.uint8)
    hidden = np.zeros((1, 2, 2), dtype=bool)
    hidden[:, :, 0] = True
    return SavedReconstruction(step, images, np.full_like(images, 255), hidden, normalised)


def test_input_masked_reconstruction_overlay() -> None:
    sheet = reconstruction_sheet(made(), columns=1)[-70:-6, 6:-6]
    shown = [sheet[:, k * 66 : k * 66 + 64, 0] for k in range(4)]
    assert [int(part[:, :32].mean()) for part in shown] == [0, GREY, 255, 255], "the hidden half"
    assert [int(part[:, 32:].mean()) for part in shown] == [0, 0, GREY, 0], "the visible half"


def test_normalised_targets_are_labelled_and_others_are_not() -> None:
    plain, told = (reconstruction_sheet(made(normalised), columns=2) for normalised in (False, True))
    assert told.shape[0] > plain.shape[0]
    assert (told.shape[0] - plain.shape[0]) % LABEL_HEIGHT == 0


def test_progress_shows_the_first_and_the_last_moment() -> None:
    history = [dataclasses.replace(made(step=step), reconstructed=np.full((1, 3, 64, 64), step, np.uint8)) for step in
               range(1, 21)]  # fmt: skip
    sheet = progress_sheet(history, most=3)[-70:-6, 6:-6, 0]
    assert sheet.shape[1] == 5 * 66
    assert [int(sheet[32, k * 66 + 40]) for k in range(5)][1:4:2] == [1, 20]


def test_a_label_fits_its_sheet() -> None:
    sheet = labelled(np.zeros((4, 120, 3), dtype=np.uint8), ["one two three four five six seven eight nine"])
    assert sheet.shape[1] == 120
    assert sheet.shape[0] > 4 + LABEL_HEIGHT
    assert (sheet[-4:] == 0).all()
