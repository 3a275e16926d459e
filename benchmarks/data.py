"""How fast and how well the data is ordered, generated, decoded and read, each claim beside its peers, in one run.

    python benchmarks/data.py [order | start | fractals | small | decode | shards | loader]... [--photos DIR]

Without names everything runs: about five minutes on one core. Times are of the processor, the best of several
rounds. The peers are the extra `bench`; one that is not installed is left out. `--photos` names a
folder of photographs to make the JPEGs from; without it they are made of 1/f noise.
"""

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from isoflop.data import batches, locate, open_source
from isoflop.data.decode import Box, decode_crop, read_header, snap
from isoflop.data.order import uniforms
from isoflop.data.source import IMAGENET
from isoflop.data.sources.arrays import ArraySource
from isoflop.data.sources.shards import ShardRecords
from isoflop.data.transforms import inception_box
from isoflop.train.device import normalize

SIZE = 224
Pipeline = Callable[[bytes, Box, bool], NDArray[np.uint8]]


def best_seconds(task: Callable[[], object], rounds: int = 3) -> float:
    """Processor seconds of the fastest of several runs of `task`."""
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        task()
        seconds.append(time.process_time() - began)
    return min(seconds)


def order() -> None:
    """Positions a second, and how random neighbours in the order are, beside grain's shuffle."""
    print("\n## Order\n")
    count = 1_000_000
    print("| N | million positions/s | lag-1 correlation | noise (2σ) | χ² of spacings | grain: lag-1 | grain: χ² |")
    print("|---|---|---|---|---|---|---|")
    for size in (1_280_000, 4 * 10**9, 2**40):
        positions = np.arange(count)
        seconds = best_seconds(lambda p=positions, n=size: locate(p, n, 0), rounds=7)
        own = quality(locate(positions, size, 0)[1] / size)
        peer = "– | –"
        if size < 2**32 and has("grain"):
            shuffled = import_module("grain").MapDataset.range(size).shuffle(seed=0)
            theirs = np.array([shuffled[k] for k in range(100_000)]) / size
            peer = "{:+.4f} | {:.2f}".format(*quality(theirs))
        noise = 2 / np.sqrt(count)
        print(f"| {size:,} | {count / seconds / 1e6:.0f} | {own[0]:+.5f} | {noise:.5f} | {own[1]:.2f} | {peer} |")


def quality(x: NDArray[np.float64]) -> tuple[float, float]:
    """Lag-1 correlation of numbers in [0, 1), and χ² of their spacings in 256 bins, per degree of freedom."""
    spacings = np.bincount(((x[1:] - x[:-1]) % 1 * 256).astype(int), minlength=256)
    expected = (len(x) - 1) / 256
    return float(np.corrcoef(x[:-1], x[1:])[0, 1]), float(((spacings - expected) ** 2 / expected).sum() / 255)


def start() -> None:
    """Seconds and megabytes until the first batch of positions, at the start and after a million steps."""
    print("\n## Start at N = 4·10⁹ (batch of 4,096)\n")
    for step in (0, 10**6):
        tracemalloc.start()
        began = time.perf_counter()
        locate(np.arange(step * 4096, (step + 1) * 4096), 4 * 10**9, seed=1)
        seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"- step {step:,}: {seconds * 1e3:.2f} ms, {peak / 1e6:.2f} MB")


def fractals() -> None:
    """Generated images a second on one core."""
    print("\n## Generated fractals (1,000 categories, one core)\n")
    print("| image | batch | images/s |")
    print("|---|---|---|")
    for size, channels, batch_size in ((32, 1, 64), (32, 1, 1024), (32, 3, 64), (64, 1, 64)):
        source = open_source("fractals", split="train", image_size=size, channels=channels)
        indices = np.arange(4096).reshape(-1, batch_size)
        seconds = best_seconds(lambda s=source, i=indices: [s.read(row) for row in i], rounds=5)
        print(f"| {size}×{size}×{channels} | {batch_size} | {4096 / seconds:,.0f} |")


def small() -> None:
    """Images of 32 px a second: read, augmented and normalised as a batch, beside torchvision's transforms of each."""
    from torchvision.transforms import v2

    print("\n## Images of 32 px, batches of 128: read, augmented, normalised to float32; one core\n")
    print("| augmentation | images/s | torchvision v2 of each image, images/s |")
    print("|---|---|---|")
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (10_000, 3, 32, 32), dtype=np.uint8)
    source = ArraySource(
        images,
        np.zeros(len(images), dtype=np.int64),
        uri="random",
        class_names=("one",),
        fingerprint="",
        rows=np.arange(len(images)),
        statistics=IMAGENET,
    )
    steps, cpu = 20, torch.device("cpu")
    for name in ("none", "crop_flip", "crop_flip_erase"):
        plan = {"seed": 0, "batch_size": 128, "start_step": 0, "stop_step": steps, "augment": name}
        ours = best_seconds(lambda p=plan: [normalize(b.images, source, cpu) for b in batches(source, **p)], rounds=5)
        parts: list[Any] = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)]
        if name != "none":
            parts = [v2.RandomCrop(32, 4, padding_mode="reflect"), v2.RandomHorizontalFlip(), *parts]
        if name == "crop_flip_erase":
            parts.append(v2.RandomErasing(0.5, value="random"))
        each = v2.Compose(parts)
        theirs = best_seconds(lambda e=each: torch.stack([e(torch.from_numpy(i)) for i in images[:512]]))
        print(f"| {name} | {128 * steps / ours:,.0f} | {512 / theirs:,.0f} |")


