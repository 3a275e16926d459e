"""`isoflop train --dry-run`: what a run will take, without taking it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isoflop.cli.output import print_json
from isoflop.cli.tables import print_table
from isoflop.errors import ConfigError, DataError

if TYPE_CHECKING:
    from isoflop.config import RunConfig
    from isoflop.train.forecast import Forecast


def print_forecast(config: RunConfig, accelerator: str, devices: int, utilisation: float | None, as_json: bool) -> None:
    """Prints parameters, memory, FLOPs, time and cost of a run; ConfigError where its classes cannot be known."""
    from isoflop.train.accelerators import find_accelerator
    from isoflop.train.forecast import forecast
    from isoflop.train.scaling import MATRIX_SHARE, MEMORY_SHARE

    device = find_accelerator(accelerator)
    classes, channels = _shape(config)
    share = MATRIX_SHARE if utilisation is None else utilisation
    told = forecast(config, device, devices, num_classes=classes, channels=channels, utilisation=share)
    if as_json:
        print_json(_document(told, accelerator))
        return
    print_table((f"{config.model.name}, {config.optim.name}", f"on {devices} × {accelerator}"), _rows(told))
    print(
        f"\nAssumed: matrix products at {100 * share:g} % of {device.matrix_flops / 1e12:,.0f} TFLOP/s, all else at "
        f"{100 * MEMORY_SHARE:g} % of {device.memory_rate / 1e9:,.0f} GB/s, links at their rate, "
        "failures as often as Llama 3 had them (docs/scaling.md)."
    )


def _shape(config: RunConfig) -> tuple[int, int]:
    """Classes and channels: as expected, or of the data where they are at hand."""
    if config.data.num_classes:
        return config.data.num_classes, 3
    from isoflop.data import open_split

    try:
        source = open_split(config.data, "train")
    except DataError as error:
        raise ConfigError(f"set `data.num_classes` to count a run without its data ({error})") from error
    return source.num_classes or 1, source.channels


def _rows(told: Forecast) -> list[tuple[str, str]]:
    memory, step, layout = told.memory, told.step, told.layout
    limit = "of which it has" if told.fits else "but it has"
    rows = [
        ("parameters", f"{told.work.parameters / 1e6:,.1f} M"),
        ("steps", f"{told.steps:,} of {layout.batch_size:,} images: {told.images:,} images"),
        ("FLOPs", f"{told.work.flops_per_image:.3g} an image, {told.flops:.3g} in all"),
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
        ("speed", f"{layout.batch_size / step.total:,.0f} images a second"),
        ("time", _time(told.seconds)),
        ("device-hours", f"{told.device_hours:,.1f}"),
        ("energy", f"{told.energy_kwh:,.0f} kWh"),
    ]
    return rows


def _document(told: Forecast, accelerator: str) -> dict[str, Any]:
    """The forecast in bytes, seconds and FLOPs; what does not fit has no time."""
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
