"""A checkpoint of any origin becomes the backbone that it was, or one clear line."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from isoflop.errors import CheckpointError, ModelError
from isoflop.train import train
from isoflop.transfer import open_backbone
from tests.promises.chaos import run_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    train(run_config(steps=10), folder)
    return folder


def test_a_run_and_its_weight_file_are_the_same_backbone(run: Path, tmp_path: Path) -> None:
    one, two = open_backbone(run), open_backbone(run / "model.safetensors")
    assert one.preset == "vit_w12d2p8"
    assert one.options == {"drop_path": 0.1}
    assert one.fingerprint == two.fingerprint
    (tmp_path / "alone.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    alone = open_backbone(tmp_path / "alone.safetensors")  # says itself which model and size
    assert alone.model.image_size == (32, 32)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(alone.model.eval()(x), one.model.eval()(x))


def test_random_weights_are_others_and_another_size_resizes_positions(run: Path) -> None:
    one = open_backbone(run)
    assert open_backbone(run, random_weights=True).fingerprint != one.fingerprint
    larger = open_backbone(run, image_size=48)
    assert larger.model.image_size == (48, 48)
    assert larger.model.state_dict()["positions.0"].shape == (1, 36, 12)
    assert torch.equal(larger.model.state_dict()["head.weight"], one.model.state_dict()["head.weight"])


def test_timm_weights_under_their_own_names_are_read_into_both_grammars(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7).eval()
    save_file(peer.state_dict(), tmp_path / "a.safetensors")
    x = torch.randn(2, 3, 32, 32)
    for name in ("vit_ti16_token", "timm:vit_tiny_patch16_224"):
        found = open_backbone(tmp_path / "a.safetensors", model=name, image_size=32)
        torch.testing.assert_close(found.model.eval()(x), peer(x), rtol=1e-4, atol=1e-5)


def test_timm_names_bring_their_normalisation_and_refuse_to_guess_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_backbone("timm:resnet18", image_size=64, random_weights=True)
    assert found.moments == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.name == "timm:resnet18, random weights"

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(CheckpointError, match=r"not in the cache and cannot be downloaded \(.*\); --random"):
        open_backbone("timm:resnet18")
    with pytest.raises(ModelError, match="did you mean `timm:resnet18`"):
        open_backbone("timm:resnet81")


@pytest.mark.parametrize("kind", ["vit", "vit_mae", "deit", "poolformer", "pvt"])
def test_hugging_face_folders_give_hugging_face_features(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    plain = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    small = {**plain, "image_size": 64}
    peer = {
        "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**small, num_labels=5)),
        "vit_mae": lambda: transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**small, decoder_hidden_size=16, decoder_num_attention_heads=2)
        ),
        "deit": lambda: transformers.DeiTForImageClassificationWithTeacher(
            transformers.DeiTConfig(**small, num_labels=5)
        ),
        "poolformer": lambda: transformers.PoolFormerForImageClassification(
            transformers.PoolFormerConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_labels=5)
        ),
        "pvt": lambda: transformers.PvtForImageClassification(
            transformers.PvtConfig(image_size=64, depths=[1, 1, 1, 1], num_labels=5, layer_norm_eps=1e-5)
        ),
    }[kind]()
    peer.eval().save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    found = open_backbone(tmp_path / "hf", image_size=64)
    assert found.moments == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        if kind == "vit_mae":
            peer.config.mask_ratio = 0.0
            noise = torch.arange(16.0).expand(2, -1)
            expected = peer.vit(x, noise=noise).last_hidden_state[:, 0]
            torch.testing.assert_close(found.model.eval().features(x), expected, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(found.model.eval()(x), peer(x).logits, rtol=1e-4, atol=1e-4)


def test_what_is_no_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(CheckpointError, match="no counterpart of Hugging Face's 'swin'"):
        open_backbone(tmp_path)
    with pytest.raises(CheckpointError, match="missing: no such file or folder"):
        open_backbone(tmp_path / "missing")
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="give the preset with --model"):
        open_backbone(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="give --image-size"):
        open_backbone(tmp_path / "b.safetensors", model="nfnet_w8d1")
    with pytest.raises(CheckpointError, match="another architecture"):
        open_backbone(tmp_path / "b.safetensors", model="vit_w12d2p8", image_size=32)
    (tmp_path / "c.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not readable as weights"):
        open_backbone(tmp_path / "c.safetensors", model="vit_w12d2p8")
