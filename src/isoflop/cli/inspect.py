"""`isoflop inspect`: what a trained backbone has learnt to look at."""

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.groups import argument


def inspect(
    run: Annotated[Path, argument("Folder of a finished run.", "RUN")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="RUN/inspect when left out.")
    ] = None,
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Held-out images to look at.")] = 64,
) -> None:
    """Position similarity, attention distance and rollout, first filters, feature maps: pictures and numbers."""
    import numpy as np
    import torch

    from isoflop.data import open_split
    from isoflop.report.inspection import inspect_model
    from isoflop.train.device import to_unit_range
    from isoflop.transfer import load_backbone

    model, config = load_backbone(run)
    heldout = open_split(config.data, "heldout")
    pictures, _ = heldout.read(np.arange(min(images, len(heldout)), dtype=np.int64))
    folder = output or run / "inspect"
    found = inspect_model(model, to_unit_range(pictures, heldout, torch.device("cpu")), folder)
    for part, reason in found["skipped"].items():
        print(f"no {part.replace('_', ' ')}: {reason}")
    print(f"{model.preset} on {found['images']} images: pictures and inspect.json in {folder}")
