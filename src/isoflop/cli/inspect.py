"""`isoflop inspect`: what a trained backbone has learnt to look at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.groups import argument, examples
from isoflop.cli.output import Json, aside, print_json
from isoflop.cli.paths import existing

if TYPE_CHECKING:
    from isoflop.config import RunConfig

EXAMPLES = examples(
    "isoflop inspect runs/vit-1a2b3c --images 16 --output pictures",
    "isoflop inspect timm:vit_tiny_patch16_224 --data folder:my_images",
)


def inspect(
    checkpoint: Annotated[
        str, argument("Folder of a finished run; with --data, all that `isoflop transfer` takes.", "CHECKPOINT")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="CHECKPOINT/inspect, or inspect/NAME, when left out."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="SOURCE", help="Other images than the run's own.")
    ] = None,
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Held-out images to look at.")] = 64,
    random: Annotated[bool, typer.Option("--random", help="Random weights: what was there before training.")] = False,
    as_json: Json = False,
) -> None:
    """Positions, attention, first filters, feature maps, reconstructions of a masked run: pictures and numbers."""
    import numpy as np
    import torch

    from isoflop.data import Subset, open_source, open_split
    from isoflop.errors import CheckpointError
    from isoflop.report.inspection.model import inspect_model
    from isoflop.train.device import to_unit_range
    from isoflop.transfer import load_backbone, open_backbone

    path, is_named = Path(checkpoint).expanduser(), checkpoint.startswith("timm:")
    config: RunConfig | None = None
    if data is None:
        if is_named or not (existing(path) / "config.json").is_file():
            raise CheckpointError(f"{checkpoint}: not a finished run; say with --data what it is to look at")
        model, config = load_backbone(path, random_weights=random)
        heldout = open_split(config.data, "heldout", may_fetch=False)
    else:
        opened = open_backbone(checkpoint if is_named else existing(path), random_weights=random)
        model = opened.model
        heldout = open_source(data, split="heldout", image_size=model.image_size[0], channels=model.in_channels)
        heldout = Subset(heldout, moments=opened.moments) if opened.moments else heldout
    pictures, _ = heldout.read(np.arange(min(images, len(heldout)), dtype=np.int64))
    kind = "inspect-random" if random else "inspect"
    folder = output or (path / kind if path.is_dir() else Path(kind) / Path(checkpoint.replace(":", "-")).name)
    found = inspect_model(model, to_unit_range(pictures, heldout, torch.device("cpu")), folder)
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
    """Pictures of what the masked autoencoder of `run` makes of held-out images, now and while it was trained."""
    import torch

    from isoflop.data import open_split
    from isoflop.objectives import Masked
    from isoflop.report.inspection.masked import progress_sheet, reconstruction_sheet
    from isoflop.report.inspection.pictures import save_png
    from isoflop.runs.reconstructions import read_reconstructions
    from isoflop.train.device import Precision
    from isoflop.train.finished import load_objective
    from isoflop.train.reconstructions import reconstruct

    objective = load_objective(run, open_split(config.data, "train", may_fetch=False))
    assert isinstance(objective, Masked)
    now = reconstruct(objective, open_split(config.data, "heldout", may_fetch=False), torch.device("cpu"), Precision())
    save_png(folder / "reconstructions.png", reconstruction_sheet(now))
    if history := read_reconstructions(run):
        save_png(folder / "reconstructions-over-time.png", progress_sheet(history))
    if now.is_normalised:
        print("reconstructions: normalised targets, shown with mean and deviation of the hidden pixels")
