"""`isoflop train`: one run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.config import File, Overrides
from isoflop.cli.output import Json, aside, examples, is_quiet, over_the_line, print_json, print_table
from isoflop.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from isoflop.config import RunConfig
    from isoflop.train.forecast import Forecast


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
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; default runs/NAME-HASH."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Predict memory, time and cost; train nothing.")] = False,
    accelerator: Annotated[
        str, typer.Option("--accelerator", metavar="NAME", help="With --dry-run: the accelerator.")
    ] = "h100",
    devices: Annotated[
        int, typer.Option("--devices", metavar="N", min=1, help="With --dry-run: the number of devices.")
    ] = 1,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilisation",
            metavar="SHARE",
            min=0.01,
            max=1,
            help="With --dry-run: fraction of the peak that matrix products reach.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train one run, or resume it. Under torchrun, train as one of several processes.

    On SIGTERM and SIGUSR1 it saves a checkpoint and exits with 75. A run that diverges exits with 1.
    """
    from isoflop.config import load_run

    loaded = load_run(file, overrides or [])
    if dry_run:
        with _placed(loaded.origins):
            print_forecast(loaded.config, accelerator, devices, utilisation, as_json)
        return
    from isoflop.train import train as train_run
    from isoflop.train.guards import PREEMPTED, asked_to_stop
    from isoflop.train.identity import run_directory
    from isoflop.train.ranks import is_first_process

    with _placed(loaded.origins), aside(as_json), asked_to_stop() as stop:
        directory = output or run_directory(Path("runs"), file.stem, loaded.config)
        result = train_run(loaded.config, directory, on_row=_Progress(loaded.config), stop=stop)
    speaks = is_first_process()
    if as_json and speaks:
        print_json({"directory": directory, **vars(result)})
    if result.state == "preempted":
        print(f"{result.error} - run the same command to resume", file=sys.stderr)
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
    accuracy += "" if result.probe_accuracy is None else f", probe accuracy {result.probe_accuracy:.3f}"
    print(
        f"done: held-out loss {result.heldout_loss:.4f}{accuracy}, {result.seconds:.1f} s of training, in {directory}"
    )


@contextmanager
def _placed(origins: Mapping[str, str]) -> Iterator[None]:
    """Adds to a ModelError the place in the configuration that names the model or the option."""
    try:
        yield
    except ModelError as error:
        origin = origins.get(f"model.{error.option}", origins["model.name"])
        raise ModelError(f"{origin}: {error}") from error


class _Progress:
    """Prints rows of the journal: on a terminal one updated line, elsewhere only evaluations."""

    def __init__(self, config: RunConfig) -> None:
        first = config.pretraining
        self.steps = {"": config.steps} | ({"pretraining": first.steps} if first else {})
        self.phase = ""
        self.first: tuple[int, float] | None = None  # the step and moment of the first row

    def __call__(self, row: Mapping[str, Any]) -> None:
        now, phase = time.monotonic(), row.get("phase", "")
        if phase != self.phase:
            self.phase, self.first = phase, None
        self.first = self.first or (row["step"], now)
        evaluated = "heldout_loss" in row
        if is_quiet() or (not evaluated and not sys.stdout.isatty()):
            return
        steps = self.steps[phase]
        text = f"{phase} step {row['step']}/{steps}  loss {row['loss']:.4f}".lstrip()
        if evaluated:
            text += f"  held-out loss {row['heldout_loss']:.4f}"
            text += f"  accuracy {row['heldout_accuracy']:.3f}" if "heldout_accuracy" in row else ""
            text += f"  probe accuracy {row['probe_accuracy']:.3f}" if "probe_accuracy" in row else ""
        done, began = self.first
        if row["step"] > done:
            left = (steps - row["step"]) * (now - began) / (row["step"] - done)
            text += f"  {left:.0f} s left" + (f" of the {phase}" if phase else "")
        if sys.stdout.isatty():
            over_the_line(text, end="\n" if evaluated else "")
        else:
            print(text, flush=True)


# `isoflop train --dry-run`


