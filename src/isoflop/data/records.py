"""Records: encoded images with labels, as they lie in storage. Each kind of storage is one file in `sources/`."""

import io
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from isoflop.errors import DataError


class Records(Protocol):
    """Encoded images by index, in the order in which they are stored."""

    uri: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        """The number of records."""
        ...

    def read(self, index: int) -> bytes:
        """The encoded image of one record."""
        ...

    def name(self, index: int) -> str:
        """What to call this record in a message: its path, or its place in a file."""
        ...


def decode_all(records: Records, image_size: int, channels: int) -> NDArray[np.uint8]:
    """Every record decoded, its shorter side brought to `image_size`, and its centre cut out: uint8 (n, channels, s,
    s).
    """
    images = np.empty((len(records), channels, image_size, image_size), dtype=np.uint8)
    for index in range(len(records)):
        try:
            images[index] = _decode(records.read(index), image_size, channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{records.name(index)}: not a readable image ({error}); remove or repair it") from error
    return images


def _decode(encoded: bytes, image_size: int, channels: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded)) as opened:
        picture = opened.convert("L" if channels == 1 else "RGB")
    if picture.size != (image_size, image_size):
        picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
