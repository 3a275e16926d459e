"""A run goes out with what is known of it, and without its data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from isoflop.cli import main
from isoflop.share import export
from isoflop.train import train
from isoflop.transfer import load_backbone
from tests.promises.chaos import run_config
from tests.share.models import images, relative

ROW = {"name": "vit", "dataset": "digits", "protocol": "ridge", "shots": 5, "accuracy_mean": 0.5, "seeds": 2}
BRIEF: dict[str, Any] = {"evaluation": {}, "schedule": {}, "checkpoint": {}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "vit"
    train(run_config(steps=6, **BRIEF), folder)
    return folder


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capsys.readouterr()


def test_a_run_is_exported_where_its_data_are_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = load_backbone(run)

    def gone(*_: object) -> None:
        raise AssertionError("the data are on another machine")

    monkeypatch.setattr("isoflop.transfer.backbones.open_split", gone)
    monkeypatch.setattr("isoflop.share.subject.open_split", gone)
    status, out, err = isoflop(capsys, "export", str(run), "--to", "timm", "--output", str(tmp_path / "out"))
    assert (status, err) == (0, "")
    assert "vit_w12d2p8 in " in out
    assert "largest difference over 4 images: " in out
    assert "has no licence" in out
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = images(32, channels=1)
    with torch.inference_mode():
        assert relative(theirs(x), model.eval()(x)) < 1e-5
    assert theirs.pretrained_cfg["label_names"][7] == "fractal 7"


def test_the_card_tells_what_is_known_and_nothing_else(run: Path, tmp_path: Path) -> None:
    (run.parent / "transfer" / "vit").mkdir(parents=True)
    (run.parent / "transfer" / "vit" / "result.json").write_text(json.dumps({"checkpoint": str(run), "rows": [ROW]}))
    export(str(run), "safetensors", tmp_path / "out", licence="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    status = json.loads((run / "status.json").read_text())
    assert card.startswith("---\nlicense: mit\n")
    assert "Training saw 144 images, of 1,000 different ones" in card
    assert f"accuracy {status['heldout_accuracy']:.4f}" in card
    assert "device-hours, measured, on cpu" in card
    assert "100 W, assumed of a CPU" in card
    assert '"learning_rate": 0.01' in card
    assert "| vit | digits | ridge | 5 | 50.0 |" in card
    assert json.loads((run / "identity.json").read_text())["run"] in card
    assert "None" not in card
    assert "## Law" not in card  # it belongs to no study
    silent = tmp_path / "again"
    export(str(tmp_path / "out"), "safetensors", silent)
    assert "license" not in (silent / "README.md").read_text()
    assert "## Data" not in (silent / "README.md").read_text()


def test_of_folders_of_this_machine_the_card_names_the_last_alone(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    facts["uri"] = "folder:/home/ann/secret/birds?split=train"
    (tmp_path / "run" / "data.json").write_text(json.dumps(facts))
    export(str(tmp_path / "run"), "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`folder:…/birds?split=train`" in card
    assert "secret" not in card


def test_a_run_of_a_study_brings_what_the_law_said_of_it(run: Path, tmp_path: Path) -> None:
    home = tmp_path / "study" / "runs"
    home.mkdir(parents=True)
    said = {
        "predicted_loss": 2.5,
        "interval": [2.25, 2.75],
        "level": 0.9,
        "p_best": 0.8,
        "exponents": {"compute": -0.1},
    }
    answer = {
        "target_flops": 1e9,
        "families": {"vit": {"run_id": run.name, **said}, "nfnet": {"run_id": "other", **said}},
        "finals": {"vit": {"measured_loss": 2.8, "inside_interval": False}},
        "transfer": {"rows": [{"family": "vit", **ROW}, {"family": "nfnet", **ROW, "name": "other"}]},
    }
    moved = home / run.name
    shutil.copytree(run, moved)
    (tmp_path / "study" / "answer.json").write_text(json.dumps(answer))
    export(str(moved), "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "predicted 2.5, 90 % interval 2.25–2.75; probability that its family is the best of those that tr" in card
    assert "trained: 0.80" in card
    assert "Measured: 2.8, outside of the interval" in card
    assert "| vit | digits | ridge | 5 | 50.0 |" in card
    assert "other" not in card


def test_a_masked_run_becomes_transformers_masked_autoencoder_and_timms_features(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    masked = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
    model = {"name": "mae_b16", "widths": [16], "heads": [2], "mlp_widths": [32], "depths": [2], "stem_kernel": 8}
    config = run_config(
        model={**model, "stem_stride": 8}, objective=masked, steps=3, optim={"learning_rate": 0.01}, **BRIEF
    )
    train(config, tmp_path / "run")
    done = export(str(tmp_path / "run"), "huggingface", tmp_path / "mae")
    assert done.difference < 1e-5
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "mae")
    assert theirs.config.mask_ratio == 0.75
    export(str(tmp_path / "run"), "timm", tmp_path / "timm")
    peer = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    backbone, _ = load_backbone(tmp_path / "run")
    x = images(32, channels=1)
    with torch.inference_mode():
        assert relative(peer(x), backbone.eval().features(x)) < 1e-5


def test_a_probe_with_batchnorm_goes_out_as_one_linear_map(run: Path, tmp_path: Path) -> None:
    start = {"weights": str(run), "head": "batchnorm"}
    train(run_config(model={"name": "vit_w12d2p8"}, start=start, steps=4, **BRIEF), tmp_path / "probe")
    model, _ = load_backbone(tmp_path / "probe")
    assert isinstance(model.head, torch.nn.Sequential)
    export(str(tmp_path / "probe"), "timm", tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = images(32, channels=1)
    with torch.inference_mode():
        assert relative(theirs(x), model.eval()(x)) < 1e-5


def test_what_is_no_finished_run_is_told_in_one_line_and_exits_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_config(steps=50), tmp_path / "half", stop=lambda: True)
    (tmp_path / "empty").mkdir()
    cases = {
        ("missing", "timm"): "missing: no such file or folder",
        ("empty", "timm"): "neither a run nor a folder of weights",
        ("half", "timm"): "the run is not finished (preempted, step 1 of 50)",
        (str(run), "tflite"): "`--to` is one of timm, huggingface, onnx, safetensors, not 'tflite'",
    }
    for (name, format), told in cases.items():
        status, out, err = isoflop(
            capsys, "export", str(tmp_path / name), "--to", format, "--output", str(tmp_path / "out")
        )
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert told in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
