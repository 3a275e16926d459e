"""`isoflop transfer`: what a trained backbone is worth on another task."""

from pathlib import Path
from typing import Annotated

from isoflop.cli.config import Overrides
from isoflop.cli.groups import argument


def transfer(
    run: Annotated[Path, argument("Folder of a finished run.", "RUN")],
    overrides: Overrides = None,
) -> None:
    """Few-shot accuracy of a trained backbone beside random weights; dataset=..., shots=5, seeds=[0, 1]."""
    from isoflop.config import TransferConfig, load

    config = load(None, overrides or [], TransferConfig).config
    from isoflop.cli.narration import tell_transfer
    from isoflop.transfer import open_backbone
    from isoflop.transfer import transfer as evaluate

    rows = []
    for random_weights in (False, True):
        backbone = open_backbone(run, random_weights=random_weights)
        rows += evaluate(backbone, config, backbone.name + (", random weights" if random_weights else ""))
    tell_transfer(rows)