def has(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def pipelines() -> dict[str, Pipeline]:
    """From JPEG bytes, a crop and a flip to 224×224 pixels (height, width, channels)."""
    from torchvision import io as tv_io
    from torchvision.transforms.v2 import functional as tv

    def pillow(content: bytes, box: Box, flip: bool) -> NDArray[np.uint8]:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = tv.resized_crop(image, *box, [SIZE, SIZE])
        image = tv.horizontal_flip(image) if flip else image
        return tv.pil_to_tensor(image).permute(1, 2, 0).numpy()

    def torchvision_io(content: bytes, box: Box, flip: bool) -> NDArray[np.uint8]:
        data = torch.frombuffer(content, dtype=torch.uint8)
        image = tv_io.decode_jpeg(data, mode=tv_io.ImageReadMode.RGB)
        image = tv.resized_crop(image, *box, [SIZE, SIZE], antialias=True)
        return (tv.horizontal_flip(image) if flip else image).permute(1, 2, 0).numpy()

    def isoflop(content: bytes, box: Box, flip: bool) -> NDArray[np.uint8]:
        image = decode_crop(content, read_header(content), box, size=SIZE, channels=3)
        return (image.flip(2) if flip else image).permute(1, 2, 0).numpy()

    made: dict[str, Pipeline] = {
        "torchvision + Pillow": pillow,
        "isoflop": isoflop,
        "torchvision.io + v2": torchvision_io,
    }
    if has("cv2"):
        cv2 = import_module("cv2")
        cv2.setNumThreads(1)

        def opencv(content: bytes, box: Box, flip: bool) -> NDArray[np.uint8]:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
            part = image[box.top : box.top + box.height, box.left : box.left + box.width]
            part = cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            return cv2.flip(part, 1) if flip else part

        made["OpenCV, area"] = opencv
    if has("cv2") and has("albumentations"):
        albumentations = import_module("albumentations")
        resize = albumentations.Resize(SIZE, SIZE, interpolation=cv2.INTER_AREA)
        mirror = albumentations.HorizontalFlip(p=1.0)

        def albumentation(content: bytes, box: Box, flip: bool) -> NDArray[np.uint8]:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
            bottom, right = box.top + box.height, box.left + box.width
            crop = albumentations.Crop(box.left, box.top, right, bottom)
            image = resize(image=crop(image=image)["image"])["image"]
            return mirror(image=image)["image"] if flip else image

        made["Albumentations, area"] = albumentation
    if has("kornia_rs"):
        kornia = import_module("kornia_rs")

        def kornia_rs(content: bytes, box: Box, flip: bool) -> NDArray[np.uint8]:
            image = kornia.io.decode_image_jpegturbo(content, "rgb")
            part = np.ascontiguousarray(image[box.top : box.top + box.height, box.left : box.left + box.width])
            part = np.asarray(kornia.resize(part, (SIZE, SIZE), "bilinear"))
            return np.asarray(kornia.imgproc.horizontal_flip(part)) if flip else part

        made["kornia-rs, bilinear"] = kornia_rs
    return made


def photographs(folder: Path | None, width: int, height: int, count: int) -> list[bytes]:
    """JPEGs (quality 90, 4:2:0) of this size: a mosaic of photographs if there are some, else 1/f noise."""
    rng = np.random.default_rng(0)
    files = sorted(folder.rglob("*.jpg")) if folder else []
    encoded = []
    for k in range(count):
        if files:
            columns, rows = max(1, width // 420), max(1, height // 310)
            image = Image.new("RGB", (width, height))
            w, h = -(-width // columns), -(-height // rows)
            for cell in range(columns * rows):
                photo = Image.open(files[(k * columns * rows + cell) % len(files)]).convert("RGB")
                image.paste(photo.resize((w, h), Image.Resampling.LANCZOS), (cell % columns * w, cell // columns * h))
        else:
            frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / width
            spectrum = np.fft.fft2(rng.standard_normal((3, height, width))) / frequency
            noise = np.fft.ifft2(spectrum).real
            image = Image.fromarray((noise / noise.std() * 50 + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
        encoded.append(buffer.getvalue())
    return encoded


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """In dB; 100 for the same picture."""
    error = float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2))
    return 100.0 if error == 0 else min(100.0, 10 * np.log10(255**2 / error))


def decode(folder: Path | None) -> None:
    """JPEG to a 224 px training crop, flipped half of the time, uint8: milliseconds beside peers, at which picture."""
    print("\n## JPEG to 224 px training crops, one core\n")
    print("| source | pipeline | ms an image | × torchvision + Pillow | PSNR to it, mean dB |")
    print("|---|---|---|---|---|")
    torch.set_num_threads(1)
    for width, height, count in ((500, 400, 60), (1250, 930, 30)):
        files = photographs(folder, width, height, count)
        u = uniforms(1, 0, np.arange(4 * count), 23)
        work = [
            (files[k % count], snap(inception_box(height, width, u[k]), SIZE), u[k][22] < 0.5) for k in range(len(u))
        ]
        made = pipelines()
        pictures = {name: [pipeline(*item) for item in work] for name, pipeline in made.items()}
        seconds = dict.fromkeys(made, float("inf"))
        for _ in range(7):  # interleaved, so that a busy moment hits all alike
            for name, pipeline in made.items():
                took = best_seconds(lambda p=pipeline, w=work: [p(*item) for item in w], rounds=1)
                seconds[name] = min(seconds[name], took)
        reference = "torchvision + Pillow"
        for name in made:
            same = np.mean([psnr(a, b) for a, b in zip(pictures[name], pictures[reference], strict=True)])
            ratio = seconds[reference] / seconds[name]
            cells = f"{seconds[name] / len(work) * 1e3:.2f} | {ratio:.2f} | {same:.1f}"
            print(f"| {width}×{height}, {np.mean([len(f) for f in files]) / 1e3:.0f} kB | {name} | {cells} |")


def shards() -> None:
    """Microseconds to read a record of 10 kB at random, warm: tar by offset, beside single files and WebDataset."""
    print("\n## Records of 10 kB in random order, warm\n")
    count = 20_000
    with tempfile.TemporaryDirectory() as place:
        os.environ["ISOFLOP_CACHE"] = f"{place}/cache"
        content = b"\xff\xd8\xff" + bytes(10_000)
        path = Path(place) / "a.tar"
        with tarfile.open(path, "w") as tar:
            for k in range(count):
                member = tarfile.TarInfo(f"{k:06d}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                (Path(place) / f"{k:06d}.jpg").write_bytes(content)
        began = time.process_time()
        records = ShardRecords(str(path), "train")
        print(f"- index of {count:,} records: {(time.process_time() - began) / count * 1e6:.0f} µs a record, once")
        names = [f"{place}/{k:06d}.jpg" for k in range(count)]
        chosen = np.random.default_rng(0).permutation(count).tolist()
        timed = {
            "tar by offset (isoflop)": lambda: [len(records.read(k)) for k in chosen],
            "one file each": lambda: [len(Path(names[k]).read_bytes()) for k in chosen],
        }
        if has("webdataset"):
            module = import_module("webdataset")
            dataset = module.WebDataset(str(path), shardshuffle=False)
            timed["WebDataset, only in sequence"] = lambda: sum(1 for _ in dataset)
        for name, task in timed.items():
            print(f"- {name}: {best_seconds(task) / count * 1e6:.1f} µs a record")


def loader() -> None:
    """Microseconds that a batch costs beyond its images: workers=0 beside PyTorch's DataLoader."""
    print("\n## A batch of 64 digits at 32 px, one core\n")
    source = open_source("digits", split="train", image_size=32)

    def ours() -> None:
        for _ in batches(source, seed=0, batch_size=64, start_step=0, stop_step=200):
            pass

    class Samples(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, index: int) -> Any:
            images, labels = source.read(np.array([index]))
            return images[0], labels[0]

    def theirs() -> None:
        made = torch.utils.data.DataLoader(Samples(), batch_size=64, shuffle=True)
        for k, _ in enumerate(made):
            if k == 15:
                break

    print(f"- isoflop.data.batches: {best_seconds(ours) / 200 * 1e6:.0f} µs")
    print(f"- torch DataLoader over single samples: {best_seconds(theirs) / 16 * 1e6:.0f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[..., None]] = {
        "order": order,
        "start": start,
        "fractals": fractals,
        "small": small,
        "decode": decode,
        "shards": shards,
        "loader": loader,
    }
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure; everything by default")
    parser.add_argument("--photos", type=Path, help="a folder of photographs (*.jpg)")
    arguments = parser.parse_args()
    for name in arguments.parts or parts:
        parts[name](arguments.photos) if name == "decode" else parts[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
