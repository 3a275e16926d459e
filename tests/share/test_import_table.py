"""Files in the layouts of their authors, with random weights: the right model comes in, or the candidates are listed.

The weights are of a small model of ours, written under the authors' names; what comes in has to give its logits. That
the models themselves compute what the authors' code does, `benchmarks/authors.py` shows.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from isoflop.errors import CheckpointError, ModelError
from isoflop.models import Backbone, create_model
from isoflop.models.interop import recognise, to_layout
from isoflop.share import import_weights
from isoflop.transfer import open_backbone
from tests.share.models import images, relative, saved, shaken
from tests.share.test_import import as_baseline_release, as_poolformer_release, flax_vit, timm_vit

State = dict[str, torch.Tensor]
FOUR: dict[str, Any] = {"depths": (1, 1, 2, 1), "widths": (8, 16, 32, 64), "mlp_widths": (16, 32, 64, 128)}
HYBRID: dict[str, Any] = {**FOUR, "heads": (1, 1, 1, 2)}


def poolformer(model: Backbone) -> State:
    state = to_layout(model, "timm")
    out = as_poolformer_release({name: t for name, t in state.items() if not name.endswith("pos_embed")})
    for name, table in state.items():
        if name.endswith("pos_embed"):  # has a place of its own before its stage, and moves those behind it
            place, side = 2 * int(name.split(".")[1]), int(table.shape[1] ** 0.5)
            out = {
                re.sub(
                    r"^network\.(\d+)\.", lambda m, at=place: f"network.{int(m[1]) + (int(m[1]) >= at)}.", key
                ): tensor
                for key, tensor in out.items()
            }
            out[f"network.{place}.pos_embed"] = table.transpose(1, 2).reshape(1, -1, side, side)
    return out


def baseline(model: Backbone) -> State:
    return as_baseline_release(to_layout(model, "timm"))


def timm_names(model: Backbone) -> State:
    return to_layout(model, "timm")


def mae(model: Backbone) -> State:
    state = {name: t for name, t in timm_names(model).items() if not name.startswith("head")}
    decoder = {"mask_token": (1, 1, 8), "decoder_embed.weight": (8, 192), "decoder_pred.weight": (192, 8)}
    return state | {name: torch.randn(shape) for name, shape in decoder.items()}


def encoder(model: Backbone) -> State:
    return {name: t for name, t in timm_names(model).items() if not name.startswith("head")}


# What the names and shapes of PoolFormer fit: identity, any size of pooling, and what has no tensors of its own.
POOLS = ("", "_identity", "_pool5", "_pool7", "_pool9", "_layernorm", "_relu", "_silu", "_noresidual")
POOL_LIKE = tuple(f"poolformer_s12{variant}" for variant in POOLS)
PLAIN = ("identityformer_s12", "poolformerv2_s12")
VITS = ("deit_ti16", "mae_b16", "vit_ti16_token")

# file, our model of the same weights, its options, who writes it, pixels; the presets that are listed, if it is refused
Row = tuple[str, str, dict[str, Any], Callable[[Backbone], State], int, tuple[str, ...]]
ROWS: tuple[Row, ...] = (
    ("poolformer_s12.pth.tar", "poolformer_s12", FOUR, poolformer, 64, ()),
    ("poolformer_m36.pth.tar", "poolformer_m36", FOUR, poolformer, 64, ()),
    ("metaformer_id_s12.pth.tar", "poolformer_s12_identity", FOUR, poolformer, 64, ()),
    ("metaformer_pppa_s12_224.pth.tar", "poolformer_s12_pppa", HYBRID, poolformer, 64, ()),
    ("metaformer_ppaa_s12_224.pth.tar", "poolformer_s12_ppaa", HYBRID, poolformer, 64, ()),
    ("metaformer_pppf_s12_224.pth.tar", "poolformer_s12_pppf", FOUR, poolformer, 64, ()),
    ("metaformer_ppff_s12_224.pth.tar", "poolformer_s12_ppff", FOUR, poolformer, 64, ()),
    ("best.pth", "poolformer_s12_pppa", HYBRID, poolformer, 64, ()),
    ("best.pth", "poolformer_s12_ppaa", HYBRID, poolformer, 64, ()),
    ("best.pth", "poolformer_s12_ppff", FOUR, poolformer, 64, ()),
    ("best.pth", "poolformer_s12", FOUR, poolformer, 64, POOL_LIKE),
    ("best.pth", "poolformer_s12_identity", FOUR, poolformer, 64, POOL_LIKE),
    ("best.pth", "poolformer_s12_pool7", FOUR, poolformer, 64, POOL_LIKE),
    ("best.pth", "poolformer_s12_relu", FOUR, poolformer, 64, POOL_LIKE),
    ("best.pth", "poolformer_s12_layernorm", FOUR, poolformer, 64, POOL_LIKE),
    ("best.pth", "poolformer_s12_noresidual", FOUR, poolformer, 64, POOL_LIKE),
    ("metaformer.pth", "poolformer_s12_identity", FOUR, poolformer, 64, POOL_LIKE),
    ("PoolFormer-S12-pool7-ema.pth", "poolformer_s12_pool7", FOUR, poolformer, 64, ()),
    ("poolformer_s12_silu.pth", "poolformer_s12_silu", FOUR, poolformer, 64, ()),
    ("best.pth", "poolformer_s12_batchnorm", FOUR, poolformer, 64, ()),
    ("best.pth", "poolformer_s12_nonorm", FOUR, poolformer, 64, ()),
    ("identityformer_s12.pth", "identityformer_s12", FOUR, baseline, 64, ()),
    ("poolformerv2_m36.pth", "poolformerv2_m36", FOUR, baseline, 64, ()),
    ("randformer_s24.pth", "randformer_s24", FOUR, baseline, 64, ()),
    ("convformer_s18_in21ft1k.pth", "convformer_s18", FOUR, baseline, 64, ()),
    ("caformer_s36_384.pth", "caformer_s36", HYBRID, baseline, 64, ()),
    ("best.pth", "identityformer_s12", FOUR, baseline, 64, PLAIN),
    ("best.pth", "poolformerv2_s12", FOUR, baseline, 64, PLAIN),
    ("best.pth", "randformer_s12", FOUR, baseline, 64, ()),
    ("best.pth", "convformer_s18", FOUR, baseline, 64, ()),
    ("best.pth", "caformer_s18", HYBRID, baseline, 64, ()),
    ("best.pth", "poolformerv2_s12", FOUR, timm_names, 64, PLAIN),
    ("deit_tiny_patch16_224-a1311bcf.pth", "deit_ti16", {}, timm_names, 32, ()),
    ("deit_tiny_distilled_patch16_224-b40b3cf7.pth", "deit_ti16_distilled", {}, timm_names, 32, ()),
    ("checkpoint.pth", "deit_ti16_distilled", {}, timm_names, 32, ()),
    ("checkpoint.pth", "deit_ti16", {}, timm_names, 32, VITS),
    ("checkpoint.pth", "vit_ti16_token", {"heads": (6,)}, timm_names, 32, VITS),
    ("mae_pretrain_vit_tiny.pth", "vit_ti16_token", {}, encoder, 32, ()),
    ("mae_visualize_vit_tiny.pth", "vit_ti16_token", {}, mae, 32, ()),
    ("checkpoint.pth", "vit_ti16_token", {}, mae, 32, ("mae_b16",)),
    ("mae_finetuned_vit_tiny.pth", "vit_ti16_token", {"pool": "gap", "pool_first": True}, timm_names, 32, ()),
)  # fmt: skip


def written(folder: Path, row: Row) -> tuple[Backbone, Path]:
    file, preset, options, write, size, _ = row
    model = shaken(create_model(preset, image_size=size, num_classes=5, seed=0, **options))
    torch.save({"state_dict": write(model)}, folder / file)
    return model, folder / file


def agrees(folder: Path, model: Backbone, size: int) -> bool:
    found = open_backbone(folder, image_size=size).model.eval()
    x = images(size)
    has_head = any(parameter.any() for parameter in found.head.parameters())
    with torch.inference_mode():
        if not has_head:
            return relative(found.features(x), model.features(x)) < 1e-5
        return relative(found(x), model(x)) < 1e-5


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_file_of_the_authors_is_the_right_model_or_its_candidates_are_listed(row: Row, tmp_path: Path) -> None:
    model, file = written(tmp_path, row)
    listed = row[5]
    if not listed:
        import_weights(str(file), tmp_path / "out")
        assert agrees(tmp_path / "out", model, row[4])
        return
    with pytest.raises(CheckpointError, match="do not determine the model") as caught:
        import_weights(str(file), tmp_path / "out")
    told = str(caught.value)
    assert "\n" not in told
    names = re.search(r"They fit (.*): name one with --model", told)
    assert names
    assert set(names[1].split("; ")) == set(listed)
    assert not (tmp_path / "out").exists()
    if row[2].get("heads") != (6,):  # which no preset has
        import_weights(str(file), tmp_path / "named", model=row[1] if row[1] in listed else listed[0])
        assert agrees(tmp_path / "named", model, row[4])


def test_what_the_name_of_a_file_decides_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from isoflop.cli import main

    _, file = written(tmp_path, ROWS[2])
    with pytest.raises(SystemExit) as caught:
        main(["import", str(file), "--output", str(tmp_path / "out")])
    assert caught.value.code == 0
    assert "the file name decided" in capsys.readouterr().out
    assert open_backbone(tmp_path / "out").origin["by"] == "the name of the file"


# kind of archive, what is changed in it, timm's options for the same
FLAX: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("augreg", "", {}),
    ("tok", "", {"no_embed_class": True}),
    ("map", "", {"class_token": False, "global_pool": "map"}),
    ("gap", "stacked", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("gap", "pre_logits", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("augreg", "pre_logits", {}),
)


@pytest.mark.parametrize(("kind", "change", "options"), FLAX)
def test_an_archive_of_big_vision_is_the_right_model(
    kind: str, change: str, options: dict[str, Any], tmp_path: Path
) -> None:
    arrays = flax_vit(kind, stacked=change == "stacked")
    without = dict(arrays)
    numbers = np.random.default_rng(5)
    width = arrays["head/kernel"].shape[0]
    if change == "pre_logits":
        arrays["pre_logits/kernel"] = numbers.normal(0, 0.3, (width, width)).astype(np.float32)
        arrays["pre_logits/bias"] = numbers.normal(0, 0.3, width).astype(np.float32)
    np.savez(tmp_path / "weights.npz", **arrays)
    np.savez(tmp_path / "peer.npz", **without)
    peer = timm_vit(**options)
    peer.load_pretrained(str(tmp_path / "peer.npz"))
    import_weights(str(tmp_path / "weights.npz"), tmp_path / "out")
    found = open_backbone(tmp_path / "out").model.eval()
    x = images(found.image_size[0])
    with torch.inference_mode():
        expected = peer.forward_head(peer.forward_features(x), pre_logits=True)
        if change == "pre_logits":
            expected = torch.tanh(expected @ torch.from_numpy(arrays["pre_logits/kernel"]) + torch.from_numpy(
                arrays["pre_logits/bias"]))  # fmt: skip
        expected = expected @ torch.from_numpy(arrays["head/kernel"]) + torch.from_numpy(arrays["head/bias"])
        assert relative(found(x), expected) < 1e-5


def test_positions_that_an_archive_leaves_out_are_those_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    arrays = flax_vit("gap")
    del arrays["pos_embedding"]
    np.savez(tmp_path / "vit.npz", **arrays)
    import_weights(str(tmp_path / "vit.npz"), tmp_path / "out", image_size=32)
    found = open_backbone(tmp_path / "out")
    table = found.model.state_dict()["positions.0"]
    assert found.options["positions"] == "sincos"
    fresh = create_model("vit_b16", image_size=32, **found.options).state_dict()["positions.0"]
    assert torch.equal(table, fresh)


def test_sizes_of_the_authors_models_prove_their_heads() -> None:
    """Of tensors that take no memory: MAE's three sizes with their decoder."""
    for name in ("mae_b16", "mae_l16", "mae_h14"):
        with torch.device("meta"):
            state = mae(create_model(name, image_size=224))
        found = recognise(state)
        assert found is not None
        assert found.choose("anything.pth") == (name, False)


