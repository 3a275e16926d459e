"""`isoflop export` and `isoflop import`: weights that leave, and weights that come in."""

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.groups import argument, examples
from isoflop.cli.output import Json, aside, print_json

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
        str, argument("Folder of a finished run, or what else `isoflop transfer` takes.", "CHECKPOINT")
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="timm, huggingface, onnx or safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that is not there yet.")],
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="SPDX", help="Of the weights, for the model card.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write trained weights as another library reads them, with a model card.

    That library reads them first, and must come to the same outputs: else nothing is written.
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
        print("the model card names no licence: --licence does, before you publish it")


def import_(
    source: Annotated[str, argument("A weight file, a folder of timm's or Hugging Face's, or timm:NAME.", "SOURCE")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that is not there yet.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PRESET", help="Whose weights they are, where it does not tell."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PX", min=1, help="Not the one they were trained for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring public weights in: big_vision, AugReg, MAE, PoolFormer, MetaFormer, timm, Hugging Face.

    The folder is a checkpoint like any other: for transfer, export, inspect, and `start.weights` of a run.
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
        print("names and shapes fit more than one model: which, the name of the file says; --model names another")
    if done.left_out:
        print(f"not part of a backbone, left out: {len(done.left_out)} tensors ({', '.join(done.left_out[:3])}, ...)")
