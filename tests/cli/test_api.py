"""`import isoflop` costs nothing, and everything is found under it."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import isoflop
from isoflop.needs_training import PACKAGES
from isoflop.runs.results import COLUMNS, write_results

ROOT = Path(__file__).resolve().parents[2]


# What a base install does, and what it says of the rest. Each ends in one process, without the packages of `train`.
READS = {
    "help": "main(['--help'])",
    "keys": "main(['config', 'keys', 'study'])",
    "show": "main(['config', 'show', 'run.toml'])",
    "doctor": "main(['doctor'])",
    "dir": "print([getattr(isoflop, name) for name in dir(isoflop)]); sys.exit(0)",
    "status": "main(['study', 'status', 'study'])",
    "report": "main(['report', 'study'])",
    "masked": "main(['report', 'masked'])",
    "comparison": "main(['report', 'study', 'study', '--output', 'both.html'])",
    "fit": "main(['fit', 'table.csv', '--x', 'compute', '--y', 'loss'])",
    "table": "main(['report', 'table.csv', '--x', 'compute', '--y', 'loss'])",
    "completion": "from isoflop.cli.output import model_names; print(model_names('vit_s')); sys.exit(0)",
    "watch": "from isoflop.report.watch import Watch; Watch(pathlib.Path('study')); sys.exit(0)",
    "open_study": "print(isoflop.open_study('study').figures, isoflop.ConfigError, isoflop.laws); sys.exit(0)",
}
TRAINS = {
    "train": "main(['train', 'run.toml'])",
    "auto": "main(['auto', 'study'])",
    "study run": "main(['study', 'run', 'study.toml'])",
    "models": "main(['models'])",
    "inspect": "main(['inspect', 'study'])",
    "evaluate": "main(['evaluate', 'study', 'study'])",
    "export": "main(['export', 'study', '--to', 'onnx', '--output', 'there'])",
    "data": "main(['data', 'check', 'study'])",
    "isoflop.train": "isoflop.train",
    "create_model": "isoflop.create_model",
    "from isoflop.study": "from isoflop.study import run_study",
}
MISSING = "this needs torch, which is not installed: pip install 'isoflop[train]'\n"
WITHOUT = """
import contextlib, io, json, pathlib, sys
sys.modules |= dict.fromkeys({packages})
import isoflop
from isoflop.cli.app import main
ended = {{}}
for name, code in {codes}.items():
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            exec(code)
        except SystemExit as end:
            status = end.code
        except isoflop.IsoflopError as error:
            status = print("error:", error, file=sys.stderr) or 2
    ended[name] = status, output.getvalue(), errors.getvalue()
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit status, stdout and stderr of each of READS and TRAINS where PyTorch is not installed."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "study").mkdir()
    (folder / "study" / "study.json").write_text(json.dumps({"study": "0", "name": "toy"}))
    (folder / "study" / "answer.json").write_text("{}")
    numbers = dict.fromkeys(COLUMNS, 1) | {"run_id": "a", "family": "vit", "model": "vit_w8d1", "role": "ladder"}
    write_results(folder / "study", [numbers | {"status": "done", "error": ""}])
    shutil.copytree(folder / "study", folder / "masked")
    (folder / "masked" / "runs" / "a" / "reconstructions").mkdir(parents=True)
    (folder / "table.csv").write_text("compute,loss\n" + "".join(f"{10**k},{3 - 0.2 * k}\n" for k in range(1, 9)))
    (folder / "run.toml").write_text('steps = 1\n[model]\nname = "vit_w4d1p8"\n[data]\nsource = "fractals"\n')
    (folder / "study.toml").write_text((ROOT / "examples/demo.toml").read_text(encoding="utf-8"))
    code = WITHOUT.format(packages=PACKAGES, codes=READS | TRAINS | {"answer": "main(['study', 'answer', 'study'])"})
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", READS)
def test_reading_a_study_or_a_table_needs_no_torch(name: str, ended: dict[str, tuple[int, str, str]]) -> None:
    """It is not in a base install, and costs seconds and hundreds of megabytes elsewhere."""
    status, out, err = ended[name]
    assert status == 0, err
    assert out or name == "watch"
    pictures = "warning: masked: the page is without reconstructions: "
    assert err == (pictures + MISSING if name == "masked" else "")


def test_an_answer_is_read_without_torch(ended: dict[str, tuple[int, str, str]]) -> None:
    status, _, err = ended["answer"]
    assert (status, "answer.json: damaged" in err) == (2, True)  # which it is: `{}`


@pytest.mark.parametrize("name", TRAINS)
def test_what_needs_torch_names_the_extra_in_one_line(name: str, ended: dict[str, tuple[int, str, str]]) -> None:
    status, out, err = ended[name]
    assert (status, out) == (2, "")
    assert err == f"error: {MISSING}"


def test_the_extra_is_what_packages_that_need_torch_look_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = [line.partition(">=")[0] for line in project["optional-dependencies"]["train"]]
    assert [{"scikit-learn": "sklearn", "pillow": "PIL"}.get(name, name) for name in extra] == list(PACKAGES)


@pytest.mark.parametrize("name", sorted(set(isoflop.__all__)))
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(isoflop, name) is not None
    assert name in dir(isoflop)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="creat_model"):
        _ = isoflop.creat_model
