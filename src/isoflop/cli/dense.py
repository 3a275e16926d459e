"""`isoflop transfer --protocol detect|segment`: what a backbone is worth where every place in a picture counts."""

import json
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from isoflop.cli.output import aside, print_json
from isoflop.errors import ConfigError


def transfer_dense(
    checkpoint: str,
    protocols: list[str],
    data: str | None,
    overrides: list[str],
    random: bool,
    beside_random: bool,
    output: Path | None,
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Trains a detector or segmenter for each seed and prints what it finds; `how` goes to `open_backbone`."""
    from isoflop.config import DenseTransferConfig, load

    if len(protocols) > 1:
        raise ConfigError(f"--protocol {protocols[0]} goes alone: each of detect and segment has data of its own kind")
    given = [*overrides, f"protocol={protocols[0]}"]
    if data:
        given.append(f"dataset={json.dumps(data)}")
    config = load(None, given, DenseTransferConfig).config
    tell_once = cache(_tell)  # data are opened for training and for judging
    warnings.showwarning = lambda message, *_rest, **_more: tell_once(f"warning: {message}")
    from isoflop.cli.tables import print_table
    from isoflop.runs.files import write_json
    from isoflop.transfer import open_backbone
    from isoflop.transfer.dense import judge_dense

    folder = output or Path("transfer") / Path(checkpoint.replace(":", "-")).name
    rows: list[dict[str, Any]] = []
    with aside(as_json):
        for random_weights in [True] if random else [False, True] if beside_random else [False]:
            backbone = open_backbone(checkpoint, random_weights=random_weights, **how)
            name = backbone.name
            if random_weights and "random weights" not in name:
                name += ", random weights"
            rows += judge_dense(backbone, config, name, folder=folder, tell=_tell)
    document = {"checkpoint": checkpoint, "config": config.model_dump(mode="json"), "rows": rows}
    write_json(folder / f"{config.protocol}.json", document)
    if as_json:
        print_json({"result": folder / f"{config.protocol}.json", "rows": rows})
        return
    cells = [
        (
            row["name"],
            row["dataset"],
            row["measure"].replace("_ap", " AP").replace("miou", "mIoU"),
            f"{100 * row['mean']:.1f}",
            f"{100 * row['interval'][0]:.1f}–{100 * row['interval'][1]:.1f}" if row["interval"] else "",
            str(row["seeds"]),
        )
        for row in rows
    ]
    print_table(("backbone", "data", "measure", "%", "95% interval", "seeds"), cells)
    print(f"result: {folder / f'{config.protocol}.json'}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