def test_layouts_that_are_not_known_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "F0_haiku.npz").write_bytes(pickle.dumps({"NFNet/~/stem_conv0": {"w": np.zeros(3)}}))
    np.savez(tmp_path / "BiT-M-R50x1.npz", **{"resnet/root_block/standardized_conv2d/kernel": np.zeros((7, 7, 3, 64))})
    np.savez(tmp_path / "Mixer-B_16.npz", **{"stem/kernel": np.zeros((16, 16, 3, 768))})
    partial = {"network.0.0.mlp.fc1.weight": torch.zeros(8, 4, 1, 1)}
    torch.save(partial, tmp_path / "poolformer_s12.pth.tar")
    torch.save({"downsample_layers.0.conv.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "convformer_s18.pth")
    torch.save(
        {"blocks.0.attn.qkv.weight": torch.zeros(3, 1), "patch_embed.proj.weight": torch.zeros(2)}, tmp_path / "v.pth"
    )
    odd = timm_names(create_model("vit_ti16_token", image_size=32, depths=(1,)))
    torch.save(odd, tmp_path / "vit_of_no_known_size.pth")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for file in files:
        with pytest.raises((CheckpointError, ModelError)) as caught:
            import_weights(str(file), tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert "--model" in str(caught.value) or "heads" in str(caught.value) or "pickle" in str(caught.value)


def test_what_was_written_before_is_the_model_that_it_was(tmp_path: Path) -> None:
    """An export, and a file that lies alone, of when NFNet had the exact GELU and nothing said a revision."""
    model = saved(tmp_path / "old", "nfnet_w8d2", 32, revision=1)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["isoflop"]["revision"], config["isoflop"]["model"]["revision"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "alone.safetensors", metadata={"isoflop": "nfnet_w8d2"})
    x = images(32)
    with torch.inference_mode():
        for found in (
            open_backbone(tmp_path / "old"),
            open_backbone(tmp_path / "alone.safetensors", image_size=32),
        ):
            assert found.options == {"revision": 1}
            assert torch.equal(found.model.eval()(x), model(x))
        now = saved(tmp_path / "new", "nfnet_w8d2", 32)
        again = open_backbone(tmp_path / "new")
        assert again.options == {}
        assert torch.equal(again.model.eval()(x), now(x))
        assert not torch.equal(now(x), model(x))
        alone = open_backbone(
            shutil.copy(tmp_path / "new" / "model.safetensors", tmp_path / "other.safetensors"), image_size=32
        )
        assert torch.equal(alone.model.eval()(x), now(x))


def test_weights_of_a_known_release_that_fit_nothing_are_told_what_does_not(tmp_path: Path) -> None:
    state = baseline(create_model("identityformer_s12", image_size=64, num_classes=5, seed=0, **FOUR))
    del state["stages.2.1.norm1.weight"]
    state["stages.2.0.gamma"] = torch.zeros(3)
    torch.save(state, tmp_path / "identityformer_s12.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: stages\.2\.blocks\.1\.norm1\.weight; 1 unexpected: .*gamma"):
        import_weights(str(tmp_path / "identityformer_s12.pth"), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"1 unexpected: stages\.2\.blocks\.0\.gamma; 40 mis-shaped"):
        import_weights(str(tmp_path / "identityformer_s12.pth"), tmp_path / "out", model="identityformer_s12")


def test_distilled_deits_are_called_so(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row[0].startswith("deit_tiny_distilled"))
    assert import_weights(str(written(tmp_path, row)[1]), tmp_path / "out").model == "deit_ti16_distilled"
