"""A model or a mixer in a file of one's own is costed, trained, resumed, opened and planned as a preset is."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from isoflop.config import RunConfig, StudyConfig, config_hash, parse
from isoflop.errors import CheckpointError, ModelError
from isoflop.models import cost, create_model, user_code
from isoflop.models.user_code import check_stored
from isoflop.study.planned import Catalogue
from isoflop.train import train
from isoflop.transfer.backbones import load_backbone, open_backbone
from tests.cli.lines import isoflop

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_model.py"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example, and a cache that remembers nothing."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, tmp_path / "own.py")
    return tmp_path


def configured(name: str = "own.py:ConvNet", **model: object) -> RunConfig:
    raw = {
        "model": {"name": name, **model},
        "steps": 6,
        "batch_size": 8,
        "data": {"source": "digits", "image_size": 16, "heldout": 32},
        "checkpoint": {"every_seconds": 1e-6},
    }
    return parse(raw, RunConfig)


def test_its_cost_is_what_its_layers_take(place: Path) -> None:
    found = cost("own.py:ConvNet", num_classes=10, image_size=16, in_channels=1, width=8)
    macs = 9 * (1 * 8 * 64 + 8 * 16 * 16 + 16 * 32 * 4) + 32 * 10  # maps of 8×8, 4×4 and 2×2 cells
    assert found.macs == macs
    assert found.parameters == 9 * (8 + 8 * 16 + 16 * 32) + 3 * (8 + 16 + 32) + 330


def test_the_seed_alone_decides_its_weights(place: Path) -> None:
    state = torch.get_rng_state()
    one, two = (create_model("own.py:ConvNet", num_classes=3, image_size=16, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert (one.family, one.preset, one.num_classes) == ("ConvNet", "own.py:ConvNet", 3)


def test_it_resumes_exactly_and_is_refused_when_its_file_has_changed(place: Path) -> None:
    config = configured()
    assert train(config, place / "whole").state == "done"
    steps = iter([False, False, True])
    assert train(config, place / "run", stop=lambda: next(steps)).state == "preempted"
    kept, name = (place / "own.py").read_text(), config_hash(config)
    (place / "own.py").write_text(kept.replace("nn.GELU()", "nn.ReLU()"))
    assert config_hash(config) != name
    with pytest.raises(
        CheckpointError, match=r"own\.py:ConvNet has changed since this run was begun: put the file back"
    ):
        train(config, place / "run")
    (place / "own.py").write_text(kept)
    assert train(config, place / "run").state == "done"
    whole, resumed = (load_file(place / run / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_finished_run_is_opened_by_who_has_run_the_same_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(configured(width=8), place / "run")
    opened = open_backbone(place / "run")
    weights = load_file(place / "run" / "model.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in opened.model.state_dict().items())
    (place / "own.py").write_text((place / "own.py").read_text() + "\n# another\n")
    with pytest.raises(CheckpointError, match="has changed since this run was begun"):
        load_backbone(place / "run")


def test_code_of_a_stranger_is_not_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = place / "ran"
    source = (place / "own.py").read_text() + f"\nfrom pathlib import Path\nPath({str(ran)!r}).touch()\n"
    (place / "own.py").write_text(source)
    train(configured(), place / "run")
    monkeypatch.setenv("ISOFLOP_CACHE", str(place / "of another user"))
    user_code._module.cache_clear()  # as in another process
    ran.unlink()
    for command in (
        ["inspect", "run"],
        ["export", "run", "--to", "timm", "--output", "out"],
        ["transfer", "run", "--data", "digits"],
    ):
        status, _, error = isoflop(capsys, *command)
        assert (status, "own.py:ConvNet, which was never run here" in " ".join(error.split())) == (2, True), error
    with pytest.raises(CheckpointError, match=r"run: its model is the code own\.py:ConvNet, which was never run here"):
        open_backbone(place / "run")
    with pytest.raises(CheckpointError, match="never run here"):
        check_stored(["os:system"], place)
    assert not ran.exists()
    assert isoflop(capsys, "models", "own.py:ConvNet", "--image-size", "16")[0] == 0
    assert ran.exists()
    assert open_backbone(place / "run").preset == "own.py:ConvNet"


def test_a_mixer_is_trained_and_mixes_as_written(place: Path) -> None:
    model = create_model("vit_w32d4p8", num_classes=10, image_size=32, mixers=("own.py:Shift",), seed=0)
    x = torch.randn(2, 4, 4, 32)
    moved = model.stages[0][0].mixer(x)  # type: ignore[index, union-attr]
    assert torch.equal(moved[:, 1, 2, :8], x[:, 2, 2, :8])
    assert torch.equal(moved[:, 1, 2, 24:], x[:, 1, 1, 24:])
    config = configured("vit_w32d4p8", mixers=["own.py:Shift"], depths=[1])
    assert config.model.code == ("own.py:Shift",)
    assert train(config, place / "run").state == "done"
    assert open_backbone(place / "run").options["mixers"] == ("own.py:Shift",)
    with pytest.raises(ModelError, match="tied to the grid"):
        create_model("vit_s16", mixers=("own.py:Shift",), pool="token", prefix_tokens=1)


def test_installed_code_goes_by_its_module(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))
    found = cost("own:ConvNet", num_classes=10, image_size=16, in_channels=1)
    assert found == cost("own.py:ConvNet", num_classes=10, image_size=16, in_channels=1)


def test_a_study_plans_a_family_of_them(place: Path) -> None:
    raw = {
        "study": {"name": "own", "budgets": [1e9, 2e9, 4e9], "target_budget": 1e12},
        "families": {"convnet": {"sizes": ["own.py:large_conv_net", "own.py:ConvNet"]}},
        "data": {"source": "digits", "image_size": 16, "heldout": 32},
    }
    catalogue = Catalogue(parse(raw, StudyConfig))
    assert catalogue.presets("convnet") == ("own.py:ConvNet", "own.py:large_conv_net")
    run = catalogue.run("convnet", "own.py:ConvNet", 1e9, 1e-3)
    model = create_model("own.py:ConvNet", num_classes=10, image_size=16, in_channels=1)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 16, 16))
    assert run.flops_per_image == 3 * counter.get_total_flops()
    assert run.config.model.name == "own.py:ConvNet"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py:Net", None, "none.py:Net: there is no file none.py"),
        ("bad.py:Nett", "class Net: pass", "bad.py defines no Nett - did you mean `Net`?"),
        ("bad.py:Net", "def Net(:", "bad.py: cannot be loaded: SyntaxError: invalid syntax"),
        ("bad.py:Net", "import torch\n1 / 0", "bad.py: cannot be loaded: ZeroDivisionError: division by zero (line 2)"),
        ("bad.py:Net", "Net = 3", "bad.py:Net: is int, not a class or a function"),
        ("bad.py:Net", "def Net(**_): return 3", "bad.py:Net: gives int, not an isoflop.models.Backbone"),
        ("bad.py:Net", "def Net(num_classes): ...", "bad.py:Net: is called with num_classes, image_size, in_channels"),
        ("no.such.module:Net", None, "no.such.module: cannot be loaded: ModuleNotFoundError"),
        (
            "bad.py:Net",
            "from isoflop.models import Backbone\nclass Net(Backbone):\n  def __init__(self, **_): super().__init__()\n"
            "  def features(self, images): return images",
            "bad.py:Net: lacks `num_features`",
        ),
        (
            "bad.py:Net",
            "from isoflop.models import Backbone\nfrom torch import nn\nclass Net(Backbone):\n"
            "  def __init__(self, num_classes, **_):\n    super().__init__()\n    self.num_features = 3\n"
            "    self.head = nn.Linear(3, 7)\n  def features(self, images): return images.mean((2, 3))",
            "bad.py:Net: logits have the shape (2, 1000) for 2 images, not shape (2, 7)",
        ),
    ],
)
def test_what_is_no_model_is_told_in_a_line(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (place / "bad.py").write_text(text)
    status, _, error = isoflop(capsys, "models", name, "--image-size", "16")
    assert status == 2
    assert message in " ".join(error.split())
    assert "Traceback" not in error
