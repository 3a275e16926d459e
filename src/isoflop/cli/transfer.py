"""`isoflop transfer`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.cli.config import Overrides
from isoflop.cli.output import Json, Model, argument, aside, examples, existing, print_json, print_table, tell_progress
from isoflop.errors import ConfigError

EXAMPLES = examples(
    "isoflop transfer runs/vit-1a2b3c --data folder:my_images -p ridge shots=5",
    "isoflop transfer timm:vit_small_patch16_224 --data digits --beside-random --json",
)


def transfer(
    checkpoint: Annotated[
        str, argument("Folder of a run or of a Hugging Face model, FILE.safetensors, or timm:NAME.", "CHECKPOINT")
    ],
    overrides: Overrides = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option("--protocol", "-p", metavar="NAME", help="Protocol, see docs/transfer.md; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="SOURCE", help="Labelled images, or vtab:FOLDER.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PX", min=1, help="Default: the size of pretraining.")
    ] = None,
    model: Model = None,
    random: Annotated[bool, typer.Option("--random", help="Use random weights instead; downloads nothing.")] = False,
    beside_random: Annotated[
        bool, typer.Option("--beside-random", help="Also evaluate the same backbone with random weights.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: transfer/NAME.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a backbone by few-shot, linear probe or fine-tuning; shots=5, seeds=[0, 1], run.steps=100 ...

    Every accuracy has a 95 % interval. Run the same command to resume an interrupted evaluation.
    """
    from isoflop.config import TransferConfig, load

    if ":" not in checkpoint:
        existing(Path(checkpoint).expanduser())
    given = list(overrides or [])
    if protocol and set(protocol) & {"detect", "segment"}:
        how = {"image_size": image_size, "model": model}
        transfer_dense(checkpoint, protocol, data, given, random, beside_random, output, how, as_json)
        return
    if protocol:
        given.append(f"protocols={json.dumps(protocol)}")
    if data:
        given.append(f"dataset={json.dumps(data)}")
    config = load(None, given, TransferConfig).config
    idle = {"run", "last_blocks", "learning_rates"} & config.model_fields_set
    if idle and not any(name.startswith("finetune") for name in config.protocols):
        raise ConfigError(f"`{min(idle)}` is for fine-tuning: name such a protocol, too, with --protocol")
    from isoflop.transfer import open_backbone
    from isoflop.transfer import transfer as evaluate
    from isoflop.transfer.protocols import write_result
    from isoflop.transfer.vtab import is_vtab, vtab

    folder = output or Path("transfer") / Path(checkpoint.replace(":", "-")).name
    rows: list[dict[str, Any]] = []
    with aside(as_json):
        for random_weights in [True] if random else [False, True] if beside_random else [False]:
            backbone = open_backbone(checkpoint, image_size=image_size, random_weights=random_weights, model=model)
            name = backbone.name
            if random_weights and "random weights" not in name:
                name += ", random weights"
            judge = vtab if is_vtab(config.dataset) else evaluate
            rows += judge(backbone, config, name, folder=folder, tell=tell_progress)
    path = write_result(folder, checkpoint, config, rows)
    if as_json:
        print_json({"result": path, "rows": rows})
        return
    tell_rows(rows)
    print(f"result: {path}")


def tell_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print accuracies with their intervals."""
    table = [
        (
            row["name"],
            row["dataset"],
            row["protocol"],
            str(row["shots"] or "all"),
            f"{row['accuracy_mean']:.4f}",
            f"{row['interval'][0]:.4f}–{row['interval'][1]:.4f}" if row.get("interval") else "",
            str(row["seeds"]),
        )
        for row in rows
    ]
    print_table(("backbone", "data", "protocol", "shots", "accuracy", "95% interval", "seeds"), table)


# `isoflop transfer --protocol detect|segment`


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
    """Trains and evaluates a detector or segmenter for each seed; `how` is passed to `open_backbone`."""
    from isoflop.config import DenseTransferConfig, load

    if len(protocols) > 1:
        raise ConfigError(
            f"--protocol {protocols[0]} cannot be combined with other protocols, because its data are of another kind"
        )
    given = [*overrides, f"protocol={protocols[0]}"]
    if data:
        given.append(f"dataset={json.dumps(data)}")
    config = load(None, given, DenseTransferConfig).config
    tell_once = cache(_warn)  # data are opened for training and for judging
    warnings.showwarning = lambda message, *_rest, **_more: tell_once(f"warning: {message}")
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
            rows += judge_dense(backbone, config, name, folder=folder, tell=tell_progress)
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
