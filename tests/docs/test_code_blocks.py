"""What the documentation tells people to type works; CONTRIBUTING.md says how each kind of block is tested."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from isoflop.cli import main
from isoflop.config import DetectConfig, DistilledConfig, RunConfig, SegmentConfig, load_any, load_run
from isoflop.models.presets import family_ladder
from isoflop.objectives import make_objective
from isoflop.train import train
from isoflop.train.loop import build_model
from isoflop.train.optim.build import parameter_groups
from tests.cli.lines import check_line
from tests.processes import run_python

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "toml", "sh", "sh run", "text", "{toctree}", "{eval-rst}"}


def documents() -> list[Path]:
    return sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))


def blocks(kind: str) -> list[object]:
    """The code blocks of a kind, each named by file and line."""
    return [
        pytest.param(match["code"], id=f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}")
        for path in documents()
        for text in [path.read_text(encoding="utf-8")]
        for match in BLOCK.finditer(text)
        if match["kind"] == kind
    ]


def commands(block: str) -> list[list[str]]:
    """The command lines of a block without comments; a backslash joins lines."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the project's, in which a block may do what it likes."""
    for part in ("examples", "papers", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_says_how_it_is_tested(path: Path) -> None:
    assert {match["kind"] for match in BLOCK.finditer(path.read_text(encoding="utf-8"))} <= KINDS


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_are_valid(block: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    for command in commands(block):
        if command[0] == "make":
            assert {word for word in command[1:] if "=" not in word} <= set(targets[1].split())
        elif command[0] == "isoflop":
            check_line(command[1:], capsys)


@pytest.mark.parametrize("block", blocks("sh run"))
def test_commands_run(block: str, folder: Path) -> None:
    on_path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-euc", block], capture_output=True, text=True, check=False, env=on_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str, folder: Path) -> None:
    told = folder / "stderr.txt"
    assert run_python(block, told) == 0, told.read_text(encoding="utf-8")


@pytest.mark.parametrize("block", blocks("toml"))
def test_configurations_are_valid_and_their_models_can_be_built(block: str, folder: Path) -> None:
    Path("block.toml").write_text(block, encoding="utf-8")
    config = load_any("block.toml").config
    if isinstance(config, RunConfig):
        build(config)
        return
    for family, options in config.families.items():
        if options.start and isinstance(options.sizes, int):
            continue  # the weights name the model
        sizes = family_ladder(options.ladder or family)[:1] if isinstance(options.sizes, int) else options.sizes
        for name in sizes:
            build(config.run_config(family, model=name, steps=1000, learning_rate=1e-3))


def build(config: RunConfig) -> None:
    """The model, objective and parameter groups of `config`, on the meta device; data and teachers need not exist."""
    is_dense = isinstance(config.objective, DetectConfig | SegmentConfig)
    source = SimpleNamespace(num_classes=10, channels=3)
    with torch.device("meta"):
        objective: nn.Module = build_model(config.model_copy(update={"start": None}), source)
        objective(torch.empty(1, 3, config.data.image_size, config.data.image_size))
        if not isinstance(config.objective, DistilledConfig) and not is_dense:
            objective = make_objective(config.objective, objective)
    parameter_groups(objective, config.optim)
    if config.pretraining:
        build(config.pretraining_run())


def test_the_first_example_of_a_run_trains(folder: Path) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    first = next(match["code"] for match in BLOCK.finditer(text) if match["kind"] == "toml")
    Path("run.toml").write_text(first, encoding="utf-8")
    shorter = load_run("run.toml", ["steps=3", "schedule.warmup=1", "batch_size=8", "evaluation.batch_size=64"])
    assert train(shorter, Path("run")).state == "done"


def test_the_mistakes_that_the_readme_shows_are_told_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = [
        match["code"]
        for match in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))
        if match["code"].startswith("$ isoflop study run") and "error:" in match["code"]
    ]
    command, _, expected = shown.partition("\n")
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(command)[2:])
    assert (caught.value.code, capsys.readouterr().err) == (2, expected)
