"""Pictures are upright wherever they are decoded; Pillow's `exif_transpose` is the reference."""

import io
import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from isoflop.data import check, convert, open_source
from isoflop.data.decode import Box, choose_reduction, decode_crop, decode_whole, read_header
from isoflop.data.dense import CocoRecords, MapRecords, Objects
from isoflop.data.opening import open_records
from isoflop.data.sources.datasets import DatasetRecords
from tests.data.pictures import encoded, picture

ORIENTATIONS = range(1, 9)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def exif(orientation: int) -> bytes:
    noted = Image.Exif()
    noted[0x010F] = "a camera"
    noted[0x0112] = orientation
    return noted.tobytes()


def turned(orientation: int, file_format: str = "JPEG", image: Image.Image | None = None, **options: object) -> bytes:
    return encoded(image or picture(1, 60, 90), file_format, exif=exif(orientation), **options)


def upright(content: bytes, mode: str = "RGB") -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert(mode)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


LOSSLESS = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_format_is_upright_whole_and_in_crops(file_format: str, orientation: int) -> None:
    content = turned(orientation, file_format, **LOSSLESS.get(file_format, {}))
    expected = upright(content)
    header = read_header(content)
    assert (header.width, header.height) == expected.size
    assert np.array_equal(decode_whole(content, header), np.asarray(expected))
    for box in (Box(0, 0, *expected.size[::-1]), Box(3, 11, 20, 32), Box(header.height - 17, 0, 17, 16)):
        part = np.asarray(expected)[box.top : box.top + box.height, box.left : box.left + box.width]
        wanted = np.asarray(Image.fromarray(part).resize((24, 24), Image.Resampling.BILINEAR))
        shown = decode_crop(content, header, box, size=24, channels=3).permute(1, 2, 0).numpy()
        assert difference(shown, wanted) <= 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": "4:2:0"}, {"restart_marker_blocks": 2}])
