"""Decoding of images to upright pixels: only the needed region, at the needed scale.

libjpeg-turbo (simplejpeg) decodes JPEG. Pillow decodes other formats, and JPEGs that simplejpeg does not support; an
image that Pillow cannot read is damaged. Both give the same pixels for the same JPEG. Two shortcuts make a training
crop cheaper than decoding the whole picture:

* rows below the crop are not decoded: the header is changed so that the picture ends there (exact);
* a crop at least 3, 6 or 12 times as large as the result is decoded at ½, ¼ or ⅛, inside the inverse DCT (about 48 dB).

The format is determined by content, not by name, and the size is checked before pixels are allocated. Whether an image
is damaged does not depend on the crop: a JPEG takes the shortcuts only if its end is present.
"""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional as F

from isoflop.errors import DataError, stand_in

# Of odd notes beside the pixels, which change nothing. Not by a context: several threads decode at once.
warnings.filterwarnings("ignore", module=r"PIL\.")

DECODING = 2
"""To be raised when the same bytes give other pixels, or another picture counts as damaged: decoded images that are
kept on disk are then made again."""

MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a few kilobytes can claim to be gigabytes."""

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
}
"""The formats that are read, as Pillow calls them, each with the suffixes of its files. Pillow knows some forty more:
of those, some start another program (EPS), some have no signature, and none is used for data sets."""

SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|P[1-6]\s+[#\d]|BM....\0\0\0\0|....ftypavi[fs]"
    rb"|\0\0\0\x0cjP  ",
    re.DOTALL,
)
"""How the files of these formats begin, in their first 16 bytes."""

_REDUCTIONS = (8, 4, 2)
_SMALLEST_RATIO = 1.5  # a crop is decoded at 1/r only if it is then still this many times as large as the result
_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive Huffman
_SEGMENTS = frozenset({0xC4, 0xCC, 0xDA, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # what may stand between scans
_CONTEXT_ROWS = 16  # the upsampling of colour looks at the next row of blocks
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_BOTTOM_FIRST, _RIGHT_FIRST = frozenset({3, 4, 6, 7}), frozenset({2, 3, 7, 8})  # orientations; from 5 on transposed
_ORIENTATION = int(ExifTags.Base.Orientation)
_LARGE = 1 << 24  # pixels of a crop beyond which Pillow's pictures are averaged in blocks first, to bound memory
_STRIP = 1 << 22  # pixels that are converted at a time


class DamagedImage(DataError):
    """Bytes that are no usable picture; the message is the reason."""


class Header(NamedTuple):
    """What the first bytes of a picture say."""

    format: str
    """as Pillow calls it: JPEG, PNG, WEBP, …"""
    height: int
    """of the upright picture"""
    width: int
    """of the upright picture"""
    is_fast: bool
    """whether libjpeg-turbo decodes it: JPEG, in grey or YCbCr, with its end"""
    frame: int = 0
    """where the frame header of a JPEG of one baseline scan starts, or 0"""
    orientation: int = 1
    """how the stored picture becomes upright, 1 to 8 as in EXIF; 1 is upright"""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width as the picture is stored."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


class Box(NamedTuple):
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def read_header(encoded: bytes) -> Header:
    """Format and upright size of a picture, without decoding it. Raises DamagedImage with the reason."""
    if not encoded:
        raise DamagedImage("empty: zero bytes")
    header = _jpeg_header(encoded) if encoded[:3] == b"\xff\xd8\xff" else None
    if header is None:
        with open_with_pillow(encoded) as opened:
            orientation, size = _pillow_orientation(opened, encoded), (opened.height, opened.width)
            is_swapped = orientation >= 5
            if opened.format == "TIFF":  # Pillow decodes these upright, and told the size of it where the tag is TIFF's
                is_swapped ^= opened.tag_v2.get(_ORIENTATION, 1) >= 5  # type: ignore[attr-defined]
                orientation = 1
            size = size[::-1] if is_swapped else size
            header = Header(str(opened.format), *size, is_fast=False, orientation=orientation)
    if header.height * header.width > MOST_PIXELS:
        raise DamagedImage(f"{header.width}×{header.height} pixels are more than the limit of {MOST_PIXELS:,}")
    return header


def decode_crop(
    encoded: bytes, header: Header, box: Box, *, size: int, channels: int, interpolation: str = "bilinear"
) -> Tensor:
    """The part `box` of the upright picture, resized to uint8 (channels, size, size), antialiased.

    Where it is decoded smaller, `box` is moved to the grid of that (see `snap`). Raises DamagedImage.
    """
    stored = snap(_stored_box(box, header), size)
    part = _decode(encoded, header, stored, choose_reduction(stored, size), channels)
    return resize(torch.from_numpy(_upright(part, header.orientation)).permute(2, 0, 1), size, interpolation)


def decode_whole(encoded: bytes, header: Header) -> NDArray[np.uint8]:
    """All pixels of the upright picture, uint8 (height, width, 3). Raises DamagedImage."""
    return _upright(_decode(encoded, header, Box(0, 0, *header.stored_size), 1, 3), header.orientation)


def decode_numbers(encoded: bytes) -> NDArray[Any]:
    """The stored numbers (height, width) of an upright picture of one channel or with a palette, as of a map of
    classes. Raises DamagedImage.
    """
    header = read_header(encoded)
    with open_with_pillow(encoded) as opened:
        if opened.mode not in ("L", "P", "1", "I;16"):
            raise DamagedImage(f"a map of classes has one channel, not {len(opened.getbands())}")
        return _upright(np.asarray(opened), header.orientation)


def find_damage(encoded: bytes, header: Header) -> str:
    """Decodes the whole picture, at low resolution where that is possible; what its decoder warns of, or "".

    Raises DamagedImage where `decode_crop` does.
    """
    height, width = header.stored_size
    warning = ""
    if header.is_fast:
        try:
            reduced = {"min_height": -(-height // 8), "min_width": -(-width // 8), "min_factor": 1}
            simplejpeg.decode_jpeg(encoded, "GRAY", **reduced, strict=True)
            return ""
        except ValueError as error:
            if not str(error).startswith("tj"):  # of that library: a kind of JPEG that it does not decode
                warning = str(error)
    decode_crop(encoded, header, Box(0, 0, header.height, header.width), size=8, channels=3)
    return warning


@contextmanager
def open_with_pillow(encoded: bytes) -> Iterator[Image.Image]:
    """Pillow's picture, not yet decoded, of one of the formats in `SUFFIXES`; whatever Pillow raises inside is a
    DamagedImage.
    """
    try:
        opened = Image.open(io.BytesIO(encoded), formats=list(SUFFIXES))
    except Image.DecompressionBombError as error:
        raise DamagedImage(f"decompression bomb: {error}") from error
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise DamagedImage(stand_in(encoded[:64]) or "not an image in any known format") from error
    try:
        with opened:
            yield opened
    except DamagedImage:
        raise
    except Exception as error:
        raise DamagedImage(f"damaged image: {str(error) or type(error).__name__}") from error


def resize(image: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """`image` uint8 (c, h, w) at (c, size, size); antialiased, "bilinear" or "bicubic", as Pillow does it."""
    if image.shape[1:] == (size, size):
        return image
    return F.interpolate(image[None], (size, size), mode=interpolation, antialias=True, align_corners=False)[0]


def choose_reduction(box: Box, size: int) -> int:
    """By how much (1, 2, 4 or 8) a picture may be decoded smaller when `box` is to become size × size."""
    for reduction in _REDUCTIONS:
        if min(box.height, box.width) >= _SMALLEST_RATIO * reduction * size:
            return reduction
    return 1


def snap(box: Box, size: int) -> Box:
    """`box` moved to the grid on which a reduced decoding can cut it out without shifting the picture."""
    grid = choose_reduction(box, size)
    return Box(*(value // grid * grid for value in box))


def _stored_box(box: Box, header: Header) -> Box:
    """Where the part `box` of the upright picture lies in the stored one."""
    top, left, height, width = box
    rows, columns = header.stored_size
    if header.orientation >= 5:
        top, left, height, width = left, top, width, height
    if header.orientation in _BOTTOM_FIRST:
        top = rows - top - height
    if header.orientation in _RIGHT_FIRST:
        left = columns - left - width
    return Box(top, left, height, width)


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Stored pixels (height, width, …) as they are to be seen."""
    if orientation == 1:
        return pixels
    if orientation in _BOTTOM_FIRST:
        pixels = pixels[::-1]
    if orientation in _RIGHT_FIRST:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if orientation >= 5 else pixels)


