"""`isoflop predict`: what a trained classifier says about image files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.groups import argument, examples
from isoflop.cli.output import Json, print_json
from isoflop.cli.paths import existing
from isoflop.cli.tables import print_table

if TYPE_CHECKING:
    from isoflop.transfer.predict import Guess

EXAMPLES = examples(
    "isoflop predict runs/vit-1a2b3c cat.jpg dog.jpg", "isoflop predict vit-timm my_images --top 1 --json"
)


def predict(
    checkpoint: Annotated[
        str, argument("Folder of a finished run, or what else `isoflop transfer` takes.", "CHECKPOINT")
    ],
    images: Annotated[list[Path], argument("Image files, or folders of them.", "IMAGE...")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Classes to name for each.")] = 5,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="Whose weights a .safetensors file holds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Name the likeliest classes of images, with their probabilities. Exit 1 if some were damaged, and left out."""
    if ":" not in checkpoint:
        existing(Path(checkpoint).expanduser())
    for image in images:
        existing(image)
    from isoflop.data.quarantine import Damage
    from isoflop.errors import DataError
    from isoflop.transfer.predict import predict as guesses

    damaged: list[Damage] = []
    found = list(guesses(checkpoint, images, top=top, model=model, damaged=damaged))
    if not found:
        others = f" (nor can any of {len(damaged) - 1:,} others be read)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].line}{others}")
    for damage in damaged:
        print(f"warning: {damage.line}", file=sys.stderr)
    if as_json:
        documents = [{"file": path, "classes": best} for path, best in found]
        print_json({"images": documents, "damaged": [{"file": d.name, "reason": d.reason} for d in damaged]})
    else:
        print_table(("image", "class", "probability"), _rows(found))
    if damaged:
        total = len(found) + len(damaged)
        print(f"warning: {len(damaged):,} of {total:,} images are damaged and were left out", file=sys.stderr)
        raise typer.Exit(1)


def _rows(found: list[tuple[Path, list[Guess]]]) -> list[tuple[str, str, str]]:
    return [
        (str(path) if place == 0 else "", guess.name, f"{guess.probability:.3f}")
        for path, best in found
        for place, guess in enumerate(best)
    ]
