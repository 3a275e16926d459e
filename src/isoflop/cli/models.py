"""`isoflop models`: what can be trained, and what it takes."""

from typing import Annotated

import typer

from isoflop.cli.groups import argument, examples
from isoflop.cli.output import Json, print_json
from isoflop.cli.tables import print_table

EXAMPLES = examples(
    "isoflop models",
    "isoflop models vit_s16",
    "isoflop models --family poolformer --image-size 32 --num-classes 10",
    "isoflop models timm:resnet50 --measure --json",
)


def models(
    name: Annotated[
        str, argument("A model, or what to search for: parts of a name, or a pattern with *.", "NAME")
    ] = "",
    family: Annotated[str, typer.Option(metavar="FAMILY", help="Only one family.")] = "",
    image_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Count at this height and width; 224 for one model.")
    ] = None,
    num_classes: Annotated[int, typer.Option(metavar="N", help="Outputs of the classifier.")] = 1000,
    measure: Annotated[bool, typer.Option("--measure", help="Train it for two seconds here.")] = False,
    as_json: Json = False,
) -> None:
    """Print the families; the models that match, with their published sizes; or what one model takes.

    For one model, and for all that match where --image-size or --measure asks for it: parameters, FLOPs, memory, speed.
    """
    from isoflop.models.listing import find_models
    from isoflop.models.presets import FAMILIES, PRESETS

    if not name and not family and as_json:
        print_json({"families": {family: list(presets) for family, presets in FAMILIES.items()}})
        return
    if not name and not family:
        print_table(
            ("family", "models", "the first and the last of them"),
            [
                (family, str(len(presets)), f"{next(iter(presets))} … {[*presets][-1]}")
                for family, presets in FAMILIES.items()
            ],
        )
        print("\n`isoflop models NAME` lists those with NAME in their names, `--family` those of a family; a full name")
        print("tells what that model takes. Any model of timm is `timm:NAME`.")
        return
    one = name.startswith("timm:") or (name in PRESETS and family in ("", PRESETS[name][0]))
    names = [name] if one else find_models(name, family)
    if len(names) == 1 or image_size is not None or measure:
        _print_counted(names, 224 if image_size is None else image_size, num_classes, measure, as_json)
    else:
        _print_published(names, as_json)


def _print_published(names: list[str], as_json: bool) -> None:
    from isoflop.models.presets import PRESETS
    from isoflop.models.published import PUBLISHED

    rows = {row.preset: row for row in PUBLISHED}
    if as_json:
        print_json(
            {"models": [{"name": name, "family": PRESETS[name][0], "published": rows.get(name)} for name in names]}
        )
        return
    table = []
    for name in names:
        row = rows.get(name)
        size, macs = (
            ("", "") if row is None else (row.parameters and f"{row.parameters}M", row.gmacs and f"{row.gmacs}G")
        )
        table.append((name, PRESETS[name][0], size, macs, str(row.image_size) if row and macs else ""))
    print_table(("model", "family", "parameters", "MACs", "at px"), table)
    print(f"\n{len(names)} models, with the numbers that papers print. `isoflop models NAME` counts for one,")
    print("`--image-size PIXELS` for all of these.")


def _print_counted(names: list[str], image_size: int, num_classes: int, measure: bool, as_json: bool) -> None:
    from isoflop.errors import ModelError
    from isoflop.models.listing import describe

    counted, refused = [], []
    for model in names:
        try:
            counted.append(describe(model, image_size=image_size, num_classes=num_classes, measure=measure))
        except ModelError as error:  # one whose patches, say, do not fit this image size
            refused.append(error)
    if not counted:
        raise refused[0]
    if as_json:
        print_json({"num_classes": num_classes, "models": counted, "refused": [str(error) for error in refused]})
        return
    rows = []
    for row in counted:
        speed = [f"{row.images_per_second:,.0f}"] if row.images_per_second is not None else []
        rows.append(
            (
                row.name,
                row.family,
                _short(row.parameters),
                _short(row.macs),
                _short(2 * row.macs),
                _short(6 * row.macs),
                f"{row.activation_bytes / 2**20:,.1f}",
                *(f"{row.optimizer_bytes[kind] / 2**20:,.1f}" for kind in ("adamw", "sgd", "adafactor")),
                *speed,
            )
        )
    head = (
        "model",
        "family",
        "parameters",
        "MACs",
        "forward FLOPs",
        "training FLOPs",
        "MiB an image",
        "MiB of AdamW",
        "of SGD",
        "of Adafactor",
    )
    print_table((*head, "images/s") if measure else head, rows)
    print(f"\nFor one image of {image_size} px; training costs three forward passes. Memory in float32:")
    print(
        "what an image of a batch keeps for the backward pass; what an optimizer keeps besides weights and gradients."
    )
    if refused:
        print(f"Not at {image_size} px: {len(refused)} more.")


def _short(count: int) -> str:
    """`1.23M`: three digits and the unit."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return str(count)