def _jpeg_header(encoded: bytes) -> Header | None:
    """The header of a JPEG that libjpeg-turbo decodes. None for others, which are left to Pillow: CMYK, arithmetic,
    lossless, noise between the segments, or an end that is missing.
    """
    at, frame, end = 2, 0, len(encoded) - 9
    exif, xmp = b"", b""
    while at < end and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4])
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xE1:
            segment = encoded[at + 4 : at + 2 + length]
            if segment.startswith(b"Exif\0\0"):
                exif += segment[6:]
            elif segment.startswith(_XMP):
                xmp = segment
        elif marker in _FRAME_MARKERS:
            if frame:
                return None
            frame = at
        elif marker not in _SEGMENTS:
            return None
        elif marker == 0xDA:
            break
        at += 2 + length
    else:
        return None
    height, width = int.from_bytes(encoded[frame + 5 : frame + 7]), int.from_bytes(encoded[frame + 7 : frame + 9])
    bits, components = encoded[frame + 4], encoded[frame + 9]
    if not frame or bits != 8 or components not in (1, 3) or not height or not width:
        return None
    segments = _segments_before_end(encoded, at)
    if segments is None:
        return None
    orientation = _exif_orientation(exif) if exif else 0
    if not orientation and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        orientation = int(match[1])
    orientation = orientation if 1 <= orientation <= 8 else 1
    size = (width, height) if orientation >= 5 else (height, width)
    is_simple = encoded[frame + 1] != 0xC2 and segments == 0
    return Header("JPEG", *size, True, frame if is_simple else 0, orientation)


