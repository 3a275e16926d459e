"""`isoflop predict`: what a trained classifier says about image files."""

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.groups import argument, examples
from isoflop.cli.output import Json, print_json
from isoflop.cli.paths import existing
from isoflop.cli.tables import print_table

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
    """Name the likeliest classes of images, with their probabilities."""
    if ":" not in checkpoint:
        existing(Path(checkpoint).expanduser())
    for image in images:
        existing(image)
    from isoflop.transfer.predict import predict as guesses

    found = list(guesses(checkpoint, images, top=top, model=model))
    if as_json:
        print_json({"images": [{"file": path, "classes": best} for path, best in found]})
        return
    rows = [
        (str(path) if place == 0 else "", guess.name, f"{guess.probability:.3f}")
        for path, best in found
        for place, guess in enumerate(best)
    ]
    print_table(("image", "class", "probability"), rows)
