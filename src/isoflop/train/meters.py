"""How well the machine is used: what a row of the journal says beside loss and learning rate.

`images_per_second` since the row before; `mfu`, the model's FLOPs over what the devices could do at most;
`memory_bytes`, the peak on one device (of a CPU: of this process); `wall`, seconds of this attempt; `goodput`, seconds
that led to the present weights over the seconds of all attempts; `device_hours` and `energy_kwh` of all attempts (watts
by the data sheet, 100 W assumed of a CPU, nothing for hosts and cooling).
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import torch

from isoflop.runs.journal import decode_row
from isoflop.train.accelerators import matrix_rate

MEASURED = frozenset(
    {
        "seconds",
        "data_wait",
        "images_per_second",
        "mfu",
        "memory_bytes",
        "wall",
        "goodput",
        "device_hours",
        "energy_kwh",
    }
)
"""The fields of a row that two equal runs may differ in."""


class Meters:
    """Measures one attempt, on rank 0 for all devices; `began` is when it began, by `time.perf_counter`."""

    def __init__(
        self,
        directory: Path,
        *,
        flops_per_image: float,
        device: torch.device,
        devices: int,
        began: float,
    ) -> None:
        self.flops_per_image = flops_per_image
        self.device = device
        self.devices = devices
        self.peak, self.watts = matrix_rate(device)
        self.before = wall_of_attempts(directory)
        self.began = began
        self.images = 0
        self.since = time.perf_counter()

    def read(self, images: int, seconds: float) -> dict[str, float]:
        """The fields of a row, after `images` of the run; `seconds` of training led to the present weights."""
        now = time.perf_counter()
        rate = (images - self.images) / max(now - self.since, 1e-9)
        wall = now - self.began
        total = self.before + wall
        hours = total * self.devices / 3600
        return {
            "images_per_second": _short(rate),
            "mfu": _short(rate * self.flops_per_image / (self.peak * self.devices)),
            "memory_bytes": peak_memory(self.device),
            "wall": round(wall, 3),
            "goodput": _short(min(1.0, seconds / total)),
            "device_hours": _short(hours),
            "energy_kwh": _short(hours * self.watts / 1000),
        }

    def resume(self, images: int) -> None:
        """Training goes on from `images`: what was done since `read` (evaluation, writing) is not in the next rate."""
        self.images, self.since = images, time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def wall_of_attempts(directory: Path) -> float:
    """The seconds that the earlier attempts at the run in `directory` took, as far as their last rows tell."""
    return sum(_last_wall(folder) for folder in directory.glob("attempts/*") if folder.name.isdigit())


def _last_wall(attempt: Path) -> float:
    for file in sorted(attempt.glob("metrics-*.jsonl"), reverse=True):
        with file.open("rb") as text:
            text.seek(max(0, file.stat().st_size - 16_384))
            for line in reversed(text.read().splitlines()):
                wall = _wall(line)
                if wall is not None:
                    return wall
    return 0.0


def _wall(line: bytes) -> float | None:
    row = decode_row(line)  # None where it is torn, or cut by where reading began
    return float(row["wall"]) if row and "wall" in row else None


def _short(value: float) -> float:
    """Four significant digits: more would be noise, a million times."""
    return float(f"{value:.4g}")
