"""A stranger's folder of weights describes a model and decides nothing else: no address is asked, no file is opened."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from isoflop.config import DistilledConfig, RunConfig, parse
from isoflop.data import open_split
from isoflop.errors import CheckpointError, DataError, IsoflopError, ModelError
from isoflop.models import create_model
from isoflop.models.saved import KEY
from isoflop.models.timm_adapter import OPTIONS
from isoflop.objectives.distilled import open_teacher
from isoflop.share import export, import_weights
from isoflop.train.loop import load_objective
from isoflop.transfer import load_backbone, open_backbone
from tests.cli.lines import isoflop

URL = "https://weights.invalid/resnet.pth"
# What timm's `create_model` and `build_model_with_cfg` take besides the options of an architecture.
LOADERS: dict[str, Any] = {
    "pretrained": True,
    "pretrained_cfg": {"url": URL, "file": "/etc/passwd", "hf_hub_id": "a/b", "source": "hf-hub"},
    "pretrained_cfg_overlay": {"url": URL},
    "pretrained_model_args": {"x": 1},
    "checkpoint_path": "/etc/passwd",
    "cache_dir": "stored-here",
    "file": "/etc/passwd",
    "url": URL,
    "hf_hub_id": "a/b",
    "hf_hub_filename": "x.bin",
    "state_dict": {"a": 1},
    "pretrained_strict": False,
    "pretrained_filter_fn": "os.system",
    "features_only": True,
    "feature_cls": "list",
    "pruned": True,
    "scriptable": True,
    "exportable": True,
    "no_jit": True,
    "block_fn": "builtins.exec",
    "cfg": {"a": 1},
    "model_cfg": {"a": 1},
    "device": "cuda",
    "dtype": "float16",
}
SHAPE = {"num_classes": 2, "image_size": [32, 32], "channels": 3, "mean": None, "std": None, "class_names": []}


@pytest.fixture(autouse=True)
def _asks_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    asked: list[Any] = []

    def refuse(*where: Any, **_: Any) -> Any:
        asked.append(where[-2:])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


def weights(folder: Path, prefix: str = "") -> None:
    folder.mkdir(parents=True)
    state = timm.create_model("resnet10t", num_classes=2).state_dict()
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, folder / "model.safetensors")


def timms(folder: Path, args: dict[str, Any]) -> Path:
    weights(folder)
    cfg = {"input_size": [3, 32, 32], "num_classes": 2, **LOADERS["pretrained_cfg"]}
    config = {"architecture": "resnet10t", "num_classes": 2, "pretrained_cfg": cfg, "model_args": args}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    return folder


def ours(folder: Path, args: dict[str, Any]) -> Path:
    weights(folder, "model.")
    described = {**SHAPE, "model": {"name": "timm:resnet10t", **args}, "origin": {}}
    (folder / "config.json").write_text(json.dumps({KEY: described}))
    return folder


def run_of(folder: Path, args: dict[str, Any], **tables: Any) -> Path:
    weights(folder, "model.")
    config = {"model": {"name": "timm:resnet10t", **args}, "steps": 1, "batch_size": 2, **tables}
    (folder / "config.json").write_text(json.dumps(config))
    facts = {"uri": "digits", "num_classes": 2, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "data.json").write_text(json.dumps({**facts, "class_names": ["a", "b"], "images": 2, "fingerprint": "f"}))
    return folder


MAKERS: tuple[Callable[[Path, dict[str, Any]], Path], ...] = (timms, ours, run_of)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("option", LOADERS)
def test_nothing_of_a_description_reaches_a_loader(
    make: Callable[[Path, dict[str, Any]], Path], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path / "folder", {option: LOADERS[option]})
    if option == "pretrained":  # of runs that began with timm's weights: they have their own by now
        assert "pretrained" not in open_backbone(folder).options
        teacher = parse({"name": "distilled", "teacher": str(folder)}, DistilledConfig)
        if make is run_of:
            assert open_teacher(teacher, 2, 32, 3).preset == "timm:resnet10t"
        return
    for opened in (open_backbone, lambda folder: import_weights(str(folder), tmp_path / "in")):
        with pytest.raises(IsoflopError, match=option) as refused:
            opened(folder)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "in").exists()
    assert not (tmp_path / "stored-here").exists()


@pytest.mark.parametrize("make", MAKERS)
def test_options_of_the_architecture_pass(make: Callable[[Path, dict[str, Any]], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "folder", {"drop_path_rate": 0.25, "zero_init_last": False})
    found = open_backbone(folder)
    assert dict(found.options) == {"drop_path_rate": 0.25, "zero_init_last": False}
    if make is not run_of:
        export(str(folder), "timm", tmp_path / "out")
        assert "url" not in json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]


def test_no_option_that_is_let_through_is_one_of_loading() -> None:
    assert not set(OPTIONS) & (set(LOADERS) | {"in_chans", "img_size", "kwargs", "args", "source", "tag"})


@pytest.mark.parametrize(
    "broken",
    [
        {"model": {"name": 3}},
        {"model": {"name": "timm:resnet10t", "num_classes": 5}},
        {"model": ["timm:resnet10t"]},
        {"model": {"name": "timm:hf-hub:a/b"}},
        {"model": {"name": "timm:local-dir:/tmp"}},
        {"num_classes": "two"},
        {"num_classes": -1},
        {"image_size": 32},
        {"image_size": [32, 10**9]},
        {"channels": [3]},
        {"mean": "0.5", "std": [1]},
        {"mean": [0.5], "std": [0.5]},
        {"class_names": 7},
        {"class_names": [["a"], {"b": 1}]},
        {"origin": ["x"]},
    ],
    ids=str,
)
def test_a_description_of_other_types_is_refused_in_one_line(broken: dict[str, Any], tmp_path: Path) -> None:
    folder = ours(tmp_path / "folder", {})
    described = {**SHAPE, "model": {"name": "timm:resnet10t"}, "origin": {}, **broken}
    (folder / "config.json").write_text(json.dumps({KEY: described}))
    with pytest.raises((CheckpointError, ModelError)) as refused:
        open_backbone(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "source",
    ["hf:a/b", "torchvision:CIFAR10", f"shards:{URL}", "mixture:1*digits + 1*hf:a/b", "shards:s3://b/{0..1}.tar"],
)
def test_a_run_of_a_stranger_fetches_no_data(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", {}, data={"source": source, "image_size": 32})
    assert load_backbone(folder)[0].num_classes == 2  # its data.json says enough
    status, out, err = isoflop(capsys, "inspect", str(folder))
    assert (status, out) == (2, "")
    assert "a checkpoint's configuration alone is no reason to fetch data" in err
    (folder / "data.json").unlink()
    with pytest.raises(DataError, match="no reason to fetch data"):
        load_backbone(folder)
    with pytest.raises(DataError, match="no reason to fetch data"):
        open_backbone(folder)


def test_the_teacher_of_a_strangers_run_is_not_fetched(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", {}, objective={"name": "distilled", "teacher": "timm:resnet18"})
    config = parse(
        {"model": {"name": "vit_ti16"}, "steps": 1, "batch_size": 2, "data": {"source": "digits"}}, RunConfig
    )
    with pytest.raises(CheckpointError, match="teacher is not among the weights"):
        load_objective(folder, open_split(config.data, "train"))
    assert load_backbone(folder)[0].preset == "timm:resnet10t"


def test_the_users_own_pretrained_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        asked.append(pretrained)
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    create_model("timm:resnet10t", num_classes=2, image_size=32, pretrained=True)
    assert True in asked
