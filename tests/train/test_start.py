"""A run can start from trained weights, at another size, under another classifier, and is exact all the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop.config import StartConfig, parse
from isoflop.config.run import RunConfig
from isoflop.errors import CheckpointError, ConfigError, DataError, IsoflopError, ModelError
from isoflop.models import create_model
from isoflop.runs.directory import read_status
from isoflop.train import read_journal, train
from isoflop.train.record import MEASURED
from isoflop.train.start import replace_head, start_from
from tests.promises.chaos import EVERY_STEP, run_config


def saved(path: Path, name: str = "vit_w12d2p8", **shape: int) -> Path:
    model = create_model(name, **{"num_classes": 7, "image_size": 32, "in_channels": 1, **shape}, seed=1)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def test_the_body_is_taken_over_and_a_new_classifier_starts_at_zero(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    model = create_model("vit_w12d2p8", num_classes=10, image_size=32, in_channels=1, seed=2)
    start_from(model, StartConfig(weights=str(path)))
    for name, tensor in load_file(path).items():
        if not name.startswith("head."):
            assert torch.equal(model.state_dict()[name], tensor)
    assert not model(torch.randn(2, 1, 32, 32)).any()


def test_the_classifier_is_kept_if_so_wished(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    start_from(model, StartConfig(weights=str(path), head="keep"))
    assert torch.equal(model.state_dict()["head.weight"], load_file(path)["head.weight"])


def test_positions_are_resized_to_another_image_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=48, in_channels=1, seed=2)
    start_from(model, StartConfig(weights=str(path)))
    old = load_file(path)["positions.0"].view(1, 4, 4, 12).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(old, (6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(model.state_dict()["positions.0"], expected.permute(0, 2, 3, 1).reshape(1, 36, 12))


def test_timm_models_are_resized_too(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    path = saved(tmp_path / "a.safetensors", name, image_size=64, in_channels=3)
    model = create_model(name, num_classes=3, image_size=96, in_channels=3, seed=2)
    start_from(model, StartConfig(weights=str(path)))
    assert model.state_dict()["model.pos_embed"].shape == (1, 37, 192)
    assert not model(torch.randn(1, 3, 96, 96)).any()


@pytest.mark.parametrize("other", ["vit_w16d2p8", "vit_w12d2p8", "nfnet_w8d1"])
def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path: Path, other: str) -> None:
    path = saved(tmp_path / "a.safetensors", other, in_channels=3)
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    with pytest.raises(CheckpointError, match="another architecture than vit_w12d2p8: ") as caught:
        start_from(model, StartConfig(weights=str(path)))
    assert "\n" not in str(caught.value)


def test_what_is_no_weight_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    for path in ("a.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="not readable as weights"):
            start_from(model, StartConfig(weights=str(tmp_path / path)))


def test_batch_normalisation_before_the_classifier_needs_a_plain_one() -> None:
    start = StartConfig(weights="x", head="batchnorm")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    replace_head(model, start)
    assert [name for name, _ in model.head.named_parameters()] == ["1.weight", "1.bias"]
    with pytest.raises(ModelError, match="plain linear classifier"):
        replace_head(create_model("timm:resnet18", num_classes=7, image_size=32, seed=2), start)


def test_a_fine_tune_that_was_cut_off_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    train(run_config(steps=20, tensorboard=False), tmp_path / "pretrained")
    weights = str(tmp_path / "pretrained" / "model.safetensors")
    config = run_config(
        steps=30,
        start={"weights": weights, "head": "batchnorm"},
        data={"source": "digits", "heldout": 64, "augment": "crop_flip"},
    )
    train(config, tmp_path / "whole")

    class CutOff(Exception): ...

    def cut(row: dict[str, object]) -> None:
        if row["step"] == 14:
            raise CutOff

    with pytest.raises(CutOff):
        train(config, tmp_path / "cut", on_row=cut)
    train(config, tmp_path / "cut")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [[{k: v for k, v in row.items() if k not in MEASURED} for row in read_journal(tmp_path / d)]
            for d in ("whole", "cut")]  # fmt: skip
    assert rows[0] == rows[1]


# What a run learns first.


LIGHT = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}


def pretrained_run(**changes: Any) -> RunConfig:
    first = {"objective": LIGHT, "steps": 16, "learning_rate": 2e-3, **changes.pop("pretraining", {})}
    optim = {"learning_rate": 0.01, "label_smoothing": 0.1, "layer_decay": 0.9}
    return run_config(**{"steps": 12, "pretraining": first, "optim": optim, "checkpoint": EVERY_STEP, **changes})


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def is_same(one: Path, two: Path) -> bool:
    a, b = weights_of(one), weights_of(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(pretrained_run(), folder)
    return folder


def test_a_pretrained_run_is_two_runs_one_from_the_weights_of_the_other(pretrained: Path, tmp_path: Path) -> None:
    config = pretrained_run()
    first = run_config(
        steps=16, objective=LIGHT, optim={"learning_rate": 2e-3}, schedule={"warmup": 5 * 16 // 12, "cooldown": 0.3}
    )
    train(first, tmp_path / "first")
    plain = {**config.model_dump(), "pretraining": None, "start": {"weights": str(tmp_path / "first")}}
    result = train(parse(plain, RunConfig), tmp_path / "second")
    assert is_same(pretrained / "pretraining", tmp_path / "first")
    assert is_same(pretrained, tmp_path / "second")
    status = read_status(pretrained)
    assert status
    assert status.heldout_loss == result.heldout_loss
    assert status.seconds > read_status(pretrained / "pretraining").seconds  # of both


@pytest.mark.parametrize(
    ("phase", "step", "asks"),
    [("pretraining", 9, False), ("", 5, False), ("pretraining", 9, True), ("pretraining", 16, True)],
)
def test_a_pretrained_run_that_was_cut_off_or_stopped_ends_with_the_same_bits(
    pretrained: Path, tmp_path: Path, phase: str, step: int, asks: bool
) -> None:
    class CutOff(Exception): ...

    asked = False

    def cut(row: dict[str, Any]) -> None:
        nonlocal asked
        if row.get("phase", "") == phase and row["step"] >= step:
            asked = True
            if not asks:
                raise CutOff

    config = pretrained_run(log_every=1)
    if asks:
        result = train(config, tmp_path / "run", on_row=cut, stop=lambda: asked)
        at_end = (phase, step) == ("pretraining", 16)
        assert result.state == "preempted"
        assert result.error.startswith("pretraining: asked to stop at step 1" if phase and not at_end else "asked")
    else:
        with pytest.raises(CutOff):
            train(config, tmp_path / "run", on_row=cut)
        assert read_status(tmp_path / "run").state == "running"
    told: list[str] = []
    result = train(config, tmp_path / "run", on_row=lambda row: told.append(row.get("phase", "")))
    assert result.state == "done"
    assert ("pretraining" in told) == (phase == "pretraining" and step < 16)  # what is whole is not trained again
    assert is_same(pretrained, tmp_path / "run")
    assert train(config, tmp_path / "run") == result


def test_pretraining_that_diverges_ends_the_run(tmp_path: Path) -> None:
    config = pretrained_run(pretraining={"learning_rate": 1e30}, optim={"learning_rate": 0.01, "clip": "none"})
    result = train(config, tmp_path / "run")
    assert (result.state, result.step) == ("diverged", 0)
    assert result.error.startswith("pretraining: loss or gradient were not finite at step ")
    assert train(config, tmp_path / "run") == result


def test_other_images_may_be_learnt_from_first_with_labels_or_without(tmp_path: Path) -> None:
    other = {"objective": "supervised", "source": "fractals?classes=7&images=400", "steps": 3, "augment": "crop_flip"}
    start = {"weights": str(saved(tmp_path / "a.safetensors")), "head": "batchnorm"}
    config = pretrained_run(pretraining=other, start=start, steps=8)
    assert train(config, tmp_path / "run").state == "done"
    assert weights_of(tmp_path / "run" / "pretraining")["head.bias"].shape == (7,)
    assert weights_of(tmp_path / "run")["head.1.bias"].shape == (20,)
    few = {"source": "fractals?classes=20&images=1000", "heldout": 64, "images": 200}
    unlabelled = {"objective": "lejepa", "source": "fractals?classes=20&images=1000", "steps": 1}
    train(pretrained_run(pretraining=unlabelled, data=few, steps=8), tmp_path / "few")
    train(pretrained_run(pretraining={"objective": "lejepa", "steps": 1, "all_images": True}, data=few, steps=8),
          tmp_path / "all")  # fmt: skip
    seen = {name: json.loads((tmp_path / name / "data.json").read_text()) for name in (
        "few", "few/pretraining", "all", "all/pretraining")}  # fmt: skip
    assert [table["images"] for table in seen.values()] == [200, 1000, 200, 1000]


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"pretraining": {"objective": "supervised"}}, ConfigError, "give other images as `source`"),
        ({"pretraining": {"objective": "detect"}}, ConfigError, "`pretraining.objective` = detect is not for"),
        ({"pretraining": {"objective": "lejepo"}}, ConfigError, '`pretraining.objective` = "lejepo" must be one of'),
        ({"pretraining": {"stpes": 3}}, ConfigError, "unknown key `pretraining.stpes` - did you mean"),
        ({"start": {"weights": "a", "head": "keep"}}, ConfigError, "`start.head` = keep does not go with"),
        ({"optim": {"mup": 8}}, ConfigError, r"`optim.*does not go with `\[pretraining\]`: `optim.mup` is defined"),
        ({"model": {"name": "mixer_s16"}}, ModelError, r"^\[pretraining\]: mixer_s16"),
        ({"pretraining": {"objective": {**LIGHT, "ratio": 0.99}}}, ConfigError, "leaves no visible patch"),
        ({"pretraining": {"source": "folder:/nowhere"}}, DataError, r"^\[pretraining\]: .*nowhere"),
        ({"pretraining": {"source": "fractals?classes=5&channels=3"}}, DataError, r"pretraining"),
        ({"pretraining": {"source": "digits", "all_images": True}}, ConfigError, "all_images` = true is for"),
        ({"start": {"weights": "/nowhere.safetensors"}}, CheckpointError, "nowhere"),
    ],
)
def test_what_cannot_be_learnt_first_is_one_line_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], kind: type[IsoflopError], told: str
) -> None:
    with pytest.raises(kind, match=told) as caught:
        train(pretrained_run(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
