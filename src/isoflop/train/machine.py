"""What this machine can do: devices, precision, compilation, decoders, room, and which extras are installed."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from isoflop.data.decode import DamagedImage, decode_whole, read_header
from isoflop.train.accelerators import identify

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FOR_DEVELOPERS = ("dev", "bench", "docs")


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
        "compile": _compile(compile),
        "decoders": {name: _decodes(name) for name in FORMATS},
        "extras": {name: missing_packages(name) for name in extras()},
    }


def usable_cores() -> int:
    """Cores that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def extras() -> list[str]:
    """The extras of isoflop that users may want."""
    names = dict.fromkeys(name for _, name in _optional())
    return [name for name in names if name not in FOR_DEVELOPERS]


def missing_packages(extra: str) -> list[str]:
    """Which packages of an extra are not installed."""
    return [package for package, name in _optional() if name == extra and not _is_installed(package)]


def _optional() -> list[tuple[str, str]]:
    """(package, extra) of every optional dependency."""
    found = (re.match(r"([\w.-]+).*extra == ['\"]([\w.-]+)['\"]", line) for line in requires("isoflop") or [])
    return [(match[1], match[2]) for match in found if match]


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _cpu() -> dict[str, Any]:
    """`bfloat16` is whether the instructions are there; without them it works, slower than float32."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"name": "cpu", "model": platform.processor() or platform.machine(), "bfloat16": None}
    lines = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    words = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(words.get("flags", words.get("Features", "")).split())
    return {
        "name": "cpu",
        "model": words.get("model name", platform.machine()),
        "bfloat16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
    }


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
