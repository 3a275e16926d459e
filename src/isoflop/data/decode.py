"""From encoded bytes to pixels: only the part of the picture that is needed, at the scale that is needed.

JPEG goes through libjpeg-turbo (simplejpeg), everything else through Pillow; both give the same pixels for the same
JPEG. Two shortcuts make a training crop cheaper than decoding the whole picture and then cropping:

* the rows below the crop are never decoded: the header is told that the picture ends there (exact);
* a crop at least 3, 6 or 12 times as large as the result is decoded at ½, ¼ or ⅛, inside the inverse DCT (about 48 dB).

What arrives is judged by its content, never by its name, and by its size before any pixel is allocated.
"""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from isoflop.errors import DataError

DECODING = 1
"""To be raised when the same bytes give other pixels, or another picture counts as damaged: decoded images that are
kept on disk are then made again."""

MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a few kilobytes can claim to be gigabytes."""

_REDUCTIONS = (8, 4, 2)
_SMALLEST_RATIO = 1.5  # a crop is decoded at 1/r only if it is then still this many times as large as the result
_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive Huffman
_CONTEXT_ROWS = 16  # the upsampling of colour looks at the next row of blocks


class DamagedImage(DataError):
    """Bytes that are no usable picture; the message is the reason."""


class Header(NamedTuple):
    """What the first bytes of a picture say."""

    format: str
    """as Pillow calls it: JPEG, PNG, WEBP, …"""
    height: int
    width: int
    is_fast: bool
    """whether libjpeg-turbo decodes it: JPEG, in grey or YCbCr"""
    frame: int = 0
    """where the frame header of a baseline JPEG starts, or 0"""


class Box(NamedTuple):
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def read_header(encoded: bytes) -> Header:
    """Format and size of a picture, without decoding it. Raises DamagedImage with the reason."""
    if not encoded:
        raise DamagedImage("empty: zero bytes")
    header = _jpeg_header(encoded) if encoded[:3] == b"\xff\xd8\xff" else None
    if header is None:
        try:
            with Image.open(io.BytesIO(encoded)) as opened:
                header = Header(str(opened.format), opened.height, opened.width, is_fast=False)
        except Image.DecompressionBombError as error:
            raise DamagedImage(f"decompression bomb: {error}") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise DamagedImage("not an image in any known format") from error
    if header.height * header.width > MOST_PIXELS:
        raise DamagedImage(f"{header.width}×{header.height} pixels are more than the limit of {MOST_PIXELS:,}")
    return header


def decode_crop(encoded: bytes, header: Header, box: Box, *, size: int, channels: int) -> Tensor:
    """The part `box` of a picture, resized to uint8 (channels, size, size) by antialiased bilinear interpolation.

    `box` should come from `snap`, so that it lies on the grid of a reduced decoding. Raises DamagedImage.
    """
    reduction = choose_reduction(box, size) if header.is_fast else 1
    if header.is_fast:
        pixels = _decode_jpeg(encoded, header, box.top + box.height, reduction, channels)
    else:
        pixels = _decode_with_pillow(encoded, channels)
    top, left = box.top // reduction, box.left // reduction
    part = pixels[top : top + box.height // reduction, left : left + box.width // reduction]
    return resize(torch.from_numpy(part).permute(2, 0, 1), size)


def decode_whole(encoded: bytes, header: Header) -> NDArray[np.uint8]:
    """All pixels of a picture, uint8 (height, width, 3). Raises DamagedImage."""
    if header.is_fast:
        return _decode_jpeg(encoded, header, header.height, 1, 3)
    return _decode_with_pillow(encoded, 3)


def centre_box_of(header: Header, size: int) -> Box:
    """The largest centred square of a picture, on the grid of a reduced decoding for `size`."""
    side = min(header.height, header.width)
    return snap(Box((header.height - side) // 2, (header.width - side) // 2, side, side), size)


def resize(image: Tensor, size: int) -> Tensor:
    """`image` uint8 (c, h, w) at (c, size, size); antialiased, bilinear, with Pillow's rounding."""
    if image.shape[1:] == (size, size):
        return image
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def choose_reduction(box: Box, size: int) -> int:
    """By how much (1, 2, 4 or 8) a JPEG may be decoded smaller when `box` is to become size × size."""
    for reduction in _REDUCTIONS:
        if min(box.height, box.width) >= _SMALLEST_RATIO * reduction * size:
            return reduction
    return 1


def snap(box: Box, size: int) -> Box:
    """`box` moved to the grid on which a reduced decoding can cut it out without shifting the picture."""
    grid = choose_reduction(box, size)
    return Box(*(value // grid * grid for value in box))


def _jpeg_header(encoded: bytes) -> Header | None:
    """The frame header of a JPEG with 1 or 3 components; None for others (CMYK, arithmetic, lossless): Pillow's."""
    at, end = 2, len(encoded) - 9
    while at < end and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _FRAME_MARKERS:
            height, width = int.from_bytes(encoded[at + 5 : at + 7]), int.from_bytes(encoded[at + 7 : at + 9])
            usable = encoded[at + 9] in (1, 3) and encoded[at + 4] == 8 and height > 0 and width > 0
            return Header("JPEG", height, width, True, at if marker != 0xC2 else 0) if usable else None
        if 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4])
    return None


def _decode_jpeg(encoded: bytes, header: Header, bottom: int, reduction: int, channels: int) -> NDArray[np.uint8]:
    """Pixels (rows ≥ bottom/reduction, width/reduction, channels)."""
    if encoded.rfind(b"\xff\xd9") < len(encoded) // 2:
        raise DamagedImage("truncated JPEG: its end is missing")
    height = min(header.height, -(-(bottom + _CONTEXT_ROWS) // 16) * 16)
    if header.frame and height < header.height:
        at = header.frame + 5
        encoded = encoded[:at] + height.to_bytes(2) + encoded[at + 2 :]
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            encoded,
            "GRAY" if channels == 1 else "RGB",
            min_height=-(-height // reduction) if reduction > 1 else 0,
            min_width=-(-header.width // reduction) if reduction > 1 else 0,
            min_factor=1,
            strict=False,
        )
    except ValueError as error:
        raise DamagedImage(f"damaged JPEG: {error}") from error
    return pixels


def _decode_with_pillow(encoded: bytes, channels: int) -> NDArray[np.uint8]:
    """Pixels (height, width, channels) of anything that Pillow reads; animations show their first picture."""
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            opened.load()
            if opened.mode == "F":
                raise DamagedImage("floating-point pixels have no known range")
            pixels = np.asarray(_eight_bit(opened).convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedImage(f"damaged image: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels).copy()


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight (Pillow would clip it), palettes with transparency made plain."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture
