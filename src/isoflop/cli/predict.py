"""`isoflop predict` and `isoflop evaluate`."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.data import Part
from isoflop.cli.output import Json, Model, argument, aside, examples, existing, print_json, print_table
from isoflop.errors import ConfigError, DataError
from isoflop.escapes import printable

if TYPE_CHECKING:
    from isoflop.data.records import Damage
    from isoflop.transfer.predict import Evaluation

Checkpoint = Annotated[
    str, argument("Folder of a finished run or study, or what else `isoflop transfer` takes.", "CHECKPOINT")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write a row per image: .csv or .json.")
]
EXAMPLES = examples(
    "isoflop predict runs/vit-1a2b3c cat.jpg dog.jpg", "isoflop predict vit-timm my_images --top 1 --output guesses.csv"
)


def predict(
    checkpoint: Checkpoint,
    images: Annotated[list[str], argument("Image files, folders of them, or data as in data.source.", "IMAGE...")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Number of classes to print.")] = 5,
    model: Model = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Print the most probable classes of images. Damaged images are skipped and counted."""
    if ":" not in checkpoint:
        existing(Path(checkpoint).expanduser())
    for image in images:
        if ":" not in image:
            existing(Path(image))
    _writable(output, ".csv", ".json")
    from isoflop.transfer.predict import predict as guesses

    damaged: list[Damage] = []
    found = list(guesses(checkpoint, images, top=top, model=model, damaged=damaged))
    if not found:
        others = f" (and {len(damaged) - 1:,} others cannot be read either)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].line}{others}")
    document = {
        "images": [{"file": name, "classes": best} for name, best in found],
        "damaged": [{"file": d.name, "reason": d.reason} for d in damaged],
    }
    with _writing(as_json, output):
        if output is not None:
            rows = [
                {"file": name, "rank": rank, "class": guess.name, "probability": guess.probability}
                for name, best in found
                for rank, guess in enumerate(best, start=1)
            ]
            _write_rows(output, rows)
    if as_json:
        print_json(document | ({"output": output} if output else {}))
    elif output is not None:
        print(f"{len(found):,} images: {output}")
    else:
        table = [
            (name if place == 0 else "", guess.name, f"{guess.probability:.3f}")
            for name, best in found
            for place, guess in enumerate(best)
        ]
        print_table(("image", "class", "probability"), table)
    _tell_damaged(damaged, len(found))


def _tell_damaged(damaged: Sequence[Damage], sound: int) -> None:
    """One line on the images that were left out."""
    if damaged:
        first = "; ".join(damage.line for damage in damaged[:3]) + ("; …" if len(damaged) > 3 else "")
        total = f"{len(damaged):,} of {sound + len(damaged):,} images are damaged and were skipped"
        print(f"warning: {total}: {first}", file=sys.stderr)


def _writable(path: Path | None, *suffixes: str) -> None:
    """ConfigError where `path` has another suffix, or cannot be a file: said before the work and not after it."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path}: the name of this file ends with {' or '.join(suffixes)}")
    existing(path.parent)
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{path}: not a file, or not in a folder")


def _writing(as_json: bool, file: Path | None) -> AbstractContextManager[None]:
    """Of the work: where its result goes to a `file`, stdout that cannot be written does not end it."""
    return aside(as_json) if as_json or file else nullcontext()


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A row per image (or image and class), as CSV or as a JSON list."""
    from isoflop.runs.files import to_json, write_atomically

    if path.suffix.lower() == ".json":
        write_atomically(path, to_json(rows))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


# `isoflop evaluate`


