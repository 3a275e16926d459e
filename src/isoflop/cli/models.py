"""`isoflop models`, `inspect`, `export` and `import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.output import Json, argument, aside, examples, existing, model_names, print_json, print_table

if TYPE_CHECKING:
    from isoflop.config import RunConfig


EXAMPLES = examples(
    "isoflop models",
    "isoflop models vit_s16",
    "isoflop models --family poolformer --image-size 32 --num-classes 10",
    "isoflop models timm:resnet50 --measure --json",
)


def models(
    name: Annotated[
        str, argument("Name of a model, parts of names, or a pattern with *.", "NAME", autocompletion=model_names)
    ] = "",
    family: Annotated[str, typer.Option(metavar="FAMILY", help="Only one family.")] = "",
    image_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Height and width; 224 by default for one model.")
    ] = None,
    num_classes: Annotated[int, typer.Option(metavar="N", help="Outputs of the classifier.")] = 1000,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the speed for two seconds.")] = False,
    as_json: Json = False,
) -> None:
    """Print the families, the models that match with their published sizes, or the cost of one model.

    The cost is parameters, FLOPs, memory and speed. It is printed for several models with --image-size or --measure.
    """
    from isoflop.config.run import is_code
    from isoflop.models.cost import find_models
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
        print("\n`isoflop models NAME` lists the models with NAME in their names, or the cost of one with this name;")
        print("`--family` lists those of a family. `timm:NAME` is any model of timm.")
        return
    one = name.startswith("timm:") or is_code(name) or (name in PRESETS and family in ("", PRESETS[name][0]))
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
    print(f"\n{len(names)} models, with the numbers of the papers. `isoflop models NAME` prints the cost of one,")
    print("`--image-size PIXELS` that of all of these.")


def _print_counted(names: list[str], image_size: int, num_classes: int, measure: bool, as_json: bool) -> None:
    from isoflop.errors import ModelError
    from isoflop.models.cost import describe

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
    print(f"\nPer image of {image_size} px. A training step costs three forward passes. Memory in float32:")
    print(
        "what an image of a batch keeps for the backward pass; what an optimizer keeps besides weights and gradients."
    )
    if refused:
        print(f"{len(refused)} more models do not support {image_size} px.")


def _short(count: int) -> str:
    """`1.23M`: three digits and the unit."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return str(count)


# `isoflop inspect`


INSPECT_EXAMPLES = examples(
    "isoflop inspect runs/vit-1a2b3c --images 16 --output pictures",
    "isoflop inspect timm:vit_tiny_patch16_224 --data folder:my_images",
)


def inspect(
    checkpoint: Annotated[
        str, argument("Folder of a finished run; with --data, all that `isoflop transfer` takes.", "CHECKPOINT")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Default: CHECKPOINT/inspect, or inspect/NAME."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="SOURCE", help="Other images than those of the run.")
    ] = None,
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Number of held-out images.")] = 64,
    random: Annotated[bool, typer.Option("--random", help="Use random weights, as before training.")] = False,
    as_json: Json = False,
) -> None:
    """Write pictures and numbers of positions, attention, first filters, feature maps, and masked reconstructions."""
    import numpy as np

    from isoflop.data import open_source, open_split
    from isoflop.errors import CheckpointError
    from isoflop.report.inspection.model import inspect_model
    from isoflop.train.device import normalize
    from isoflop.transfer import load_backbone, open_backbone

    path, is_named = Path(checkpoint).expanduser(), checkpoint.startswith("timm:")
    config: RunConfig | None = None
    if data is None:
        if is_named or not (existing(path) / "config.json").is_file():
            raise CheckpointError(f"{checkpoint}: not a finished run; name images with --data")
        model, config = load_backbone(path, random_weights=random)
        heldout = open_split(config.data, "heldout", may_fetch=False)
    else:
        opened = open_backbone(checkpoint if is_named else existing(path), random_weights=random)
        model = opened.model
        heldout = open_source(data, split="heldout", image_size=model.image_size[0], channels=model.in_channels)
        heldout = heldout.normalized_by(opened.moments)
    pictures, _ = heldout.read(np.arange(min(images, len(heldout)), dtype=np.int64))
    kind = "inspect-random" if random else "inspect"
    folder = output or (path / kind if path.is_dir() else Path(kind) / Path(checkpoint.replace(":", "-")).name)
    found = inspect_model(model, normalize(pictures, heldout, next(model.parameters()).device), folder)
    if config is not None and config.objective.name == "masked" and not random:
        with aside(as_json):
            _reconstructions(path, config, folder)
    if as_json:
        print_json({"model": model.preset, "directory": folder, **found})
        return
    for part, reason in found["skipped"].items():
        print(f"no {part.replace('_', ' ')}: {reason}")
    print(f"{model.preset} on {found['images']} images: pictures and inspect.json in {folder}")


