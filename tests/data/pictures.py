"""Small pictures for the tests of the data, made on the spot."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 30, width: int = 40) -> Image.Image:
    """A smooth picture that differs from seed to seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    """The bytes of a file of this picture."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def png_bomb(width: int = 30_000, height: int = 20_000) -> bytes:
    """A PNG of a few hundred bytes that claims to be of this size."""
    small = encoded(picture(0), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
