"""Public weights come in under their authors' names; timm's own readers of the same files are the reference."""

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models import metaformer

from isoflop.cli import main
from isoflop.errors import CheckpointError, ModelError
from isoflop.share import export, import_weights
from isoflop.train import train
from isoflop.transfer import open_backbone
from tests.promises.chaos import run_config
from tests.share.models import images, relative, shaken

Arrays = dict[str, NDArray[np.float32]]
WIDTH, HEADS, HIDDEN, DEPTH, PATCH, CELLS = 24, 3, 40, 2, 8, 4


def flax_vit(kind: str, *, channels: int = 3, stacked: bool = False) -> Arrays:
    """Random arrays as big_vision ("gap", "map", "tok") and vit_jax ("augreg") name and shape them."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> NDArray[np.float32]:
        return rng.normal(scale=0.1, size=shape).astype(np.float32)

    def norm(name: str) -> Arrays:
        return {f"{name}/scale": 1 + array(WIDTH), f"{name}/bias": array(WIDTH)}

    def attention(name: str) -> Arrays:
        one = WIDTH // HEADS
        found = {f"{name}/out/kernel": array(HEADS, one, WIDTH), f"{name}/out/bias": array(WIDTH)}
        for part in ("query", "key", "value"):
            found |= {f"{name}/{part}/kernel": array(WIDTH, HEADS, one), f"{name}/{part}/bias": array(HEADS, one)}
        return found

    def mlp(name: str) -> Arrays:
        sizes = {"Dense_0": (WIDTH, HIDDEN), "Dense_1": (HIDDEN, WIDTH)}
        return {f"{name}/{dense}/kernel": array(*size) for dense, size in sizes.items()} | {
            f"{name}/{dense}/bias": array(size[1]) for dense, size in sizes.items()
        }

    old = kind == "augreg"
    attend, dense, second = (1, 3, 2) if old else (0, 0, 1)
    found: Arrays = {"embedding/kernel": array(PATCH, PATCH, channels, WIDTH), "embedding/bias": array(WIDTH)}
    for block in range(DEPTH):
        place = f"Transformer/encoderblock_{block}"
        found |= norm(f"{place}/LayerNorm_0") | norm(f"{place}/LayerNorm_{second}")
        found |= attention(f"{place}/MultiHeadDotProductAttention_{attend}") | mlp(f"{place}/MlpBlock_{dense}")
    found |= norm("Transformer/encoder_norm")
    found |= {"head/kernel": array(WIDTH, 5), "head/bias": array(5)}
    if kind == "augreg":
        found |= {"cls": array(1, 1, WIDTH), "Transformer/posembed_input/pos_embedding": array(1, CELLS**2 + 1, WIDTH)}
    else:
        found["pos_embedding"] = array(1, CELLS**2, WIDTH)
    if kind == "tok":
        found["cls"] = array(1, 1, WIDTH)
    if kind == "map":
        found |= {"MAPHead_0/probe": array(1, 1, WIDTH)} | norm("MAPHead_0/LayerNorm_0") | mlp("MAPHead_0/MlpBlock_0")
        found |= attention("MAPHead_0/MultiHeadDotProductAttention_0")
    if stacked:
        blocks = [name for name in found if "encoderblock_0/" in name]
        for name in blocks:
            parts = [found.pop(name.replace("_0/", f"_{block}/", 1)) for block in range(DEPTH)]
            found[name.replace("encoderblock_0", "encoderblock", 1)] = np.stack(parts)
    return found


def timm_vit(**options: Any) -> Any:
    """timm's ViT of that size, with the activation that Flax's models have."""
    size = {"img_size": CELLS * PATCH, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    shape: dict[str, Any] = {**size, "mlp_ratio": HIDDEN / WIDTH, "num_classes": 5, "act_layer": "gelu_tanh"}
    return timm.create_model("vit_base_patch16_224", **shape, **options).eval()


@pytest.mark.parametrize(
    ("kind", "options", "stacked"),
    [
        ("augreg", {}, False),
        ("gap", {"class_token": False, "global_pool": "avg", "fc_norm": False}, False),
        ("gap", {"class_token": False, "global_pool": "avg", "fc_norm": False}, True),
        ("map", {"class_token": False, "global_pool": "map"}, False),
        ("tok", {"no_embed_class": True}, False),
    ],
)
def test_archives_of_big_vision_and_augreg_give_timms_logits(
    kind: str, options: dict[str, Any], stacked: bool, tmp_path: Path
) -> None:
    prefix = "params/" if kind == "map" else ""
    arrays = {f"{prefix}{name}": array for name, array in flax_vit(kind, stacked=stacked).items()}
    np.savez(tmp_path / "vit.npz", **arrays)
    peer = timm_vit(**options)
    peer.load_pretrained(str(tmp_path / "vit.npz"))
    done = import_weights(str(tmp_path / "vit.npz"), tmp_path / "out")
    assert done.release == "big_vision or AugReg"
    found = open_backbone(tmp_path / "out")
    assert found.moments == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x = images(CELLS * PATCH)
    with torch.inference_mode():
        assert relative(found.model.eval()(x), peer(x)) < 1e-5


def test_fixed_positions_that_big_vision_does_not_store_are_its_own(tmp_path: Path) -> None:
    arrays = flax_vit("gap")
    del arrays["pos_embedding"]
    np.savez(tmp_path / "vit.npz", **arrays)
    import_weights(str(tmp_path / "vit.npz"), tmp_path / "out")
    table = open_backbone(tmp_path / "out").model.state_dict()["positions.0"]
    assert table.shape == (1, (224 // PATCH) ** 2, WIDTH)
    third = table[0, 2 * 28 + 3]  # row 2, column 3
    slow = 10_000.0 ** -(np.arange(WIDTH // 4) / (WIDTH // 4 - 1))
    expected = np.concatenate([np.sin(3 * slow), np.cos(3 * slow), np.sin(2 * slow), np.cos(2 * slow)])
    np.testing.assert_allclose(third.numpy(), expected, atol=1e-6)


def official_mae(peer: Any) -> dict[str, torch.Tensor]:
    """A checkpoint of MAE's pretraining: the encoder under timm's names, and a decoder."""
    width, patch = peer.embed_dim, PATCH
    encoder = {name: tensor for name, tensor in peer.state_dict().items() if not name.startswith("head")}
    names = {"mask_token": (1, 1, 8), "decoder_embed.weight": (8, width), "decoder_pred.weight": (patch * patch * 3, 8)}
    return {**encoder, **{name: torch.randn(shape) for name, shape in names.items()}}


def test_mae_checkpoints_give_timms_features_and_their_decoder_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"img_size": 32, "patch_size": PATCH, "embed_dim": 192, "num_heads": 3}
    peer = shaken(timm.create_model("vit_base_patch16_224", depth=12, num_classes=0, **size))
    settings = argparse.Namespace(batch_size=4096, model="mae_vit_base_patch16")
    torch.save({"model": official_mae(peer), "epoch": 799, "args": settings}, tmp_path / "mae.pth")
    with pytest.raises(SystemExit) as caught:
        main(["import", str(tmp_path / "mae.pth"), "--output", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert "from MAE" in out
    assert "skipped, not part of a backbone: 3 tensors (mask_token, decoder_embed.weight, decoder_pred.weight" in out
    found = open_backbone(tmp_path / "out")
    x = images(32)
    with torch.inference_mode():
        assert relative(found.model.eval().features(x), peer(x)) < 1e-5
    export(str(tmp_path / "out"), "timm", tmp_path / "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert again.num_classes == 0
    with torch.inference_mode():
        assert relative(again(x), peer(x)) < 1e-5


def test_fine_tuned_maes_normalise_the_mean(tmp_path: Path) -> None:
    size = {"img_size": 32, "patch_size": PATCH, "embed_dim": 192, "num_heads": 3, "depth": 12}
    peer = shaken(timm.create_model("vit_base_patch16_224", num_classes=5, global_pool="avg", **size))
    assert "fc_norm.weight" in peer.state_dict()
    torch.save({"model": peer.state_dict()}, tmp_path / "mae.pth")
    import_weights(str(tmp_path / "mae.pth"), tmp_path / "out")
    x = images(32)
    with torch.inference_mode():
        assert relative(open_backbone(tmp_path / "out").model.eval()(x), peer(x)) < 1e-5


def as_poolformer_release(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's tensors under the names of PoolFormer's release."""
    out = {}
    for name, tensor in state.items():
        new = re.sub(r"stages\.(\d)\.blocks\.", lambda m: f"network.{2 * int(m[1])}.", name)
        new = re.sub(r"stages\.(\d)\.downsample\.conv", lambda m: f"network.{2 * int(m[1]) - 1}.proj", new)
        new = re.sub(r"layer_scale(\d)\.scale", r"layer_scale_\1", new.replace("stem.conv", "patch_embed.proj"))
        out[new.replace("head.norm", "norm").replace("head.fc", "head")] = tensor
    return out


