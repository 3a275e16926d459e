"""Random damage to every kind of file that is read. `python -m tests.promises.fuzz KIND FIRST [LAST]` repeats some.

Whatever the damage, its file is healed, refused in one line, or counted as damaged: no other exception, no hang, and
memory within a bound. Damages are numbered; kind and number seed all that is random about one.
"""

import csv
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import features
from safetensors.torch import load_file, save_file

from isoflop.cli import main
from isoflop.data import batches, check, open_source
from isoflop.data.decode import Box, decode_crop, decode_whole, find_damage, read_header
from isoflop.errors import IsoflopError
from isoflop.models import create_model
from isoflop.models.interop.transfer import read_weights
from isoflop.report.watch.server import LiveRun, run_snapshot
from isoflop.study import Store
from isoflop.study.answer import answer_document, answer_from
from isoflop.study.planned import Catalogue
from isoflop.train import read_journal, train
from isoflop.train.checkpoints import latest_checkpoint
from isoflop.transfer.backbones import open_backbone
from tests.data.pictures import encoded, picture
from tests.promises.chaos import EVERY_STEP, run_config

Read = Callable[[Path], Any]

MOST_BYTES = 2_500_000_000  # that a file may add to the memory of this process: 100 million pixels may be decoded
MOST_SECONDS = 300.0  # of computing
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
VALUES = (
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "NaN",
    "-Infinity",
    "9" * 30,
    "[]",
    "{}",
    '""',
    '"\\u0000"',
    '"../x"',
    "[[]]",
)


@dataclass(frozen=True)
class Kind:
    """Some files as they are written, and who reads them.

    `make` writes them into an empty folder. `harm` says which of them are damaged, by a pattern of `Path.glob`. `read`
    reads the folder; what it returns is what the whole folder gives, where `is_healed`.
    """

    make: Callable[[Path], Any]
    read: Read
    harm: str = "**/*"
    is_healed: bool = False


