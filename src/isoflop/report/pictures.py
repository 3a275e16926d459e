"""Pictures in a page: PNG files inside of the HTML, each with a title and what it shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isoflop.report.text import escape


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 (height, width, 3), a title, and a caption that says what is to be seen."""

    title: str
    caption: str
    pixels: NDArray[np.uint8]


def picture_section(pictures: Sequence[Picture]) -> str:
    """The section of a report that shows `pictures`; nothing when there are none."""
    shown = "".join(
        f'<figure><img src="data:image/png;base64,{_png(picture.pixels)}" alt="{escape(picture.title)}" '
        f'style="max-width:100%"><figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}'
        "</figcaption></figure>"
        for picture in pictures
    )
    return f'<section id="reconstructions"><h2>Reconstructions</h2>{shown}</section>' if shown else ""


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
