"""`isoflop doctor`: what this machine supports and what is missing."""

import platform
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.cli.output import Json, examples, print_json, print_table
from isoflop.errors import MissingExtra

EXAMPLES = examples("isoflop doctor", "isoflop doctor --compile --json")
FOR_DEVELOPERS = ("dev", "bench", "docs")
EXTRAS = {
    "train": "runs, studies, evaluation, weights",
    "cluster": "studies on a Ray cluster or on SLURM",
    "dense": "average precision of detection and segmentation",
    "figures": "figures as SVG, PDF and PNG",
    "export": "ONNX and Hugging Face",
    "float8": "8-bit matrix products on GPUs that support them",
    "wandb": "curves on Weights & Biases",
    "mlflow": "curves on an MLflow server",
}


def doctor(
    compile: Annotated[bool, typer.Option("--compile", help="Also test torch.compile (up to minutes).")] = False,
    as_json: Json = False,
) -> None:
    """Show devices, precision, decoders, extras, memory and disk of this machine. Always exits with 0."""
    try:
        from isoflop.train.device import describe_machine
    except MissingExtra:
        from importlib.metadata import version

        found: dict[str, Any] = {"isoflop": version("isoflop"), "python": platform.python_version(), "torch": None}
    else:
        found = describe_machine(Path.cwd(), compile=compile)
    found["extras"] = {name: missing_packages(name) for name in extras()}
    if as_json:
        print_json(found)
        return
    print_table(("item", "value"), [*_machine(found), *_extras(found["extras"])])


def _machine(found: dict[str, Any]) -> list[tuple[str, str]]:
    if found["torch"] is None:
        return [("isoflop", f"{found['isoflop']}, Python {found['python']}, without PyTorch: no training")]
    memory = found["memory_bytes"]
    rows = [
        ("isoflop", f"{found['isoflop']}, Python {found['python']}, torch {found['torch']}, {found['system']}"),
        ("runs at a time", f"{found['processes']}, one core each, unless study.workers is set"),
        ("memory", "unknown" if memory is None else f"{memory / 1e9:,.1f} GB"),
        ("free disk", f"{found['free_disk_bytes'] / 1e9:,.1f} GB in this folder"),
    ]
    for device in found["devices"]:
        told = device["model"]
        if "memory_bytes" in device:
            told += f", {device['memory_bytes'] / 1e9:,.0f} GB"
        rows.append((device["name"], f"{told}; {_bfloat16(device['bfloat16'])}"))
    if len(found["devices"]) == 1:
        rows.append(("cuda", "none"))
    for peak in found["peaks"]:
        threads = f", {peak['threads']} thread{'s' if peak['threads'] > 1 else ''}" if peak["device"] == "cpu" else ""
        rows.append(("peak", f"{peak['device']}{threads}: {peak['told']}"))
    rows.append(("torch.compile", _compiles(found["compile"])))
    missing = [name for name, works in found["decoders"].items() if not works]
    read = ", ".join(name for name, works in found["decoders"].items() if works)
    rows.append(
        ("images read", read + (f"; not {', '.join(missing)}, which this Pillow does not support" if missing else ""))
    )
    return rows


def _bfloat16(has: bool | None) -> str:
    if has is None:
        return "bfloat16 unknown"
    return "bfloat16 in hardware" if has else 'no bfloat16 in hardware: precision = "auto" is float32'


def _compiles(told: dict[str, Any]) -> str:
    if told["works"] is False:
        return f"fails: {told['reason']}"
    if told["works"]:
        return f"works, {told['seconds']:g} s for one line"
    return f"compiler {told['compiler']} found; --compile tests it" if told["compiler"] else "no C++ compiler"


def _extras(missing: dict[str, list[str]]) -> list[tuple[str, str]]:
    rows = []
    for name, packages in missing.items():
        purpose = f"{EXTRAS[name]}: " if name in EXTRAS else ""
        state = f"missing {', '.join(packages)}: pip install 'isoflop[{name}]'" if packages else "installed"
        rows.append((f"extra {name}", purpose + state))
    return rows


def extras() -> list[str]:
    """The extras of isoflop that users may want; `train`, which most others contain, first."""
    names = dict.fromkeys(name for _, name in _optional())
    return sorted((name for name in names if name not in FOR_DEVELOPERS), key=lambda name: name != "train")


def missing_packages(extra: str) -> list[str]:
    """Which packages of an extra are not installed, without those that the extra `train` has, too."""
    found = _optional()
    other = {package for package, name in found if name == "train"} if extra != "train" else set()
    return [p for p, name in found if name == extra and p not in other and not _is_installed(p)]


def _optional() -> list[tuple[str, str]]:
    """(package, extra) of every optional dependency."""
    from importlib.metadata import requires

    found = (re.match(r"([\w.-]+).*extra == ['\"]([\w.-]+)['\"]", line) for line in requires("isoflop") or [])
    return [(match[1], match[2]) for match in found if match]


def _is_installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
