"""`isoflop transfer` and `isoflop predict`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.config import Overrides
from isoflop.cli.output import Json, argument, aside, examples, existing, print_json, print_table
from isoflop.errors import ConfigError, DataError

if TYPE_CHECKING:
    from isoflop.transfer.predict import Guess


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
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="The model of a .safetensors file.")
    ] = None,
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
    from isoflop.transfer.evaluate import write_result
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


# `isoflop transfer --protocol detect|segment`


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
    tell_once = cache(_report_progress)  # data are opened for training and for judging
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
            rows += judge_dense(backbone, config, name, folder=folder, tell=_report_progress)
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


def _report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# `isoflop predict`


PREDICT_EXAMPLES = examples(
    "isoflop predict runs/vit-1a2b3c cat.jpg dog.jpg", "isoflop predict vit-timm my_images --top 1 --json"
)


def predict(
    checkpoint: Annotated[
        str,
        argument("Folder of a finished run or study, or what else `isoflop transfer` takes.", "CHECKPOINT"),
    ],
    images: Annotated[list[Path], argument("Image files, or folders of them.", "IMAGE...")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Number of classes to print.")] = 5,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="The model of a .safetensors file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the most probable classes of images. Exit 1 if some images are damaged; they are skipped."""
    if ":" not in checkpoint:
        existing(Path(checkpoint).expanduser())
    for image in images:
        existing(image)
    from isoflop.data.records import Damage
    from isoflop.transfer.predict import predict as guesses

    damaged: list[Damage] = []
    found = list(guesses(checkpoint, images, top=top, model=model, damaged=damaged))
    if not found:
        others = f" (and {len(damaged) - 1:,} others cannot be read either)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].line}{others}")
    for damage in damaged:
        print(f"warning: {damage.line}", file=sys.stderr)
    if as_json:
        documents = [{"file": path, "classes": best} for path, best in found]
        print_json({"images": documents, "damaged": [{"file": d.name, "reason": d.reason} for d in damaged]})
    else:
        print_table(("image", "class", "probability"), _rows(found))
    if damaged:
        total = len(found) + len(damaged)
        print(f"warning: {len(damaged):,} of {total:,} images are damaged and were skipped", file=sys.stderr)
        raise typer.Exit(1)


def _rows(found: list[tuple[Path, list[Guess]]]) -> list[tuple[str, str, str]]:
    return [
        (str(path) if place == 0 else "", guess.name, f"{guess.probability:.3f}")
        for path, best in found
        for place, guess in enumerate(best)
    ]
