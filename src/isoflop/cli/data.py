"""`isoflop data`: check, index and convert data sets."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.output import Json, argument, examples, group, is_quiet, over_the_line, print_json

app = group("data", "Check, index and convert data sets.")

Data = Annotated[str, argument("Folder or file, or a URI as in data.source.", "PATH")]


class Part(StrEnum):
    """The part of a data set."""

    train = "train"
    test = "test"


class DatasetLayout(StrEnum):
    """How images are stored."""

    shards = "shards"
    folder = "folder"


@app.command(
    "check",
    epilog=examples(
        "isoflop data check my_images", "isoflop data check parquet:cifar10 --part test --workers 4 --json"
    ),
)
def check(
    path: Data,
    part: Annotated[Part, typer.Option(help="Part of the data set.")] = Part.train,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Number of processes.")] = 1,
    as_json: Json = False,
) -> None:
    """Decode every image and print a summary with all problems. Exit 1 if a run would refuse the data."""
    from isoflop.data.inspection import check as inspect

    report = inspect(path, part=part.value, workers=workers, progress=_progress)
    if as_json:
        print_json({**vars(report), "usable": report.is_usable})
    else:
        print("\n".join(report.lines()))
    if not report.is_usable:
        raise typer.Exit(1)


@app.command("index", epilog=examples("isoflop data index my_shards"))
def index(path: Data, as_json: Json = False) -> None:
    """Write the index of tar shards into their folder."""
    from isoflop.data.conversion import index_shards

    samples, shards = index_shards(path, progress=_progress)
    if as_json:
        print_json({"images": samples, "shards": shards})
        return
    print(f"images: {samples:,}, shards: {shards:,}")


@app.command(
    "convert",
    epilog=examples(
        "isoflop data convert my_images my_shards --shuffle", "isoflop data convert my_shards my_images --to folder"
    ),
)
def convert(
    path: Data,
    destination: Annotated[Path, argument("New folder.", "DIR")],
    to: Annotated[DatasetLayout, typer.Option(help="Tar shards, or one folder per class.")] = DatasetLayout.shards,
    samples_per_shard: Annotated[int, typer.Option(min=1, metavar="N", help="Images in a shard.")] = 10_000,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Store in a fixed random order.")] = False,
    as_json: Json = False,
) -> None:
    """Store the same images, byte for byte, in another layout."""
    from isoflop.data.conversion import convert as rewrite
    from isoflop.data.inspection import finding_lines

    done = rewrite(
        path, destination, to=to.value, samples_per_shard=samples_per_shard, shuffle=shuffle, progress=_progress
    )
    if as_json:
        print_json({"directory": destination, "images": done.images, "left_out": done.left_out})
        return
    print(f"{done.images:,} images in {destination}")
    if done.left_out:
        print("\n".join(finding_lines("left out", done.left_out)))


@app.command(
    "make-scenes",
    short_help="Generate pictures with objects, boxes and masks.",
    epilog=examples("isoflop data make-scenes my_scenes --images 200 --val-images 50"),
)
def make_scenes(
    destination: Annotated[Path, argument("New folder.", "DIR")],
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Training pictures.")] = 1000,
    val_images: Annotated[int, typer.Option(min=1, metavar="N", help="Evaluation pictures.")] = 200,
    size: Annotated[int, typer.Option(metavar="PX", help="Height and width.")] = 128,
    classes: Annotated[int, typer.Option(metavar="N", help="Number of classes.")] = 10,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the generator.")] = 0,
    as_json: Json = False,
) -> None:
    """Generate pictures of objects with boxes, masks and maps of classes, as coco:DIR and ade20k:DIR."""
    from isoflop.data.dense.scenes import write_scenes

    write_scenes(
        destination, images=images, val_images=val_images, size=size, classes=classes, seed=seed, progress=_progress
    )
    if as_json:
        print_json({"directory": destination, "images": images, "val_images": val_images})
        return
    print(f"{images + val_images:,} scenes in {destination}")


def _progress(done: int, total: int) -> None:
    """Progress on stderr, only on a terminal."""
    if sys.stderr.isatty() and not is_quiet():
        over_the_line(f"{done:,} of {total:,}", end="\n" if done >= total else "", to_stderr=True)