def _reconstructions(run: Path, config: "RunConfig", folder: Path) -> None:
    """Write reconstructions of held-out images by the masked autoencoder of `run`, final and during training."""
    import torch

    from isoflop.data import open_split
    from isoflop.objectives import Masked
    from isoflop.report.inspection.pictures import progress_sheet, reconstruction_sheet, save_png
    from isoflop.runs.reconstructions import read_reconstructions
    from isoflop.train.device import Precision
    from isoflop.train.evaluate import reconstruct
    from isoflop.train.loop import load_objective

    objective = load_objective(run, open_split(config.data, "train", may_fetch=False))
    assert isinstance(objective, Masked)
    now = reconstruct(objective, open_split(config.data, "heldout", may_fetch=False), torch.device("cpu"), Precision())
    save_png(folder / "reconstructions.png", reconstruction_sheet(now))
    if history := read_reconstructions(run):
        save_png(folder / "reconstructions-over-time.png", progress_sheet(history))
    if now.is_normalised:
        print("reconstructions: normalised targets, shown with mean and deviation of the hidden pixels")


# `isoflop export` and `isoflop import`


EXPORT_EXAMPLES = examples(
    "isoflop export runs/vit-1a2b3c --to timm --output vit-timm",
    "isoflop export runs/vit-1a2b3c --to onnx --output vit-onnx --licence cc-by-4.0",
)
IMPORT_EXAMPLES = examples(
    "isoflop import mae_pretrain_vit_base.pth --output mae-b16",
    "isoflop import weights.pth --model poolformerv2_s12 --output poolformerv2",
)


def export(
    checkpoint: Annotated[
        str,
        argument("Folder of a finished run or study, or what else `isoflop transfer` takes.", "CHECKPOINT"),
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="timm, huggingface, onnx or safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="SPDX", help="Licence of the weights, for the model card.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write trained weights for another library, with a model card.

    The target library reads the weights back first. If its outputs differ, nothing is written.
    """
    from isoflop.share import export as write

    with aside(as_json):
        done = write(checkpoint, to, output, licence=licence)
    if as_json:
        print_json({"folder": done.folder, "format": done.format, "model": done.model, "difference": done.difference})
        return
    print(f"{done.model} in {done.folder}, for {done.format}")
    print(f"largest difference over {done.images} images: {done.difference:.1e} of the largest output")
    if licence is None:
        print("the model card has no licence: set one with --licence before publishing")


def import_(
    source: Annotated[str, argument("A weight file, a folder of timm's or Hugging Face's, or timm:NAME.", "SOURCE")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="PRESET", help="The model, if it cannot be detected.", autocompletion=model_names
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PX", min=1, help="Default: the size of pretraining.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import public weights: big_vision, AugReg, MAE, PoolFormer, MetaFormer, timm, Hugging Face.

    The result is a checkpoint for transfer, export, inspect, and `start.weights` of a run.
    """
    from isoflop.share import import_weights

    with aside(as_json):
        done = import_weights(source, output, model=model, image_size=image_size)
    if as_json:
        print_json(
            {
                "folder": done.folder,
                "model": done.model,
                "release": done.release,
                "parameters": done.parameters,
                "left_out": done.left_out,
                "by_name": done.by_name,
            }
        )
        return
    print(f"{done.model} in {done.folder}: {done.parameters:,} parameters, from {done.release}")
    if done.by_name:
        print("names and shapes fit several models; the file name decided. Set another with --model")
    if done.left_out:
        print(f"skipped, not part of a backbone: {len(done.left_out)} tensors ({', '.join(done.left_out[:3])}, ...)")
