"""A picture is damaged if neither libjpeg-turbo nor Pillow reads it, whichever part is asked for; nothing else is."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isoflop.data import check, convert, open_source
from isoflop.data.decode import Box, DamagedImage, decode_crop, decode_whole, find_damage, read_header
from isoflop.data.records import read_image_file
from isoflop.errors import DataError
from tests.data.pictures import encoded, picture

CASES = Path(__file__).parent / "cases"  # small files from public bug reports on other readers of pictures


def with_thumbnail(content: bytes) -> bytes:
    """The JPEG with a whole JPEG in its EXIF data, as cameras write it."""
    thumbnail = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + encoded(picture(99, 60, 80))
    return content[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail + content[2:]


def noisy(height: int = 90, width: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


KINDS = {
    "baseline": encoded(noisy(), quality=80),
    "thumbnail": with_thumbnail(encoded(noisy(), quality=80)),
    "4:2:0": encoded(noisy(), quality=80, subsampling="4:2:0"),
    "restart markers": encoded(noisy(), quality=80, restart_marker_blocks=3),
    "progressive": encoded(noisy(), quality=80, progressive=True),
    "progressive, thumbnail": with_thumbnail(encoded(noisy(), quality=80, progressive=True)),
    "grey": encoded(noisy().convert("L")),
    "CMYK": encoded(noisy().convert("CMYK")),
    "CMYK, thumbnail": with_thumbnail(encoded(noisy().convert("CMYK"))),
}
TRAILERS = {"": b"", "zeros": bytes(400), "another picture": encoded(picture(3)), "an end": b"\0\xff\xd9"}
BOXES = (Box(0, 0, 8, 8), Box(20, 30, 16, 24), Box(82, 62, 8, 8), Box(0, 0, 90, 70))


def pillow_reads(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
    except Exception:
        return False
    return True


def is_read(content: bytes, box: Box) -> bool:
    try:
        decode_crop(content, read_header(content), box, size=8, channels=3)
    except DamagedImage:
        return False
    return True


def is_found_sound(content: bytes) -> bool:
    try:
        find_damage(content, read_header(content))
    except DamagedImage:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_damaged_for_every_crop(kind: str) -> None:
    content = KINDS[kind]
    assert all(is_read(content, box) for box in BOXES)
    for cut in [*(len(content) * share // 100 for share in range(5, 100, 5)), len(content) - 40]:
        assert not pillow_reads(content[:cut])
        assert [is_read(content[:cut], box) for box in BOXES] == [False] * 4, cut
        assert not is_found_sound(content[:cut])


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_behind_a_picture_changes_nothing(kind: str, trailer: str) -> None:
    content = KINDS[kind] + TRAILERS[trailer]
    assert np.array_equal(
        decode_whole(content, read_header(content)), decode_whole(KINDS[kind], read_header(KINDS[kind]))
    )
    assert find_damage(content, read_header(content)) == ""
    assert pillow_reads(content)


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_verdict_for_all_crops_and_for_the_check(kind: str, trailer: str) -> None:
    """60 damages each: cuts with something behind them, and bytes that are flipped."""
    rng = np.random.default_rng(len(kind) + len(trailer))
    for number in range(60):
        damaged = bytearray(KINDS[kind])
        if number % 3 == 0:
            del damaged[int(rng.integers(30, len(damaged))) :]
        for place in rng.integers(2, len(damaged), int(rng.integers(0, 4))):
            damaged[place] = rng.integers(0, 256)
        content = bytes(damaged) + TRAILERS[trailer]
        try:
            header = read_header(content)
        except DamagedImage:
            assert not pillow_reads(content)
            continue
        if header.height * header.width > 1 << 20:  # a size that the damage made up
            continue
        side = min(8, header.height, header.width)
        boxes = [Box(0, 0, side, side), Box(header.height - side, header.width - side, side, side)]
        verdicts = {is_read(content, box) for box in boxes} | {is_found_sound(content)}
        assert len(verdicts) == 1, number
        assert verdicts.pop() == pillow_reads(content), number


@pytest.mark.parametrize(
    "name", ["valid_icc_after_SOF.jpg", "valid_icc_missing_chunk.jpeg", "valid_weird_sampling.jpeg"]
)
def test_jpegs_that_pillow_reads_are_read_with_its_pixels(name: str) -> None:
    content = (CASES / name).read_bytes()
    header = read_header(content)
    expected = np.asarray(Image.open(CASES / name).convert("RGB"))
    assert (header.format, header.height, header.width) == ("JPEG", *expected.shape[:2])
    assert np.array_equal(decode_whole(content, header), expected)
    side = min(header.height, header.width)
    shown = decode_crop(content, header, Box(0, 0, side, side), size=side, channels=3)
    assert np.array_equal(shown.permute(1, 2, 0).numpy(), expected[:side, :side])


def test_a_whole_picture_of_a_rare_kind_is_not_suspicious() -> None:
    content = (CASES / "valid_weird_sampling.jpeg").read_bytes()
    assert find_damage(content, read_header(content)) == ""


@pytest.mark.parametrize("noise", [b"\0\0\0", b"\xff\xff\xff", b"\0" * 50])
def test_noise_between_the_segments_of_a_header_is_skipped_as_pillow_does(noise: bytes) -> None:
    at = KINDS["baseline"].index(b"\xff\xdb")
    content = KINDS["baseline"][:at] + noise + KINDS["baseline"][at:]
    expected = np.asarray(Image.open(io.BytesIO(KINDS["baseline"])).convert("RGB"))
    assert pillow_reads(content)
    assert np.array_equal(decode_whole(content, read_header(content)), expected)


@pytest.mark.parametrize("sampling", [0x41, 0x14, 0x31, 0x22, 0x42])
def test_jpegs_of_rare_samplings_are_read(sampling: int) -> None:
    """The header claims another sampling: what the data then mean is for the decoders to say, and they agree."""
    content = bytearray(encoded(picture(4, 64, 64), subsampling="4:4:4", quality=70))
    content[content.index(b"\xff\xc0") + 11] = sampling
    if pillow_reads(bytes(content)):
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(decode_whole(bytes(content), read_header(bytes(content))), expected)
    else:
        assert not is_read(bytes(content), Box(0, 0, 8, 8))


@pytest.mark.parametrize("name", ["damaged_avif.jpg", "dds_called.png", "eps_endless_loop.png"])
def test_what_is_of_no_format_that_is_read_or_breaks_its_decoder_is_damage(name: str, tmp_path: Path) -> None:
    assert not is_read((CASES / name).read_bytes(), Box(0, 0, 1, 1))
    (tmp_path / "a").mkdir()
    for k in range(8):
        picture(k).save(tmp_path / "a" / f"{k}.png")
    (tmp_path / "a" / name).write_bytes((CASES / name).read_bytes())
    assert [Path(damage.name).name for damage in check(str(tmp_path)).broken] == [name]
    source = open_source(f"folder:{tmp_path}?decode=each", split="train", image_size=8, heldout=0)
    assert source.read(np.arange(9))[0].shape == (9, 3, 8, 8)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_damaged_bytes_of_any_format_are_read_or_damage(file_format: str) -> None:
    rng = np.random.default_rng(0)
    good = encoded(picture(5), file_format)
    for number in range(60):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), 1 + number % 4):
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        if number % 5 == 0:
            del damaged[int(rng.integers(0, len(good))) :]
        is_read(bytes(damaged), Box(0, 0, 4, 4))
        is_found_sound(bytes(damaged))


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for k in range(8):
        picture(k).save(tmp_path / "a" / f"{k}.png")
    os.mkfifo(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    with pytest.raises(DamagedImage, match="not a regular file"):
        read_image_file(tmp_path / "a" / "x.png")
    report = check(str(tmp_path))
    assert {Path(damage.name).name for damage in report.broken} == {"zero.png", "loop.png"}  # the pipe is left out
    source = open_source(f"folder:{tmp_path}?decode=each", split="train", image_size=8, heldout=0)
    assert len(source.read(np.arange(10))[0]) == 10
    with pytest.raises(DataError, match="2 of 10 images are damaged"):
        open_source(f"folder:{tmp_path}?decode=once", split="train", image_size=8, heldout=0)
    assert len(convert(str(tmp_path), tmp_path / "out").left_out) == 2
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"a/{k}.png,a\n" for k in range(8)) + "a/x.png,a\n")
    assert [damage.reason for damage in check(f"table:{table}").broken] == ["unreadable: not a regular file"]
