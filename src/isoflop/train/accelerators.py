"""What accelerators can do at most, as their makers publish it; and what this machine's CPU does, measured."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

from isoflop.errors import ConfigError, did_you_mean

GB, TFLOPS = 1e9, 1e12


@dataclass(frozen=True)
class Accelerator:
    """One device. Rates are peaks, without sparsity; links are bytes a second in one direction."""

    name: str
    matrix_flops: float
    """FLOPs a second of bfloat16 matrix products (2 per multiply-add)"""
    memory_bytes: float
    memory_rate: float
    """bytes a second"""
    link_rate: float
    """to the devices of the same host"""
    network_rate: float
    """to other hosts, a device's share"""
    watts: float
    """the board's limit, which is what energy is estimated from"""
    matches: tuple[str, ...] = ()
    """words of the name that the driver gives, all of which must be there"""


# Data sheets: NVIDIA H100 (2023), H200 (2024), HGX B200 (2025), A100 80GB (2021), L40S (2023), A10 (2021); Ada and
# Ampere GA102 architecture white papers (RTX 4090, RTX 3090, products accumulated in float32); Google Cloud TPU
# documentation and arXiv 2304.01433 (v3, v4: a chip, which is two cores). Networks are those of the
# makers' own hosts (DGX).
ACCELERATORS: dict[str, Accelerator] = {
    a.name: a
    for a in (
        Accelerator("b200", 2250 * TFLOPS, 180 * GB, 7700 * GB, 900 * GB, 50 * GB, 1000, ("B200",)),
        Accelerator("h200", 989 * TFLOPS, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 700, ("H200",)),
        Accelerator("h100-pcie", 756 * TFLOPS, 80 * GB, 2000 * GB, 64 * GB, 50 * GB, 350, ("H100", "PCIe")),
        Accelerator("h100", 989 * TFLOPS, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 700, ("H100",)),
        Accelerator("a100", 312 * TFLOPS, 80 * GB, 2039 * GB, 300 * GB, 25 * GB, 400, ("A100",)),
        Accelerator("l40s", 362 * TFLOPS, 48 * GB, 864 * GB, 32 * GB, 25 * GB, 350, ("L40S",)),
        Accelerator("a10", 125 * TFLOPS, 24 * GB, 600 * GB, 32 * GB, 12.5 * GB, 150, ("A10",)),
        Accelerator("rtx3090", 71 * TFLOPS, 24 * GB, 936 * GB, 32 * GB, 1.25 * GB, 350, ("3090",)),
        Accelerator("rtx4090", 165 * TFLOPS, 24 * GB, 1008 * GB, 32 * GB, 1.25 * GB, 450, ("4090",)),
        Accelerator("tpu-v4", 275 * TFLOPS, 32 * GB, 1228 * GB, 150 * GB, 25 * GB, 192, ()),
        Accelerator("tpu-v3", 123 * TFLOPS, 32 * GB, 900 * GB, 140 * GB, 12.5 * GB, 220, ()),
    )
}
CPU_WATTS = 100.0  # assumed of a machine without an accelerator


def find_accelerator(name: str) -> Accelerator:
    """The row of that name; ConfigError with the names there are."""
    if name not in ACCELERATORS:
        there_is = f"; there is {', '.join(ACCELERATORS)}"
        raise ConfigError(f"unknown accelerator `{name}`{did_you_mean(name, list(ACCELERATORS)) or there_is}")
    return ACCELERATORS[name]


def identify(driver_name: str) -> Accelerator | None:
    """The row for the name that a driver gives (`NVIDIA H100 80GB HBM3`); None for one that is not in the table."""
    words = driver_name.lower().replace("-", " ")
    rows = (a for a in ACCELERATORS.values() if a.matches and all(word.lower() in words for word in a.matches))
    return next(rows, None)


def matrix_rate(device: torch.device) -> tuple[float, float]:
    """The peak of `device` in FLOPs a second, and its watts: from the table, or measured with float32 on a CPU.

    A GPU that is not in the table is measured too, in bfloat16, with the watts assumed of a CPU.
    """
    known = identify(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if known:
        return known.matrix_flops, known.watts
    return measured_matrix_rate(device.type, torch.get_num_threads()), CPU_WATTS


@functools.lru_cache(maxsize=8)
def measured_matrix_rate(device_type: str, threads: int, size: int = 512, rounds: int = 3) -> float:
    """FLOPs a second of the best of a few products of two square matrices: some 20 ms on a CPU core."""
    kind, side = (torch.bfloat16, 8192) if device_type == "cuda" else (torch.float32, size)
    a = torch.ones(side, side, dtype=kind, device=device_type)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        (a @ a).sum().item()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)