def print_forecast(config: RunConfig, accelerator: str, devices: int, utilisation: float | None, as_json: bool) -> None:
    """Prints parameters, memory, FLOPs, time and cost of a run; ConfigError if the number of classes is unknown."""
    from isoflop.train.device import find_accelerator
    from isoflop.train.forecast import forecast
    from isoflop.train.scaling import MATRIX_SHARE, MEMORY_SHARE

    device = find_accelerator(accelerator)
    classes, channels = _shape(config)
    share = MATRIX_SHARE if utilisation is None else utilisation
    told = forecast(config, device, devices, num_classes=classes, channels=channels, utilisation=share)
    if as_json:
        print_json(_document(told, accelerator))
        return
    print_table(
        (f"{config.model.name}, {config.optim.name}", f"on {devices} × {accelerator}"),
        _rows(told, chosen=config.precision == "auto"),
    )
    print(
        f"\nAssumed: matrix products at {100 * share:g} % of {device.matrix_flops / 1e12:,.0f} TFLOP/s, all else at "
        f"{100 * MEMORY_SHARE:g} % of {device.memory_rate / 1e9:,.0f} GB/s, links at their rate, "
        "failures as often as Llama 3 had them (docs/scaling.md)."
    )


def _shape(config: RunConfig) -> tuple[int, int]:
    """Classes and channels, from the configuration, or from the data if they are available."""
    if config.data.num_classes:
        return config.data.num_classes, 3
    from isoflop.data import open_split

    try:
        source = open_split(config.data, "train")
    except DataError as error:
        raise ConfigError(f"set `data.num_classes` to count a run without its data ({error})") from error
    return source.num_classes or 1, source.channels


def _rows(told: Forecast, *, chosen: bool) -> list[tuple[str, str]]:
    memory, step, layout = told.memory, told.step, told.layout
    by_auto = ", which auto is where it is faster: measured when the run begins" if chosen else ""
    limit = "of which it has" if told.fits else "but it has"
    rows = [
        ("precision", f"{layout.precision}{by_auto}"),
        ("parameters", f"{told.work.parameters / 1e6:,.1f} M"),
        ("steps", f"{told.steps:,} of {layout.batch_size:,} images: {told.images:,} images"),
        *_pretraining_row(told.pretraining),
        ("FLOPs", f"{told.work.flops_per_image:.3g} per image, {told.flops:.3g} in total"),
        ("memory of a device", f"{_gb(memory.total)}, {limit} {_gb(told.device.memory_bytes)}"),
        ("  weights", _gb(memory.weights)),
        ("  gradients", _gb(memory.gradients)),
        ("  optimizer", _gb(memory.optimizer)),
        ("  gathered weights", _gb(memory.gathered)),
        ("  activations", f"{_gb(memory.activations)} of {layout.at_a_time:g} images"),
        ("communication", f"{_gb(told.communication.bytes)} a step"),
        ("checkpoint", f"{_gb(told.checkpoint_bytes)}, at best every {_time(told.reliability.interval)}"),
        ("goodput", f"{100 * told.reliability.goodput:.2f} %"),
    ]
    if not told.fits:
        more = "parallel.sharding=full, a smaller parallel.device_batch_size, parallel.recompute=1"
        return [*rows, ("time", "none: it does not fit"), ("to fit", more)]
    rows += [
        (
            "step",
            f"{1e3 * step.total:,.1f} ms: compute {1e3 * step.compute:,.1f}, network {1e3 * step.communication:,.1f}",
        ),
        ("speed", f"{layout.batch_size / step.total:,.0f} images per second"),
        ("time", _time(told.seconds)),
        ("device-hours", f"{told.device_hours:,.1f}"),
        ("energy", f"{told.energy_kwh:,.0f} kWh"),
    ]
    return rows


def _pretraining_row(first: Forecast | None) -> list[tuple[str, str]]:
    if first is None:
        return []
    took = f", {_time(first.seconds)}" if first.fits else ""
    steps = f"{first.steps:,} steps: {first.images:,} images"
    return [("pretraining", f"{steps}, {first.flops:.3g} FLOPs, {_gb(first.memory.total)} of a device{took}")]


def _document(told: Forecast, accelerator: str) -> dict[str, Any]:
    """The forecast in bytes, seconds and FLOPs; without times if the run does not fit."""
    return {
        "accelerator": accelerator,
        "fits": told.fits,
        "images": told.images,
        "flops": told.flops,
        "seconds": told.seconds if told.fits else None,
        "device_hours": told.device_hours if told.fits else None,
        "energy_kwh": told.energy_kwh if told.fits else None,
        "checkpoint_bytes": told.checkpoint_bytes,
        **vars(told),
        "step": told.step if told.fits else None,
    }


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
