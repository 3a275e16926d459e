"""What holds for every verb: examples in its help, one object with `--json`, errors that a program can read."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from isoflop.cli import app, main
from isoflop.cli.output import model_names
from tests.cli.lines import check_line
from tests.cli.test_study_verbs import STUDY

ROOT = Path(__file__).resolve().parents[2]


def verbs(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every verb with its path, such as ("study", "run")."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, verb in inner.items():
        yield from verbs(verb, (*path, name))


VERBS = dict(verbs(typer.main.get_command(app)))


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_has_json_and_examples_that_are_valid(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    verb = VERBS[path]
    assert any("--json" in parameter.opts for parameter in verb.params)
    lines = [shlex.split(line) for line in verb.epilog.splitlines() if line.startswith("  ")]
    assert lines
    for line in lines:
        words = line[line.index("isoflop") + 1 :]
        assert tuple(words[: len(path)]) == path
        words = [word for word in words if ":" not in word and not word.endswith((".csv", ".svg", ".html"))]
        check_line(words, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "show", "examples/demo.toml"],
        ["config", "keys", "run"],
        ["models"],
        ["models", "convformer"],
        ["models", "vit_w4d1p8", "--image-size", "32", "--num-classes", "10"],
        ["train", "recipes/vit_s16_imagenet1k.toml", "--dry-run", "data.num_classes=1000"],
    ],
    ids=" ".join,
)
def test_json_is_one_object_and_nothing_else(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    status, out, err = isoflop(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    assert isinstance(json.loads(out), dict)


def test_data_sets_tell_programs_what_they_hold(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (1, 2, len(name))).save(tmp_path / "pictures" / name / "1.png")
    pictures, shards = str(tmp_path / "pictures"), str(tmp_path / "shards")
    status, out, _ = isoflop(capsys, "data", "check", pictures, "--json")
    found = json.loads(out)
    assert (status, found["images"], found["usable"], found["classes"]) == (0, 2, True, {"cat": 1, "dog": 1})
    found = json.loads(isoflop(capsys, "data", "convert", pictures, shards, "--json")[1])
    assert found == {"directory": shards, "images": 2, "left_out": []}
    assert json.loads(isoflop(capsys, "data", "index", shards, "--json")[1]) == {"images": 2, "shards": 1}
    scenes = ["data", "make-scenes", str(tmp_path / "s"), "--images", "2", "--val-images", "1", "--size", "32"]
    assert json.loads(isoflop(capsys, *scenes, "--json")[1])["val_images"] == 1
    (tmp_path / "pictures" / "cat" / "1.png").write_bytes(b"no picture")
    status, out, _ = isoflop(capsys, "data", "check", pictures, "--json")
    assert (status, json.loads(out)["usable"]) == (1, False)


def test_a_run_tells_its_progress_on_stderr_and_its_result_as_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(
        'steps = 4\nbatch_size = 8\ntensorboard = false\n[model]\nname = "vit_w4d1p8"\n'
        '[data]\nsource = "digits"\nheldout = 64\n'
    )
    run = ["train", str(tmp_path / "run.toml"), "-o", str(tmp_path / "run"), "--json"]
    status, out, err = isoflop(capsys, *run)
    told = json.loads(out)
    assert (status, told["state"], told["directory"]) == (0, "done", str(tmp_path / "run"))
    assert f"{told['heldout_loss']:.4f}" in err
    status, out, _ = isoflop(capsys, *run, "optim.learning_rate=1e9", "-o", str(tmp_path / "other"))
    assert (status, json.loads(out)["state"]) == (1, "diverged")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["train", "gone.toml"], "ConfigError"),
        (["study", "answer", "."], "StudyError"),
        (["models", "vitb16"], "ModelError"),
        (["trian", "x"], "UsageError"),
        (["train", "x", "--putput", "y"], "UsageError"),
    ],
)
def test_errors_are_objects_too(
    arguments: list[str], kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = isoflop(capsys, *arguments, "--json")
    told = json.loads(out)
    assert (status, told["kind"], err) == (2, kind, f"error: {told['error']}\n")


@pytest.mark.parametrize(
    ("arguments", "guess"),
    [
        (["study", "plan", "example/demo.toml"], "examples/demo.toml"),
        (["train", "recipes/vit_s16_imagenet.toml"], "recipes/vit_s16_imagenet1k.toml"),
        (["study", "status", "examplse"], "examples"),
        (["report", "examplse"], "examples"),
        (["watch", "examplse"], "examples"),
        (["inspect", "examplse"], "examples"),
        (["transfer", "examplse", "-d", "digits"], "examples"),
        (["data", "check", "examplse"], "examples"),
        (["data", "check", "folder:examplse"], "examples"),
        (["fit", "benchmark/study_grid.csv", "--x", "budget", "--y", "heldout_loss"], "benchmarks/study_grid.csv"),
        (["train", "recipes/vit_s16_imagenet1k.toml", "--dry-run", "--accelerator", "h10"], "h100"),
        (["data", "check", "parqet:x"], "parquet"),
        (["study", "pln", "x"], "plan"),
        (["fit", "x", "--pictur", "y"], "--picture"),
    ],
)
def test_what_is_misspelt_gets_a_suggestion(
    arguments: list[str], guess: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    status, out, err = isoflop(capsys, *arguments)
    assert (status, out) == (2, "")
    assert f"did you mean {guess}?" in err.replace("`", "").replace("'", "").replace("Did", "did")
    assert err.count("\n") == 1


def test_a_shell_completes_verbs_options_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("isoflop", path=str(Path(sys.executable).parent))
    assert program is not None

    def completed(line: str) -> set[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_ISOFLOP_COMPLETE": "complete_bash"}
        done = subprocess.run([program], env=os.environ | words, capture_output=True, text=True, check=False)
        return set(done.stdout.split())

    assert completed("isoflop stu") == {"study"}
    assert completed("isoflop study ") == {"plan", "run", "status", "answer"}
    assert "--dry-run" in completed("isoflop train --d")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    assert {"vit_s16", "vit_s14"} <= set(model_names("vit_s1"))
    (kept,) = (tmp_path / "completion").iterdir()
    kept.write_text("vit_kept other")  # so that who completes again needs no torch
    assert completed("isoflop predict x y --model vit_") == {"vit_kept"}


def test_the_doctor_knows_this_machine_and_always_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    status, out, err = isoflop(capsys, "doctor", "--json")
    told = json.loads(out)
    assert (status, err) == (0, "")
    assert told["torch"] == torch.__version__
    assert told["free_disk_bytes"] > 0
    assert told["devices"][0]["name"] == "cpu"
    assert len(told["devices"]) == 1 + torch.cuda.device_count()
    assert told["decoders"]["JPEG"]
    assert told["decoders"]["PNG"]
    assert told["compile"]["works"] is None


def test_the_doctor_names_the_line_that_installs_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "importlib.metadata.requires",
        lambda name: [
            "numpy>=1",
            "numpy>=1; extra == 'there'",
            "no-such-torch>=1; extra == 'train'",
            "no-such-torch>=1; extra == 'absent'",
            "no-such-package>=1; extra == 'absent'",
            "x; extra == 'dev'",
        ],
    )
    out = isoflop(capsys, "doctor")[1]
    assert "extra there     installed" in out
    assert "extra absent    missing no-such-package: pip install 'isoflop[absent]'" in out
    assert "extra dev" not in out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.classes=3", "command line: vit_w4d1p8 has no option `classes`; it has "),
        ("model.drop_path=1.0", "command line: vit_w4d1p8: `drop_path` is a rate"),
        ("model.depths=[0]", "command line: vit_w4d1p8: `depths` must be at least 1"),
        ("data.image_size=33", "{file}:4: images of 33x33 pixels"),
        ("model.name=squeezenet", "command line: there is no model 'squeezenet'; `isoflop models` lists ours"),
        ("model.name=timm:resnt18", "command line: timm has no model 'resnt18' - did you mean `timm:resnet18`?"),
    ],
)
def test_an_error_names_the_place_that_caused_it_and_suggests_no_nonsense(
    override: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "steps = 1\n\n[model]\nname = 'vit_w4d1p8'\n\n[data]\nsource = 'digits'\nimage_size = 32\n"
        "\n[optim]\nlearning_rate = 0.1\n"
    )
    status, _, err = isoflop(capsys, "train", str(file), override, "--output", str(tmp_path / "run"))
    assert status == 2
    assert err.startswith(f"error: {told.format(file=file)}"), err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_load_returns_is_a_configuration_too(tmp_path: Path) -> None:
    from isoflop.config import load_study
    from isoflop.study import plan_study

    (tmp_path / "tiny.toml").write_text(STUDY)
    loaded = load_study(tmp_path / "tiny.toml", [])
    prices = {(name, size): 1e-4 for name, family in loaded.config.families.items() for size in family.sizes}
    assert plan_study(loaded, known=prices).rungs == plan_study(loaded.config, known=prices).rungs
