"""`isoflop train`: one run."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.cli.config import File, Overrides
from isoflop.cli.groups import examples
from isoflop.cli.output import Json, aside, print_json
from isoflop.cli.streams import over_the_line
from isoflop.errors import ModelError

EXAMPLES = examples(
    "isoflop train recipes/vit_s16_imagenet1k.toml",
    "isoflop train recipes/vit_s16_imagenet1k.toml optim.learning_rate=3e-3 --output runs/mine",
    "isoflop train recipes/vit_s16_imagenet1k.toml --dry-run --accelerator h100 --devices 8",
    "torchrun --nproc-per-node 8 -m isoflop train recipes/vit_s16_imagenet1k.toml",
)


def train(
    file: File,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; runs/NAME-HASH when left out."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, and train nothing.")] = False,
    accelerator: Annotated[
        str, typer.Option("--accelerator", metavar="NAME", help="With --dry-run: what it would be trained on.")
    ] = "h100",
    devices: Annotated[int, typer.Option("--devices", metavar="N", min=1, help="With --dry-run: how many.")] = 1,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilisation", metavar="SHARE", min=0.01, max=1, help="With --dry-run: of the peak, by matrix products."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train one run, or go on with it where it was interrupted; under torchrun, as one of several processes.

    SIGTERM and SIGUSR1 have it save a checkpoint and exit with 75. A run that diverges exits with 1.
    """
    from isoflop.config import load_run

    loaded = load_run(file, overrides or [])
    if dry_run:
        from isoflop.cli.dry_run import print_forecast

        with _placed(loaded.origins):
            print_forecast(loaded.config, accelerator, devices, utilisation, as_json)
        return
    from isoflop.train import train as train_run
    from isoflop.train.identity import run_directory
    from isoflop.train.preemption import PREEMPTED, asked_to_stop
    from isoflop.train.ranks import is_first_process

    with _placed(loaded.origins), aside(as_json), asked_to_stop() as stop:
        directory = output or run_directory(Path("runs"), file.stem, loaded.config)
        result = train_run(loaded.config, directory, on_row=_Progress(loaded.config.steps), stop=stop)
    speaks = is_first_process()
    if as_json and speaks:
        print_json({"directory": directory, **vars(result)})
    if result.state == "preempted":
        print(f"{result.error} - the same command goes on from here", file=sys.stderr)
        raise typer.Exit(PREEMPTED)
    if not speaks:
        return
    if result.state != "done":
        if not as_json:
            print(f"{result.state}: {result.error}")
        raise typer.Exit(1)
    if as_json:
        return
    accuracy = "" if result.heldout_accuracy is None else f", accuracy {result.heldout_accuracy:.3f}"
    print(
        f"done: held-out loss {result.heldout_loss:.4f}{accuracy}, {result.seconds:.1f} s of training, in {directory}"
    )


@contextmanager
def _placed(origins: Mapping[str, str]) -> Iterator[None]:
    """Says where the model was named that cannot be built, or where the option was set that it cannot have."""
    try:
        yield
    except ModelError as error:
        origin = origins.get(f"model.{error.option}", origins["model.name"])
        raise ModelError(f"{origin}: {error}") from error


class _Progress:
    """Shows the journal as it grows: one line that is rewritten on a terminal, evaluations only elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first: tuple[int, float] | None = None  # the step and moment of the first row

    def __call__(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self.first = self.first or (row["step"], now)
        evaluated = "heldout_loss" in row
        if not evaluated and not sys.stdout.isatty():
            return
        text = f"step {row['step']}/{self.steps}  loss {row['loss']:.4f}"
        if evaluated:
            text += f"  held-out loss {row['heldout_loss']:.4f}"
            text += f"  accuracy {row['heldout_accuracy']:.3f}" if "heldout_accuracy" in row else ""
        done, began = self.first
        if row["step"] > done:
            left = (self.steps - row["step"]) * (now - began) / (row["step"] - done)
            text += f"  {left:.0f} s left"
        if sys.stdout.isatty():
            over_the_line(text, end="\n" if evaluated else "")
        else:
            print(text, flush=True)