EVALUATE_EXAMPLES = examples(
    "isoflop evaluate studies/mine my_images",
    "isoflop evaluate runs/vit-1a2b3c parquet:cifar10 --report page.html --output images.csv",
)
MOST_CLASSES = 20  # in a terminal
_NAME = 24  # characters of a class in a matrix


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[str, argument("Labelled images: folder or file, or a URI as in data.source.", "DATA")],
    part: Annotated[
        Part | None, typer.Option(help="Part of the data set; default: test, else what the run held out, else all.")
    ] = None,
    model: Model = None,
    report: Annotated[
        Path | None, typer.Option("--report", "-r", metavar="FILE", help="Also write a page: FILE.html.")
    ] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Evaluate a classifier on labelled images: accuracy with interval, classes, confusion, worst mistakes."""
    if ":" not in checkpoint:
        existing(Path(checkpoint).expanduser())
    _writable(output, ".csv", ".json")
    _writable(report, ".html")
    from isoflop.report.evaluation import write_evaluation
    from isoflop.transfer.predict import evaluate as judge

    with _writing(as_json, report or output):
        found = judge(checkpoint, data, part=part.value if part else None, model=model)
        if output is not None:
            _write_rows(output, [vars(judged) for judged in found.each])
        if report is not None:
            write_evaluation(found.document(), found.pictures, report)
    files = {name: path for name, path in (("report", report), ("output", output)) if path}
    if as_json:
        print_json(found.document() | files)
    else:
        tell_evaluation(found)
        for name, path in files.items():
            print(f"{name}: {path}")
    _tell_damaged(found.damaged, found.images)


def tell_evaluation(found: Evaluation) -> None:
    """Print accuracy, classes and confusion."""
    low, high = found.interval
    print(f"{printable(found.data)} ({found.part}): {found.images:,} image{'s' if found.images > 1 else ''}")
    more = f", loss {found.loss:.3f}" + (f", top-5 {found.top5:.3f}" if found.top5 is not None else "")
    interval = f"{100 * found.level:.0f}% interval {low:.3f}–{high:.3f}"
    print(f"accuracy {found.accuracy:.3f} ({interval}, {found.right:,} right){more}")
    scores = [score for score in found.classes if score.images or score.predicted]
    if len(scores) > 1:
        worst = sorted(scores, key=lambda s: (s.accuracy is None, s.accuracy or 0.0, s.name))
        shown = scores if len(scores) <= MOST_CLASSES else worst[:MOST_CLASSES]
        print()
        if len(shown) < len(scores):
            print(f"the {len(shown)} worst of {len(scores):,} classes (--json and --report have all):")
        cells = [
            (
                score.name,
                f"{score.images:,}",
                *(f"{value:.3f}" if value is not None else "" for value in (score.accuracy,)),
                f"{score.interval[0]:.3f}–{score.interval[1]:.3f}" if score.interval else "",
                *(f"{value:.3f}" if value is not None else "" for value in (score.precision, score.f1)),
            )
            for score in shown
        ]
        print_table(("class", "images", "accuracy", "95% interval", "precision", "F1"), cells)
    if not found.confusions:
        return
    print()
    if not found.confusion or not _tell_matrix(found.confusion, [score.name for score in found.classes]):
        pairs = found.confusions[:10]
        print_table(("class", "taken for", "images"), [(one, other, f"{count:,}") for one, other, count in pairs])


def _tell_matrix(table: Sequence[Sequence[int]], names: Sequence[str]) -> bool:
    """Print the matrix of confusion, of the classes that were met, and return True; False where it does not fit."""
    kept = [k for k in range(len(names)) if any(table[k]) or any(row[k] for row in table)]
    digits = max(len(str(len(names))), *(len(str(table[i][j])) for i in kept for j in kept))
    short = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in map(printable, names)]
    width = max(len(short[k]) for k in kept)
    number = len(str(len(kept)))
    if len(kept) > MOST_CLASSES or width + number + 2 + (digits + 1) * len(kept) > _columns():
        return False
    print("confusion: each row is a class, each column what its images were taken for")
    head = " ".join(f"{place:>{digits}}" for place in range(1, len(kept) + 1))
    print(f"{'':{width + number + 2}}{head}")
    for place, i in enumerate(kept, start=1):
        cells = " ".join(f"{table[i][j] or '·':>{digits}}" for j in kept)
        print(f"{place:>{number}} {short[i]:{width}} {cells}")
    return True


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
