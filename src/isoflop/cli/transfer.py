"""`isoflop transfer`: what a trained backbone is worth on another task."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.cli.config import Overrides
from isoflop.cli.groups import argument, examples
from isoflop.cli.output import Json, aside, print_json
from isoflop.cli.paths import existing
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
        list[str] | None, typer.Option("--protocol", "-p", metavar="NAME", help="Repeatable; docs/transfer.md.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="SOURCE", help="Labelled images, or vtab:FOLDER.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PX", min=1, help="Not the one it was trained for.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="Whose weights a .safetensors file holds.")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random weights alone, nothing is fetched.")] = False,
    beside_random: Annotated[
        bool, typer.Option("--beside-random", help="The same backbone with random weights, too.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="transfer/NAME when left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a backbone by few-shot, probe or fine-tuning; shots=5, seeds=[0, 1], run.steps=100 ...

    Every accuracy comes with its 95 % interval. An interrupted evaluation goes on where it was.
    """
    from isoflop.config import TransferConfig, load

    if ":" not in checkpoint:
        existing(Path(checkpoint).expanduser())
    given = list(overrides or [])
    if protocol and set(protocol) & {"detect", "segment"}:
        from isoflop.cli.dense import transfer_dense

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
    from isoflop.transfer.report import write_result
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
            rows += judge(backbone, config, name, folder=folder, tell=_tell)
    path = write_result(folder, checkpoint, config, rows)
    if as_json:
        print_json({"result": path, "rows": rows})
        return
    tell_rows(rows)
    print(f"result: {path}")


def tell_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print accuracies with their intervals."""
    from isoflop.cli.tables import print_table

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


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