def _segments_before_end(encoded: bytes, at: int) -> int | None:
    """How many segments follow the first scan of a JPEG, whose header is at `at`, until its end; None without an end.

    The end of a thumbnail in the header, or of a picture behind this one, does not count.
    """
    segments, at = 0, at + 2 + int.from_bytes(encoded[at + 2 : at + 4])
    data = np.frombuffer(encoded, np.uint8)
    marks = (data[at:-1] == 0xFF) & (data[at + 1 :] != 0)  # within a scan 0xFF is followed by 0
    first = at + int(marks.argmax()) if len(marks) else at
    if encoded[first : first + 2] == b"\xff\xd9":
        return 0
    for place in (at + np.flatnonzero(marks)).tolist():
        marker = encoded[place + 1]
        if place < at or 0xD0 <= marker <= 0xD7 or marker == 0xFF:  # within a segment, or of the scan, or a fill byte
            continue
        if marker == 0xD9 or marker not in _SEGMENTS:
            return segments if marker == 0xD9 else None
        segments, at = segments + 1, place + 2 + int.from_bytes(encoded[place + 2 : place + 4])
    return None


def _exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, or 0 where it is not told."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        if order:
            (start,) = struct.unpack_from(f"{order}L", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, start)
            for place in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind, values, value = struct.unpack_from(f"{order}HHLH", exif, place)
                if tag == _ORIENTATION and kind == 3 and values == 1:
                    return int(value)
        # Anything else is rare. A damaged note on how a picture is turned is no damage of the picture.
        found = Image.Exif()
        found.load(exif)
        return int(found.get(_ORIENTATION, 0))
    except Exception:
        return 0


