"""`isoflop models`: what can be trained, and what it takes."""

from typing import Annotated

import typer

from isoflop.cli.groups import argument
from isoflop.cli.tables import print_table


def models(
    name: Annotated[str, argument("A model, or part of a name to search for.", "NAME")] = "",
    family: Annotated[str, typer.Option(metavar="FAMILY", help="Only one family.")] = "",
    image_size: Annotated[int, typer.Option(metavar="PIXELS", help="Height and width of the images.")] = 224,
    num_classes: Annotated[int, typer.Option(metavar="N", help="Outputs of the classifier.")] = 1000,
    measure: Annotated[bool, typer.Option("--measure", help="Train each for two seconds here.")] = False,
) -> None:
    """Print the families; with a name or family its models: parameters, FLOPs, memory, speed."""
    from isoflop.errors import ModelError
    from isoflop.models.listing import describe, find_models
    from isoflop.models.presets import FAMILIES

    if not name and not family:
        print_table(
            ("family", "models", "the first and the last of them"),
            [
                (family, str(len(presets)), f"{next(iter(presets))} … {[*presets][-1]}")
                for family, presets in FAMILIES.items()
            ],
        )
        print("\n`isoflop models NAME` tells what those with NAME in their names take, `--family` those of a family.")
        return
    names = find_models(name, family)
    rows, refused = [], []
    for model in [name] if name in names else names:
        try:
            row = describe(model, image_size=image_size, num_classes=num_classes, measure=measure)
        except ModelError as error:  # one whose patches, say, do not fit this image size
            refused.append(error)
            continue
        speed = [f"{row.images_per_second:,.0f}"] if row.images_per_second is not None else []
        rows.append(
            (
                row.name,
                row.family,
                _short(row.parameters),
                _short(row.macs),
                _short(2 * row.macs),
                f"{row.activation_bytes / 2**20:,.1f}",
                f"{(4 * row.parameters + row.optimizer_bytes['adamw']) / 2**20:,.1f}",
                *speed,
            )
        )
    if not rows:
        raise refused[0]
    head = ("model", "family", "parameters", "MACs", "FLOPs", "MiB an image", "MiB with AdamW")
    print_table((*head, "images/s") if measure else head, rows)
    note = f"\nAn image of {image_size} px, forward; a step of training costs three times as much. Memory in float32."
    print(note + (f"\nNot at {image_size} px: {len(refused)} more." if refused else ""))


def _short(count: int) -> str:
    """`1.23M`: three digits and the unit."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return str(count)