def as_baseline_release(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's tensors under the names of the MetaFormer baselines' release."""
    out = {}
    for name, tensor in state.items():
        new = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", name)
        new = re.sub(r"stages\.(\d)\.downsample\.norm", r"downsample_layers.\1.pre_norm", new)
        new = re.sub(r"stages\.(\d)\.downsample\.conv", r"downsample_layers.\1.conv", new)
        new = new.replace("stem.conv", "downsample_layers.0.conv").replace("stem.norm", "downsample_layers.0.post_norm")
        out[new.replace("head.norm", "norm").replace("head.fc", "head")] = tensor
    return out


def test_poolformers_release_gives_the_maps_that_timm_makes_of_it(tmp_path: Path) -> None:
    peer = shaken(timm.create_model("poolformer_s12", num_classes=5))
    official = as_poolformer_release(peer.state_dict())
    assert {"network.1.proj.weight", "network.0.0.layer_scale_1", "norm.weight", "head.bias"} <= set(official)
    reread = metaformer.checkpoint_filter_fn(official, peer)
    assert set(reread) == set(peer.state_dict())  # these are the names that timm knows the release by
    torch.save(official, tmp_path / "poolformer_s12.pth.tar")
    import_weights(str(tmp_path / "poolformer_s12.pth.tar"), tmp_path / "out")
    model = open_backbone(tmp_path / "out", image_size=64).model.eval()
    x = images(64)
    with torch.inference_mode():
        expected = peer.forward_features(x)
        assert relative(model.feature_maps(x)[-1], expected) < 1e-5
        # timm normalises the mean of the map; the release, and we, the map.
        normed = torch.nn.functional.group_norm(expected, 1, peer.head.norm.weight, peer.head.norm.bias, 1e-5)
        assert relative(model(x), peer.head.fc(normed.mean(dim=(2, 3)))) < 1e-5


SMALL = {"depths": (1, 1, 2, 1), "dims": (32, 64, 96, 128), "num_classes": 5}
MIXERS: dict[str, dict[str, Any]] = {
    "convformer": {"token_mixers": metaformer.SepConv, "norm_layers": metaformer.LayerNorm2dNoBias},
    "caformer": {
        "token_mixers": [metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
        "norm_layers": [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
    },
}
SMALL_NFNET = {"depths": (1, 1, 2, 1), "channels": (32, 64, 96, 128), "stem_chs": 64, "num_features": 256}


def agree(file: Path, peer: Any, size: int, told: tuple[str, str]) -> None:
    """The file is recognised as what is told, and gives the logits of `peer`."""
    done = import_weights(str(file), file.parent / "out")
    assert (done.model, done.release) == told
    x = images(size)
    with torch.inference_mode():
        assert relative(open_backbone(file.parent / "out", image_size=size).model.eval()(x), peer(x)) < 1e-5


@pytest.mark.parametrize("family", MIXERS)
def test_convformers_and_caformers_give_timms_logits_from_the_release_and_from_timms_own_files(
    family: str, tmp_path: Path
) -> None:
    peer = shaken(metaformer.MetaFormer(**SMALL, **MIXERS[family]))
    official = as_baseline_release(peer.state_dict())
    assert set(metaformer.checkpoint_filter_fn(official, peer)) == set(peer.state_dict())
    torch.save(official, tmp_path / "official.pth")
    peer.head.fc.norm.eps = 1e-5  # the authors' eps in the head; timm's is 1e-6
    agree(tmp_path / "official.pth", peer, 64, (f"{family}_s18", "MetaFormer baselines"))
    peer.head.fc.norm.eps = 1e-6
    (tmp_path / "timm").mkdir()
    save_file(peer.state_dict(), tmp_path / "timm" / "model.safetensors")
    agree(tmp_path / "timm" / "model.safetensors", peer, 64, (f"{family}_s18", "timm's names of a MetaFormer"))


def test_a_file_of_timms_nfnet_gives_its_logits_whatever_its_size(tmp_path: Path) -> None:
    peer = shaken(timm.create_model("dm_nfnet_f0", num_classes=5, group_size=16, **SMALL_NFNET))
    torch.save({"state_dict": peer.state_dict()}, tmp_path / "nfnet.pth")
    agree(tmp_path / "nfnet.pth", peer, 64, ("nfnet_f0", "timm's names of an NFNet"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("convformer_s18", ("convformer_s18", "timm's names of a MetaFormer")),
        ("caformer_s18", ("caformer_s18", "timm's names of a MetaFormer")),
        ("dm_nfnet_f0", ("nfnet_f0", "timm's names of an NFNet")),
        ("dm_nfnet_f1", ("nfnet_f1", "timm's names of an NFNet")),
    ],
)
def test_files_of_timms_full_sizes_give_its_logits(name: str, told: tuple[str, str], tmp_path: Path) -> None:
    peer = shaken(timm.create_model(name))
    torch.save(peer.state_dict(), tmp_path / f"{name}.pth")
    agree(tmp_path / f"{name}.pth", peer, 64, told)


def test_timms_folders_and_names_come_in_as_they_are_or_as_a_preset(tmp_path: Path) -> None:
    peer = shaken(timm.create_model("resnet10t", num_classes=5))
    known = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 5}
    (tmp_path / "r").mkdir()
    config = {"architecture": "resnet10t", "num_classes": 5, "pretrained_cfg": known, "label_names": list("abcde")}
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    save_file(peer.state_dict(), tmp_path / "r" / "model.safetensors")
    import_weights(str(tmp_path / "r"), tmp_path / "out")
    found = open_backbone(tmp_path / "out")
    assert (found.preset, found.moments, found.class_names) == (
        "timm:resnet10t",
        ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        tuple("abcde"),
    )
    x = images(64)
    with torch.inference_mode():
        assert relative(found.model.eval()(x), peer(x)) < 1e-6
    vit = shaken(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5))
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    import_weights(str(tmp_path / "vit.pth"), tmp_path / "ours", model="vit_ti16_token")
    with torch.inference_mode():
        assert relative(open_backbone(tmp_path / "ours").model.eval()(images(32)), vit(images(32))) < 1e-5


def test_what_comes_in_starts_a_run_that_it_fits(tmp_path: Path) -> None:
    for channels in (1, 3):
        np.savez(tmp_path / "vit.npz", **flax_vit("gap", channels=channels))
        import_weights(str(tmp_path / "vit.npz"), tmp_path / f"weights-{channels}")

    def begin(channels: int) -> str:
        weights = tmp_path / f"weights-{channels}"
        config = run_config(
            model={"name": "vit_b16", **open_backbone(weights).options},
            data={"source": "fractals?classes=5&images=50", "heldout": 16},  # grey
            start={"weights": str(weights), "head": "keep"},
            steps=1,
            batch_size=8,
            schedule={},
            evaluation={},
        )
        return train(config, tmp_path / f"run-{channels}").state

    assert begin(1) == "done"
    with pytest.raises(CheckpointError, match=r"mis-shaped \(stem\.conv\.weight\)"):
        begin(3)


class Evil:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pth", "bin", "npz"])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(suffix: str, tmp_path: Path) -> None:
    trap, file = tmp_path / "ran", tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"model": {"head.weight": torch.zeros(1)}, "extra": Evil(trap)}, file)
    else:
        file.write_bytes(pickle.dumps({"w": Evil(trap)}))
    with pytest.raises(ModelError, match="could run code when it is read"):
        import_weights(str(file), tmp_path / "out")
    assert not trap.exists()
    if suffix == "pth":  # it would have
        torch.load(file, weights_only=False)
        assert trap.exists()


def test_what_cannot_be_mapped_is_listed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = flax_vit("gap")
    del arrays["Transformer/encoderblock_1/MlpBlock_0/Dense_1/bias"]
    arrays["pre_logits/bias"] = np.zeros(3, dtype=np.float32)
    arrays["Transformer/encoder_norm/scale"] = np.zeros(7, dtype=np.float32)
    np.savez(tmp_path / "vit.npz", **arrays)
    torch.save({"lstm.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "torn.npz").write_bytes(b"")
    cases = {
        "vit.npz": (
            r"1 missing: Transformer/encoderblock_1/MlpBlock_0/Dense_1/bias; 1 unexpected: pre_logits/bias; "
            r"1 mis-shaped: norm\.weight \(7,\) for \(24,\)"
        ),
        "other.pth": "do not determine the model .*--model",
        "torn.pth": "not readable as weights",
        "torn.npz": "not an archive of arrays",
        "othr.pth": r"no such file or folder - did you mean `.*/other\.pth`",
    }
    for name, told in cases.items():
        with pytest.raises(SystemExit) as caught:
            main(["import", str(tmp_path / name), "--output", str(tmp_path / "out")])
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (2, "")
        assert re.search(told, err), err
        assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pth", "torn.npz", "torn.pth", "vit.npz"]