def test_jpegs_of_every_kind_are_upright(options: dict[str, object], orientation: int) -> None:
    content = turned(orientation, image=picture(2, 61, 93), **options)
    header = read_header(content)
    assert header.is_fast
    expected = np.asarray(upright(content))
    box = Box(header.height - 40, 5, 40, 40)
    shown = decode_crop(content, header, box, size=40, channels=3).permute(1, 2, 0).numpy()
    assert np.array_equal(shown, expected[-40:, 5:45])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_cmyk_jpegs_are_upright(orientation: int) -> None:
    content = turned(orientation, image=picture(2, 61, 93).convert("CMYK"))
    header = read_header(content)
    assert not header.is_fast
    assert np.array_equal(decode_whole(content, header), np.asarray(upright(content)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_crop_that_is_decoded_smaller_shows_the_same_part(orientation: int) -> None:
    content = turned(orientation, image=picture(3, 1008, 1200), quality=95)
    header = read_header(content)
    box = Box(40, 80, 800, 808)  # on the grid of blocks, from each side
    assert choose_reduction(box, 64) == 8
    part = upright(content).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    wanted = np.asarray(part.resize((64, 64), Image.Resampling.BILINEAR)).astype(float)
    shown = decode_crop(content, header, box, size=64, channels=3).permute(1, 2, 0).numpy()
    assert 10 * np.log10(255**2 / np.mean((shown - wanted) ** 2)) >= 40


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_orientation_in_xmp_counts_where_exif_tells_none(orientation: int) -> None:
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        options: dict[str, object] = {"xmp": XMP % orientation}
        if file_format == "PNG":
            from PIL.PngImagePlugin import PngInfo

            chunks = PngInfo()
            chunks.add_itxt("XML:com.adobe.xmp", (XMP % orientation).decode())
            options = {"pnginfo": chunks}
        if file_format == "TIFF":
            options = {"tiffinfo": {700: XMP % orientation}}
        content = encoded(picture(4, 30, 50), file_format, **options)
        assert np.array_equal(decode_whole(content, read_header(content)), np.asarray(upright(content))), file_format


def test_odd_exif_means_what_it_means_to_pillow() -> None:
    """Of 500 damaged notes those that Pillow reads without complaint, and the others do no harm."""
    rng, compared = np.random.default_rng(0), 0
    plain = encoded(picture(5, 20, 30))
    for k in range(500):
        note = bytearray(exif(1 + k % 8))
        if k % 2:
            note[6:] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">H", 1 + k % 8) + bytes(8)
        for place in rng.integers(6, len(note), k // 50):
            note[place] = rng.integers(0, 256)
        content = plain[:2] + b"\xff\xe1" + (len(note) + 2).to_bytes(2) + bytes(note) + plain[2:]
        found = read_header(content).orientation
        try:
            with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(content)) as opened:
                told = opened.getexif().get(0x0112, 1)
        except Exception:  # Pillow does not read this note
            continue
        compared += 1
        assert found == (told if told in ORIENTATIONS else 1), bytes(note)
    assert compared > 200


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two classes of the same upright pictures, stored in every orientation and format."""
    for label in ("a", "b"):
        (tmp_path / "album" / label).mkdir(parents=True)
        for k in range(8):
            image = picture(10 + k, 48, 64)
            back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[k + 1]
            noted = Image.Exif()
            noted[0x0112] = back
            probe = Image.new("RGB", (1, 1))
            probe.info["exif"] = noted.tobytes()
            turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
            stored = image.transpose(Image.Transpose(turns[back])) if back != 1 else image
            suffix, options = (("png", {}), ("tif", {}))[k % 2] if label == "a" else ("webp", {"lossless": True})
            stored.save(tmp_path / "album" / label / f"{k}.{suffix}", exif=exif(k + 1), **options)
    return tmp_path / "album"


@pytest.mark.parametrize("decode", ["once", "each"])
def test_a_source_shows_upright_pictures(album: Path, decode: str) -> None:
    source = open_source(f"folder:{album}?decode={decode}", split="train", image_size=24, heldout=0)
    images, labels = source.read(np.arange(16))
    for k in range(8):
        wanted = picture(10 + k, 48, 64).crop((8, 0, 56, 48)).resize((24, 24), Image.Resampling.BILINEAR)
        for shown in images[[k, 8 + k]]:
            assert difference(shown.permute(1, 2, 0).numpy(), np.asarray(wanted)) <= 1
    assert labels.tolist() == [0] * 8 + [1] * 8


def test_check_tells_upright_sizes_and_conversion_keeps_pictures_upright(album: Path, tmp_path: Path) -> None:
    report = check(str(album))
    assert (report.widths, report.heights) == ((64, 64, 64), (48, 48, 48))
    assert not report.broken
    convert(str(album), tmp_path / "shards")
    records = open_records(f"shards:{tmp_path / 'shards'}", "train")
    for k in range(16):
        content = records.read(k)
        assert difference(decode_whole(content, read_header(content)), np.asarray(picture(10 + k % 8, 48, 64))) == 0


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_boxes_and_maps_of_dense_data_are_upright(tmp_path: Path, orientation: int) -> None:
    photograph, numbers = turned(orientation), Image.fromarray(np.arange(60 * 90, dtype=np.uint8).reshape(60, 90) % 7)
    classes = turned(orientation, "PNG", image=numbers)
    for kind, name, content in (("images", "a.jpg", photograph), ("annotations", "a.png", classes)):
        (tmp_path / kind / "train").mkdir(parents=True)
        (tmp_path / kind / "train" / name).write_bytes(content)
    expected = upright(photograph)
    maps = MapRecords(tmp_path, "train", classes=7)
    assert np.array_equal(maps.pixels(0), np.asarray(expected))
    assert np.array_equal(maps.truth(0), np.asarray(upright(classes, "L")))
    images = [{"id": 1, "file_name": "train/a.jpg", "width": expected.width, "height": expected.height}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 40, 20, 20], "iscrowd": 0}]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "train.json").write_text(json.dumps(document))
    boxes = CocoRecords(tmp_path, "train")
    assert np.array_equal(boxes.pixels(0), np.asarray(expected))
    truth = boxes.truth(0)
    assert isinstance(truth, Objects)
    assert truth.boxes.tolist() == [[3, 40, 23, 60]]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pil_pictures_of_a_data_set_are_upright(orientation: int) -> None:
    content = turned(orientation)
    dataset = [(Image.open(io.BytesIO(content)).convert("RGB"), 0)] * 2
    encoded_again = DatasetRecords(dataset, uri="own").read(0)
    shown = decode_whole(encoded_again, read_header(encoded_again))
    assert np.array_equal(shown, np.asarray(upright(content)))
