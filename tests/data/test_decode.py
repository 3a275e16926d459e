"""Decoding: the same picture as Pillow's, from only as much of the file as is needed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.data.decode import Box, DamagedImage, choose_reduction, decode_crop, read_header, snap
from tests.data.pictures import encoded, picture, png_bomb


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return 100.0 if error == 0 else 10 * np.log10(255**2 / error)


def pillow_crop(content: bytes, box: Box, size: int, mode: str = "RGB") -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert(mode)
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))


def our_crop(content: bytes, box: Box, size: int, channels: int = 3) -> np.ndarray:
    pixels = decode_crop(content, read_header(content), box, size=size, channels=channels)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (channels, size, size)
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("box", [Box(0, 0, 200, 300), Box(17, 33, 60, 70), Box(3, 5, 64, 64), Box(150, 250, 50, 50)])
def test_a_crop_is_the_picture_that_pillow_gives(subsampling: str, progressive: bool, box: Box) -> None:
    """Also where the rows below the crop were never decoded."""
    content = encoded(picture(1, 200, 300), subsampling=subsampling, progressive=progressive, quality=90)
    assert choose_reduction(box, 80) == 1
    assert psnr(our_crop(content, box, 80), pillow_crop(content, box, 80)) >= 58


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_give_the_picture_that_pillow_gives(file_format: str) -> None:
    content = encoded(picture(2, 50, 60), file_format)
    assert psnr(our_crop(content, Box(5, 6, 40, 44), 32), pillow_crop(content, Box(5, 6, 40, 44), 32)) >= 58


def test_a_large_crop_is_decoded_smaller_and_looks_the_same() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
        (1600, 1200), Image.Resampling.BICUBIC
    )
    content = encoded(noise, quality=90)
    for box, reduction in ((Box(10, 20, 1100, 1300), 8), (Box(3, 7, 700, 700), 4), (Box(31, 1, 400, 301), 2)):
        snapped = snap(box, 64)
        assert choose_reduction(box, 64) == reduction
        assert all(value % reduction == 0 for value in snapped)
        assert psnr(our_crop(content, snapped, 64), pillow_crop(content, snapped, 64)) >= 40


@pytest.mark.parametrize("height", [31, 32, 33, 47, 48, 49])
def test_odd_heights_and_bottom_crops_are_right(height: int) -> None:
    content = encoded(picture(3, height, 50), subsampling="4:2:0")
    box = Box(height - 20, 10, 20, 20)
    assert np.array_equal(our_crop(content, box, 20), pillow_crop(content, box, 20))


def test_grey_pictures_are_the_luminance() -> None:
    content = encoded(picture(4, 60, 60))
    box = Box(0, 0, 60, 60)
    assert psnr(our_crop(content, box, 60, channels=1)[..., 0], pillow_crop(content, box, 60, "L")) >= 40


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "RGBA", "LA"])
def test_other_colour_models_become_rgb_as_in_pillow(mode: str) -> None:
    file_format = "JPEG" if mode == "CMYK" else "PNG"
    content = encoded(picture(5, 40, 40).convert(mode), file_format)
    box = Box(4, 4, 32, 32)
    assert psnr(our_crop(content, box, 32), pillow_crop(content, box, 32)) >= 58


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    content = encoded(Image.fromarray(ramp), "PNG")
    pixels = our_crop(content, Box(0, 0, 64, 64), 64)
    assert np.array_equal(pixels[..., 0], (ramp >> 8).astype(np.uint8))


def test_palettes_with_transparency_keep_their_colours() -> None:
    image = picture(6, 40, 40).quantize(16)
    content = encoded(image, "PNG", transparency=0)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(our_crop(content, Box(0, 0, 40, 40), 40), expected)


GOOD = encoded(picture(7, 200, 200), quality=90)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (b"not a picture at all", "not an image"),
        (GOOD[: len(GOOD) // 3], "truncated|not an image"),
        (GOOD[:-2], "truncated"),
        (GOOD[:20], "not an image"),
        (encoded(picture(8), "PNG")[:-60], "damaged"),
        (png_bomb(), "pixels|bomb"),
        (encoded(Image.fromarray(np.ones((8, 8), dtype=np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "cut to a third", "without its end", "only a header", "cut PNG", "bomb", "float"],
)
def test_damaged_pictures_are_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(DamagedImage, match=reason):
        decode_crop(content, read_header(content), Box(0, 0, 8, 8), size=8, channels=3)


def test_a_jpeg_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    at = GOOD.index(b"\xff\xc0") + 5
    bomb = GOOD[:at] + b"\xff\xff\xff\xff" + GOOD[at + 4 :]
    with pytest.raises(DamagedImage, match="65535×65535"):
        read_header(bomb)


def test_random_bytes_in_a_jpeg_never_do_worse_than_an_error() -> None:
    """200 files with random damage: a picture or a DamagedImage, nothing else."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(GOOD)
        for place in rng.integers(2, len(damaged), 8):
            damaged[place] = rng.integers(0, 256)
        try:
            our_crop(bytes(damaged), Box(0, 0, 50, 50), 32)
        except DamagedImage:
            refused += 1
    assert refused < 200