class Hung(Exception):
    """Reading took more computing than it may."""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` with up to three random damages."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content = _damaged_once(content, chance)
    return content


def _damaged_once(content: bytes, chance: random.Random) -> bytes:
    size = len(content)
    at, end = sorted((chance.randrange(size + 1), chance.randrange(size + 1)))
    end = min(end, at + chance.choice((1, 4, 16, 256, 1 << 20)))
    early = chance.randrange(min(size, 256) + 1)  # where headers lie
    what = chance.choice(
        ("bits", "cut", "insert", "swap", "zeros", "double", "size", "size", "remove", "value", "value")
    )
    if what == "bits":
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8, 64)) if size else 0):
            changed[chance.choice((chance.randrange(size), chance.randrange(min(size, 256))))] ^= 1 << chance.randrange(
                8
            )
        return bytes(changed)
    if what == "cut":
        return content[:at]
    if what == "insert":
        return content[:at] + chance.randbytes(chance.choice((1, 2, 7, 512))) + content[at:]
    if what == "swap":
        other = content[end : end + (end - at)]
        return content[:at] + other + content[at:end] + content[end + len(other) :]
    if what == "zeros":
        return content[:at] + bytes(end - at) + content[end:]
    if what == "double":
        return content[:end] + content[at:]
    if what == "remove":
        return content[:at] + content[end:]
    if what == "size":
        place = chance.choice((at, early, early))
        width, order = chance.choice((1, 2, 4, 8)), chance.choice("<>")
        number = struct.pack(f"{order}Q", chance.choice(EXTREMES))
        return content[:place] + (number[:width] if order == "<" else number[8 - width :]) + content[place + width :]
    return _other_value(content, chance)


def _other_value(content: bytes, chance: random.Random) -> bytes:
    """Another value for one of the words or numbers of a text."""
    places = (
        [k for k in range(len(content)) if content[k : k + 1] in b":,[" and k + 1 < len(content)] if content else []
    )
    if not places or b"\0" in content[:512]:
        return content[::-1] if len(content) < 64 else content[: len(content) // 2]
    start = chance.choice(places) + 1
    end = next((k for k in range(start, len(content)) if content[k : k + 1] in b",]}\n"), len(content))
    return content[:start] + chance.choice(VALUES).encode() + content[end:]


# Pictures


def read_picture(content: bytes) -> None:
    """Decodes a picture in each way that there is: all find it whole, or all find it damaged."""
    header = read_header(content)
    side = max(1, min(header.height, header.width) // 2)
    ways: list[Callable[[], Any]] = [
        lambda: find_damage(content, header),
        lambda: decode_whole(content, header),
        lambda: decode_crop(content, header, Box(0, 0, header.height, header.width), size=8, channels=3),
        lambda: decode_crop(content, header, Box(0, 0, side, side), size=8, channels=1),
    ]
    refused = []
    for way in ways:
        try:
            way()
        except IsoflopError as error:
            refused.append(error)
    assert len(refused) in (0, len(ways)), f"damaged in {len(refused)} of {len(ways)} ways: {refused}"
    if refused:
        raise refused[0]


def _pictures() -> dict[str, list[bytes]]:
    small, flat = picture(1), picture(2).convert("P")
    exif = small.getexif()
    exif[0x0112] = 6
    made = {
        "jpeg": [encoded(small, exif=exif), encoded(small, progressive=True), encoded(small.convert("L")),
                 encoded(small.convert("CMYK")), encoded(picture(3, 90, 120), quality=60)],
        "png": [encoded(small, "PNG"), encoded(flat, "PNG"), encoded(small.convert("RGBA"), "PNG")],
        "webp": [encoded(small, "WEBP"), encoded(small.convert("RGBA"), "WEBP", lossless=True)],
        "gif": [encoded(flat, "GIF"), encoded(flat, "GIF", save_all=True, append_images=[flat.rotate(90)])],
        "bmp": [encoded(small, "BMP"), encoded(flat, "BMP")],
        "tiff": [encoded(small, "TIFF", compression=name) for name in (None, "tiff_lzw", "jpeg", "packbits")],
        "ppm": [encoded(small, "PPM"), encoded(small.convert("1"), "PPM")],
    }  # fmt: skip
    if features.check("avif"):
        made["avif"] = [encoded(small, "AVIF")]
    if features.check("jpg_2000"):
        made["jpeg2000"] = [encoded(small, "JPEG2000")]
    return made


def _write_pictures(name: str, folder: Path) -> None:
    for number, content in enumerate(_pictures()[name]):
        (folder / f"{number}.{name}").write_bytes(content)


def _read_pictures(folder: Path) -> None:
    refused = []
    for path in sorted(folder.iterdir()):
        try:
            read_picture(path.read_bytes())
        except IsoflopError as error:
            refused.append(error)
    if refused:
        raise refused[0]


# Layouts of data sets


def _image(number: int) -> bytes:
    return encoded(picture(number, 12, 12), "PNG")


def _write_folder(folder: Path) -> None:
    for number in range(12):
        path = folder / "data" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_image(number))


def _write_table(folder: Path) -> None:
    (folder / "data").mkdir()
    lines: list[tuple[str, str]] = [("path", "label")]
    for number in range(12):
        (folder / "data" / f"{number}.png").write_bytes(_image(number))
        lines.append((f"{number}.png", "ab"[number % 2]))
    with (folder / "data" / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def _write_parquet(folder: Path) -> None:
    (folder / "data").mkdir()
    rows = [{"bytes": _image(number), "path": f"{number}.png"} for number in range(12)]
    names = {"names": ["a", "b"], "_type": "ClassLabel"}
    table = pa.table({"image": rows, "label": [number % 2 for number in range(12)]})
    known = {"info": {"features": {"image": {"_type": "Image"}, "label": names}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(known)}), folder / "data" / "train.parquet")


def _write_shards(folder: Path) -> None:
    (folder / "data").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "data" / f"train-{shard}.tar", "w") as tar:
            for number in range(6 * shard, 6 * shard + 6):
                members = ((f"{number:03d}.png", _image(number)), (f"{number:03d}.cls", b"01"[number % 2 :][:1]))
                for name, content in members:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _write_coco(folder: Path) -> None:
    (folder / "data" / "images").mkdir(parents=True)
    images, boxes = [], []
    for number in range(8):
        (folder / "data" / "images" / f"{number}.png").write_bytes(_image(number))
        images.append({"id": number, "file_name": f"{number}.png", "width": 12, "height": 12})
        outline = [[1, 1, 9, 1, 9, 8, 1, 8]]
        boxes.append({"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [1, 1, 8, 7],
                      "area": 56, "segmentation": outline, "iscrowd": 0})  # fmt: skip
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "data" / "train.json").write_text(json.dumps(content))


def _read_data(uri: str, folder: Path) -> list[Any]:
    """Every sample of the data, as a run gets them; and what `data check` says."""
    uri = uri.format(folder / "data")
    report = check(uri)
    if not report.is_usable:
        raise IsoflopError("counted")
    source = open_source(uri, split="train", image_size=8, heldout=2)
    plan = {"seed": 0, "batch_size": 4, "start_step": 0, "stop_step": 3}
    return [batch.images.numpy().tobytes() for batch in batches(source, **plan)]  # type: ignore[arg-type]


# Weights


def _tiny() -> dict[str, torch.Tensor]:
    return create_model("vit_w8d1p8", num_classes=2, image_size=16, seed=0).state_dict()


def _write_safetensors(folder: Path) -> None:
    save_file(_tiny(), folder / "w.safetensors", metadata={"isoflop": "vit_w8d1p8"})


def _read_safetensors(folder: Path) -> None:
    open_backbone(folder / "w.safetensors", image_size=16)


def _write_npz(folder: Path) -> None:
    arrays = {f"params/{k}": np.arange(12, dtype=np.float32) for k in range(4)}
    np.savez(folder / "w.npz", **arrays)
    np.savez_compressed(folder / "z.npz", **arrays)


def _read_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_weights(path)


def _write_pth(folder: Path) -> None:
    torch.save({"model": _tiny(), "epoch": 3}, folder / "w.pth")
    torch.save(_tiny(), folder / "old.pt", _use_new_zipfile_serialization=False)


def _write_timm(folder: Path) -> None:
    import timm

    model = timm.create_model("test_vit", num_classes=2)
    config = {"architecture": "test_vit", "num_classes": 2, "num_features": 64, "model_args": {"num_classes": 2},
              "label_names": ["a", "b"],
              "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")


def _write_hugging_face(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=1, intermediate_size=48, image_size=16,
                       patch_size=8, id2label={0: "a", 1: "b"})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))


def _read_weights(folder: Path) -> None:
    open_backbone(folder)


# Runs and studies

RUN = run_config(
    steps=6,
    batch_size=8,
    log_every=1,
    evaluation={"every": 3},
    data={"source": "fractals?classes=5&images=40", "heldout": 8},
    model={"name": "vit_w8d1p8"},
    schedule={"warmup": 1, "cooldown": 0.3},
    checkpoint=EVERY_STEP,
)


def _write_run(folder: Path) -> None:
    train(RUN, folder / "run")


def _write_half_a_run(folder: Path) -> None:
    asked = iter([False] * 4)
    train(RUN, folder / "run", stop=lambda: next(asked, True))


def _resume(folder: Path) -> dict[str, Any]:
    """The weights of the run when it has been started again."""
    state = train(RUN, folder / "run").state
    assert state == "done", state
    return {name: tensor.numpy() for name, tensor in load_file(folder / "run" / "model.safetensors").items()}


def _is_same(found: Any, expected: Any) -> bool:
    """Samples are the same bits; weights are the same to the rounding of their products."""
    if not isinstance(expected, dict):
        return bool(found == expected)
    return found.keys() == expected.keys() and all(
        np.allclose(found[name], expected[name], atol=1e-4) for name in found
    )


def _watch(folder: Path) -> None:
    read_journal(folder / "run")
    live = LiveRun(folder / "run")
    live.refresh()
    json.dumps(run_snapshot(live), allow_nan=False)


def _read_run(folder: Path) -> None:
    open_backbone(folder / "run")


def _read_checkpoint(folder: Path) -> None:
    latest_checkpoint(folder / "run" / "checkpoints")


def _write_study(folder: Path) -> None:
    from tests.study.test_study import toy_study

    config = toy_study(folder / "toy")
    catalogue, store = Catalogue(config), Store(folder / "toy")
    (folder / "toy").mkdir()
    store.claim(config, catalogue.source.fingerprint)
    rows = []
    for budget in config.study.budgets or ():
        for size in ("vit_w8d2p8", "vit_w12d2p8"):
            for rate in (0.01, 0.02):
                run = catalogue.run("vit", size, budget, rate)
                loss = 1.0 + 3e3 * run.flops_per_image**-0.6 + 5.0 * run.images**-0.4 + rate
                status = {"state": "done", "step": run.config.steps, "steps": run.config.steps, "seconds": 1.0,
                          "heldout_loss": loss, "heldout_accuracy": 0.5, "error": ""}  # fmt: skip
                directory = store.run_directory(run.run_id)
                (directory / "attempts" / "1").mkdir(parents=True)
                (directory / "status.json").write_text(json.dumps(status))
                (directory / "config.json").write_text(json.dumps(run.config.model_dump(mode="json")))
                lines = [{"kind": "start", "step": 0, "origin": "scratch"}] + [
                    {"kind": "train", "step": step, "since": step - 9, "images": step * 16, "samples": "", "loss": loss}
                    for step in range(9, 90, 9)
                ]
                journal = "".join(json.dumps(line) + "\n" for line in lines)
                (directory / "attempts" / "1" / "metrics-0001.jsonl").write_text(journal)
                rows.append(store.row(run, None))
    store.write_rows(rows)
    store.write("answer.json", answer_document(answer_from(config, catalogue, rows)))


def _read_study(folder: Path) -> None:
    for command in (["study", "status"], ["study", "answer"], ["report"]):
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main([*command, str(folder / "toy")])
            except SystemExit as end:
                status = int(end.code or 0)
        assert status in (0, 2), (command, status, err.getvalue())
        told = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
        assert len(told) <= 1, (command, told)
        assert status == 0 or told[0].startswith("error: "), (command, told)


# Caches


def _write_cached(write: Callable[[Path], None], uri: str, folder: Path) -> None:
    write(folder)
    _read_cached(uri, folder)


def _read_cached(uri: str, folder: Path) -> list[Any]:
    with _cache_at(folder / "cache"):
        source = open_source(uri.format(folder / "data"), split="train", image_size=8, heldout=2)
        plan: dict[str, Any] = {"seed": 0, "batch_size": 4, "start_step": 0, "stop_step": 3}
        return [(batch.images.numpy().tobytes(), batch.labels.tolist()) for batch in batches(source, **plan)]


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    import os

    before = os.environ.get("ISOFLOP_CACHE")
    os.environ["ISOFLOP_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ISOFLOP_CACHE"]
        else:
            os.environ["ISOFLOP_CACHE"] = before


DATA = {
    "folder": (_write_folder, "folder:{}", "**/*"),
    "table": (_write_table, "table:{}/table.csv", "**/*.csv"),
    "parquet": (_write_parquet, "parquet:{}", "**/*"),
    "shards": (_write_shards, "shards:{}", "**/*"),
    "coco": (_write_coco, "coco:{}", "**/*.json"),
}
FORMATS = {
    **{f"picture {name}": Kind(partial(_write_pictures, name), _read_pictures) for name in _pictures()},
    **{f"data {name}": Kind(write, partial(_read_data, uri), harm) for name, (write, uri, harm) in DATA.items()},
    "weights safetensors": Kind(_write_safetensors, _read_safetensors),
    "weights npz": Kind(_write_npz, _read_files),
    "weights pth": Kind(_write_pth, _read_files),
    "weights timm": Kind(_write_timm, _read_weights, "*.json"),
    "weights hugging face": Kind(_write_hugging_face, _read_weights, "*.json"),
}  # fmt: skip
OURS = {
    "journal": Kind(_write_run, _watch, "run/attempts/*/*"),
    "checkpoint": Kind(_write_run, _read_checkpoint, "run/checkpoints/*/*"),
    "finished run": Kind(_write_run, _read_run, "run/*"),
    "half a run": Kind(_write_half_a_run, _resume, "run/**/*", is_healed=True),
    "study": Kind(_write_study, _read_study),
    "cache of pictures": Kind(
        partial(_write_cached, _write_folder, "folder:{}?decode=once"),
        partial(_read_cached, "folder:{}?decode=once"),
        "cache/**/*",
        is_healed=True,
    ),
    "cache of shards": Kind(
        partial(_write_cached, _write_shards, "shards:{}?decode=each"),
        partial(_read_cached, "shards:{}?decode=each"),
        "cache/**/*",
        is_healed=True,
    ),
    "cache of parquet": Kind(
        partial(_write_cached, _write_parquet, "parquet:{}?decode=each"),
        partial(_read_cached, "parquet:{}?decode=each"),
        "cache/**/*",
        is_healed=True,
    ),
}
KINDS = FORMATS | OURS


@dataclass
class Made:
    """A kind's files, whole, and what they give."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    expected: Any = None


@cache
def made(name: str) -> Made:
    kind = KINDS[name]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    kind.make(folder)
    paths = sorted(p for p in folder.glob(kind.harm) if p.is_file() and not p.name.startswith(".lock"))
    found = Made(folder, [p.relative_to(folder) for p in paths])
    assert found.files, name
    with _here(name, 0, found) as place:
        found.expected = kind.read(place)
    return found


@contextmanager
def _here(name: str, number: int, whole: Made) -> Iterator[Path]:
    """A copy at the one place where all damages of a kind lie: messages and caches know places."""
    place = Path(tempfile.gettempdir()) / f"{whole.folder.name}-copy"
    shutil.copytree(whole.folder, place)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def attempt(name: str, number: int) -> str:
    """How damage `number` of a kind ends: "read", or the line that refuses it. AssertionError for any other end."""
    kind, whole, chance = KINDS[name], made(name), random.Random(f"{name} {number}")
    file = chance.choice(whole.files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def hung(*_: Any) -> None:
        raise Hung(f"more than {MOST_SECONDS:.0f} s of computing")

    with _here(name, number, whole) as place, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (place / file).write_bytes(damaged((place / file).read_bytes(), chance))
        previous = signal.signal(signal.SIGPROF, hung)
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            found = kind.read(place)
            if kind.is_healed:
                assert _is_same(found, whole.expected), "not what was written, and not refused"
            end = "read"
        except IsoflopError as error:
            end = str(error)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            raise AssertionError(f"{name} {number}: {file}: {type(error).__name__} at {where}: {error}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
    for line in (end, *(str(warning.message) for warning in told if issubclass(warning.category, UserWarning))):
        assert line, f"{name} {number}: {file}: refused without a word"
        assert "\n" not in line, f"{name} {number}: {file}: more than a line: {line!r}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MOST_BYTES, f"{name} {number}: {file}: {grown / 1e9:.1f} GB"
    return end


def _main(name: str, first: str, last: str = "") -> int:
    failures = 0
    for number in range(int(first), int(last or first) + 1):
        try:
            end = attempt(name, number)
            if not last:
                print(end)
        except AssertionError as error:
            failures += 1
            print(error, flush=True)
            if not last:
                traceback.print_exception(error)
    print(f"{name}: {failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