def _pillow_orientation(opened: Image.Image, encoded: bytes) -> int:
    """How a picture that Pillow has decoded becomes upright."""
    if opened.format == "PNG" and not _may_be_turned(encoded):
        return 1  # `getexif` would decode the whole picture, since the data may stand behind the pixels
    try:
        orientation = int(opened.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _may_be_turned(encoded: bytes) -> bool:
    """Whether a PNG has a chunk that can hold its orientation."""
    at = 8
    while kind := encoded[at + 4 : at + 8]:
        start = encoded[at + 8 : at + 32].lower()
        if kind == b"eXIf" or (kind.endswith(b"Xt") and (b"exif" in start or b"xmp" in start)):
            return True
        at += 12 + int.from_bytes(encoded[at : at + 4])
    return False


def _decode(encoded: bytes, header: Header, box: Box, reduction: int, channels: int) -> NDArray[np.uint8]:
    """The part `box` of the stored picture, uint8 (rows, columns, channels), up to `reduction` times smaller."""
    if header.is_fast:
        try:
            pixels = _decode_jpeg(encoded, header, box.top + box.height, reduction, channels)
        except Exception:  # Pillow decides whether that is damage
            return _decode_with_pillow(encoded, header, box, reduction, channels)
        top, left = box.top // reduction, box.left // reduction
        return pixels[top : top + box.height // reduction, left : left + box.width // reduction]
    return _decode_with_pillow(encoded, header, box, reduction, channels)


def _decode_jpeg(encoded: bytes, header: Header, bottom: int, reduction: int, channels: int) -> NDArray[np.uint8]:
    """Pixels (rows ≥ bottom/reduction, width/reduction, channels)."""
    stored_height, width = header.stored_size
    height = min(stored_height, -(-(bottom + _CONTEXT_ROWS) // 16) * 16)
    if header.frame and height < stored_height:
        at = header.frame + 5
        encoded = encoded[:at] + height.to_bytes(2) + encoded[at + 2 :]
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        encoded,
        "GRAY" if channels == 1 else "RGB",
        min_height=-(-height // reduction) if reduction > 1 else 0,
        min_width=-(-width // reduction) if reduction > 1 else 0,
        min_factor=1,
        # Of one baseline scan all that can be wrong is some pixels, which Pillow accepts, too. Elsewhere libjpeg-turbo
        # takes errors that come after a warning for warnings.
        strict=not header.frame,
    )
    return pixels


def _decode_with_pillow(encoded: bytes, header: Header, box: Box, reduction: int, channels: int) -> NDArray[np.uint8]:
    """See `_decode`, of anything that Pillow reads; animations show their first picture."""
    mode = "L" if channels == 1 else "RGB"
    reduction = reduction if box.height * box.width > _LARGE else 1
    pixels = np.empty((box.height // reduction, box.width // reduction, channels), np.uint8)
    rows = max(1, _STRIP // (box.width * reduction)) * reduction
    with open_with_pillow(encoded) as opened:
        opened.load()
        if opened.mode == "F":
            raise DamagedImage("floating-point pixels have no known range")
        if (opened.height, opened.width) != header.stored_size:
            raise DamagedImage("damaged image: its header and its pixels are of different sizes")
        for top in range(0, box.height, rows):
            height = min(rows, box.height - top)
            corner = box.left, box.top + top
            strip = opened.crop((*corner, corner[0] + box.width, corner[1] + height))
            strip = _eight_bit(strip).convert(mode)
            strip = strip.reduce(reduction) if reduction > 1 else strip
            pixels[top // reduction : (top + height) // reduction] = np.asarray(strip).reshape(-1, *pixels.shape[1:])
    return pixels


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight (Pillow would clip it), palettes with transparency made plain."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture
