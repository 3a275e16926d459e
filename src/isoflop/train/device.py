"""The device of a run: selection, precision, and normalization of images on it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from isoflop.data.decode import DamagedImage, decode_whole, read_header
from isoflop.errors import CheckpointError, ConfigError, MachineNotice, did_you_mean
from isoflop.models.operators import cpu_has_bfloat16
from isoflop.runs.files import cache_directory, read_json, write_json

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """The type of matrix products: "float32", or "bfloat16" by autocast (parameters stay float32).

    ConfigError for "auto", which is resolved before a run has an identity.
    """

    name: str = "float32"

    def __post_init__(self) -> None:
        if self.name == "auto":
            raise ConfigError('precision = "auto" is for runs and studies, which choose: give "float32" or "bfloat16"')

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


FASTER = 1.1  # times: what bfloat16 must gain in a step to be chosen, so that noise does not choose


def choose_precision(device: torch.device, seconds: Callable[[str], float]) -> tuple[str, str]:
    """The faster precision on `device`, and why: bfloat16 where it computes in it and the `seconds` of the same work in
    either precision say that it pays, else float32."""
    if not has_bfloat16(device):
        return "float32", f"this {_kind(device)} does not compute in bfloat16"
    gain = seconds("float32") / seconds("bfloat16")
    return "bfloat16" if gain >= FASTER else "float32", f"a step in bfloat16 is {gain:.2g} times as fast as in float32"


def warn_of_slow_precision(name: str, device: torch.device) -> None:
    """Warns where `name` is bfloat16 and `device` does not compute in it: what that costs."""
    if name != "bfloat16" or has_bfloat16(device):
        return
    rates = peak_of(device).rates
    cost = rates["float32"] / rates["bfloat16"]
    told = f"matrix products take {cost:.2g} times as long as in float32" if cost > 1 else "nothing is gained by it"
    warnings.warn(
        f"precision = bfloat16, but this {_kind(device)} does not compute in it: {told}; precision=auto takes the "
        "faster of the two",
        MachineNotice,
        stacklevel=2,
    )


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16; without them it works, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(cpu_has_bfloat16())


def _kind(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "processor"


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU. ConfigError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda, but this machine has no CUDA device: use device = auto or cpu")
    return torch.device(name)


def to_device(model: AnyModule, device: torch.device) -> AnyModule:
    """`model` on `device`, convolution weights channels-last: 1.5 times as fast on CPUs, wanted by tensor cores."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def give_back_memory() -> None:
    """Returns to the system what this process has freed of the host's memory; glibc alone would keep it."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


class HasMoments(Protocol):
    """Whatever knows the mean and deviation of pixels in 0 … 1, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalize(images: Tensor, source: HasMoments, device: torch.device) -> Tensor:
    """uint8 `images` (B, C, H, W) on `device`, normalised by the source's per-channel mean and standard deviation."""
    scale, shift = _scale_and_shift(tuple(source.mean), tuple(source.std), device)
    return images.to(device, non_blocking=True).to(torch.float32).mul_(scale).sub_(shift)


@functools.lru_cache(maxsize=32)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What a pixel is multiplied by, and what is then subtracted; sent to the device once, since that waits for it."""
    with torch.inference_mode(False):
        scale = 1.0 / torch.tensor(std, device=device).view(1, -1, 1, 1)
        return scale / 255.0, torch.tensor(mean, device=device).view(1, -1, 1, 1) * scale


# What accelerators can do at most, as their makers publish it; and what this machine's CPU does, measured.


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
    """The peak of `device` in FLOPs a second, in its fastest precision, and its watts: from the table, or measured,
    with the watts assumed of a CPU."""
    known = identify(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return peak_of(device).fastest, known.watts if known else CPU_WATTS


@dataclass(frozen=True)
class Peak:
    """What matrix products reach on one device: FLOPs a second by precision."""

    rates: dict[str, float]
    threads: int
    quiet: bool = True
    """False where other work took the processor meanwhile: the rates are then of processor time, and may be too low"""

    @property
    def fastest(self) -> float:
        """The rate of the fastest precision, which utilisation is a share of."""
        return max(self.rates.values())

    def __str__(self) -> str:
        told = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in self.rates.items())
        return told if self.quiet else f"{told} (measured beside other work on this machine: may be too low)"


def peak_of(device: torch.device, threads: int | None = None, *, again: bool = False) -> Peak:
    """The peak of `device`: from the table of accelerators, or as measured once for this processor and PyTorch with
    `threads` (those of this process when left out), and kept in the cache.

    What was measured beside other work is measured `again` if that is asked for.
    """
    known = identify(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if known:
        return Peak({"bfloat16": known.matrix_flops}, 1)
    return _kept_peak(device.type, threads or torch.get_num_threads(), again)


@functools.lru_cache(maxsize=32)
def _kept_peak(device_type: str, threads: int, again: bool) -> Peak:
    machine = {
        "device": torch.cuda.get_device_name() if device_type == "cuda" else processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "threads": threads,
    }
    key = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:16]
    path = cache_directory() / "machine" / f"{key}.json"
    before: dict[str, float] = {}
    with suppress(CheckpointError, TypeError, ValueError):
        found = read_json(path, {"rates": dict, "quiet": bool})
        before = {str(name): float(rate) for name, rate in found["rates"].items()}
        if before and (found["quiet"] or not again):
            return Peak(before, threads, found["quiet"])
    peak = _measured_peak(torch.device(device_type), threads)
    if not peak.quiet:
        best = {name: max(rate, before.get(name, 0.0)) for name, rate in peak.rates.items()}
        peak = Peak(best, threads, quiet=False)
    with suppress(OSError):  # it is measured again then
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"machine": machine, "rates": peak.rates, "quiet": peak.quiet})
    return peak


OWN_SHARE = 0.9  # of the time, at least, that the processor must be this process's while a peak is measured


def _measured_peak(device: torch.device, threads: int) -> Peak:
    """The best of some products of square matrices; a few tenths of a second on a CPU core."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        has = has_bfloat16(device)
        timed = {"float32": product_rate(device, torch.float32, 768)}
        timed["bfloat16"] = product_rate(device, torch.bfloat16, 768 if has else 128)
    finally:
        torch.set_num_threads(before)
    quiet = all(share >= OWN_SHARE for _, share in timed.values())
    return Peak({name: rate for name, (rate, _) in timed.items()}, threads, quiet)


def product_rate(device: torch.device, kind: torch.dtype, side: int, rounds: int = 10) -> tuple[float, float]:
    """FLOPs a second of processor time (a GPU: of time), and the share of the time that the processor was ours."""
    side = 8192 if device.type == "cuda" else side
    a = torch.ones(side, side, dtype=kind, device=device)
    (a @ a).sum().item()  # pays for buffers and kernels
    seconds, began = [], time.perf_counter()
    used = time.process_time()
    for _ in range(rounds):
        start, own = time.perf_counter(), time.process_time()
        (a @ a)[0, 0].item()
        wall, own = time.perf_counter() - start, time.process_time() - own
        seconds.append(wall if device.type == "cuda" else own / torch.get_num_threads())
    used, wall = time.process_time() - used, time.perf_counter() - began
    share = 1.0 if device.type == "cuda" else used / torch.get_num_threads() / wall
    return 2 * side**3 / max(min(seconds), 1e-9), share


# What this machine can do: devices, precision, compilation, decoders, room.


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def describe_machine(folder: Path, *, compile: bool = False) -> dict[str, Any]:
    """The machine in JSON values: sizes in bytes, lists of what is missing.

    Args:
        folder: where runs would be written; its free space is told.
        compile: also compile a function, which takes seconds to minutes; otherwise only whether there is a compiler.
    """
    return {
        "isoflop": version("isoflop"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.machine()}",
        "processes": usable_cores(),
        "memory_bytes": _memory_bytes(),
        "free_disk_bytes": shutil.disk_usage(folder).free,
        "devices": [_cpu(), *map(_gpu, range(torch.cuda.device_count()))],
        "peaks": _peaks(),
        "compile": _compile(compile),
        "decoders": {name: _decodes(name) for name in FORMATS},
    }


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """A context in which PyTorch computes on so many threads of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def usable_cores() -> int:
    """Cores that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _cpu() -> dict[str, Any]:
    return {"name": "cpu", "model": processor_name(), "bfloat16": cpu_has_bfloat16()}


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    name = re.search(r"^model name\s*:(.*)", told, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _peaks() -> list[dict[str, Any]]:
    """Of the CPU with one thread and with all cores, and of each GPU."""
    cpu, cuda = torch.device("cpu"), [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    peaks = [("cpu", peak_of(cpu, threads, again=True)) for threads in sorted({1, usable_cores()})]
    peaks += [(str(device), peak_of(device, again=True)) for device in cuda]
    return [{"device": name, **asdict(peak), "told": str(peak)} for name, peak in peaks]


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    known = identify(properties.name)
    return {
        "name": f"cuda:{index}",
        "model": properties.name,
        "memory_bytes": properties.total_memory,
        "bfloat16": properties.major >= 8,  # Ampere and later
        "accelerator": known.name if known else None,
    }


def _compile(attempt: bool) -> dict[str, Any]:
    """What `torch.compile` needs, and whether it worked, how long it took and why not, if that was asked for."""
    name = os.environ.get("CXX", "cl" if sys.platform == "win32" else "g++")
    found: dict[str, Any] = {"compiler": shutil.which(name) or shutil.which("clang++"), "works": None}
    if not attempt:
        return found
    began = time.perf_counter()
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.compile(lambda x: (2 * x + 1).sum())(torch.ones(8, device=device))
    except Exception as error:  # whatever is wrong with a toolchain comes as many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return found | {"works": False, "reason": reason}
    return found | {"works": True, "seconds": round(time.perf_counter() - began, 1)}


def _decodes(name: str) -> bool:
    """Whether a picture of that format is really read."""
    written = io.BytesIO()
    try:
        Image.new("RGB", (16, 16), (200, 100, 50)).save(written, name)
        header = read_header(written.getvalue())
        return decode_whole(written.getvalue(), header).shape == (16, 16, 3)
    except (DamagedImage, KeyError, OSError):  # Pillow without that library cannot write the picture either
        return False
