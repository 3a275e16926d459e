"""The wheel as a stranger gets it: built, installed into an empty environment, used; `make smoke` prints its sizes."""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("dense", "figures", "export", "cluster")
PYTORCH = ("torch", "torchgen", "functorch", "triton", "nvidia")  # folders in site-packages
STUDY = """\
batch_size = 8
tensorboard = false
[study]
name = "smoke"
budgets = [1e8, 2e8, 4e8]
target_budget = 8e8
[data]
source = "fractals?classes=10"
heldout = 64
[families.vit]
sizes = ["vit_w4d1p8", "vit_w4d2p8"]
learning_rates = [1e-2]
[laws]
bootstrap = 20
"""
BASE = (
    "isoflop --version",
    "isoflop --help",
    "isoflop doctor --json",
    "isoflop config keys run",
    "isoflop config show smoke.toml",
    "isoflop fit table.csv --x compute --y loss",
    "isoflop report table.csv --x compute --y loss",
)
COMMANDS = (
    "isoflop doctor --json",
    "isoflop models vit_s16",
    "isoflop study run smoke.toml",
    "isoflop study answer studies/smoke",
    "isoflop fit studies/smoke/results.csv --x train_flops --y heldout_loss",
)


def build(folder: Path) -> Path:
    """The wheel that `python -m build` makes of this project, by way of its source distribution."""
    tools = environment(folder / "tools")
    _run([tools, "-m", "pip", "install", "--quiet", "build"])
    _run([tools, "-m", "build", "--outdir", folder, ROOT])
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path) -> Path:
    """The Python of a new, empty environment."""
    _run([sys.executable, "-m", "venv", folder])
    return folder / "bin" / "python"


def install(python: Path, wheel: Path, *extras: str) -> None:
    """Installs the wheel with the versions that the project is tested with."""
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    _run([python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wanted])


def use_base(python: Path, folder: Path) -> None:
    """Runs what needs no PyTorch; raises CalledProcessError where a verb fails."""
    (folder / "smoke.toml").write_text(STUDY, encoding="utf-8")
    rows = "".join(f"{10**k},{3 - 0.2 * k}\n" for k in range(1, 9))
    (folder / "table.csv").write_text("compute,loss\n" + rows, encoding="utf-8")
    _use(BASE, python, folder)


def use(python: Path, folder: Path) -> None:
    """Runs a small study and the verbs around it; raises CalledProcessError where one fails."""
    (folder / "smoke.toml").write_text(STUDY, encoding="utf-8")
    _use(COMMANDS, python, folder)
    assert (folder / "studies/smoke/report.html").stat().st_size > 1_000_000  # with Plotly inside


def _use(commands: tuple[str, ...], python: Path, folder: Path) -> None:
    for command in commands:
        program, *arguments = command.split()
        _run([python.with_name(program), *arguments], folder)


def megabytes(path: Path) -> float:
    """On disk, in 10^6 bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files) / 1e6


def packages(python: Path) -> Path:
    """The folder into which an environment's packages are installed."""
    (folder,) = python.parents[1].glob("lib/python*/site-packages")
    return folder


def version() -> str:
    """As pyproject.toml has it."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def _run(command: list[object], folder: Path | None = None) -> None:
    subprocess.run([str(word) for word in command], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _row(what: str, size: float, digits: int = 0, sign: str = "") -> None:
    print(f"| {what} | {sign}{size:,.{digits}f} |", flush=True)


def main() -> None:
    """Prints the table of docs/release.md."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        _row("wheel", megabytes(wheel), 2)
        _row("source distribution", megabytes(next(folder.glob("*.tar.gz"))), 2)
        python = environment(folder / "empty")
        before = megabytes(packages(python))  # pip
        install(python, wheel)
        use_base(python, folder)
        place = packages(python)
        _row("installed with its dependencies: no PyTorch", megabytes(place) - before)
        base = megabytes(place)
        install(python, wheel, "train")
        use(python, folder)
        _row("installed, isoflop alone (with its bytecode)", megabytes(place / "isoflop"), 1)
        _row("extra `train`", megabytes(place) - base, sign="+ ")
        _row("… of which PyTorch, its CUDA libraries and Triton", sum(megabytes(place / name) for name in PYTORCH))
        for extra in EXTRAS:
            before = megabytes(place)
            install(python, wheel, extra)
            _row(f"extra `{extra}`", megabytes(place) - before, sign="+ ")


if __name__ == "__main__":
    main()
