"""Every backbone hands out four maps; windows and taps of a plain ViT are those of the papers."""

import pytest
import torch

from isoflop.errors import ModelError
from isoflop.models import create_model
from isoflop.objectives.dense.maps import PlainBlocks, make_maps
from tests.dense.small import BACKBONES, SIZE, backbone, batch


@pytest.mark.parametrize("taps", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_four_maps_each_half_as_fine(name: str, taps: bool) -> None:
    model = backbone(name)
    maps = make_maps(model, taps=taps, window=None, global_blocks=4)
    assert maps.strides == (4, 8, 16, 32)  # of nfnet_w8d2, which has two stages, two are pooled
    found = maps(model, batch("detect")[0])
    shapes = [(2, width, SIZE // int(s), SIZE // int(s)) for width, s in zip(maps.widths, maps.strides, strict=True)]
    assert [tuple(x.shape) for x in found] == shapes


def test_the_maps_of_plain_vits_begin_at_four_pixels_as_far_as_they_can() -> None:
    for patch, strides in ((4, (4, 8, 16, 32)), (8, (4, 8, 16, 32)), (16, (4, 8, 16, 32)), (32, (8, 16, 32, 64))):
        model = backbone("vit_s16", stem_kernel=patch, stem_stride=patch)
        for taps in (False, True):
            maps = make_maps(model, taps=taps, window=None, global_blocks=4)
            assert maps.strides == strides
            found = maps(model, batch("detect")[0])
            assert [x.shape[-1] for x in found] == [SIZE // s for s in strides]
            assert [x.shape[1] for x in found] == list(maps.widths)


def test_the_last_tap_is_the_last_feature_map() -> None:
    model, images = backbone("vit_s16"), batch("detect")[0]
    found = PlainBlocks(model, (0.25, 0.5, 0.75, 1.0), window=None, global_blocks=4)(model, images)
    torch.testing.assert_close(found[-1], model.feature_maps(images)[0])
    assert not torch.equal(found[0], found[1])


def test_taps_of_timm_are_those_of_its_blocks() -> None:
    model, images = backbone("timm:test_vit").eval(), batch("detect")[0]
    found = PlainBlocks(model, (0.5, 1.0), window=None, global_blocks=4)(model, images)
    depth = len(model.model.feature_info)
    expected = model.model.forward_intermediates(images, indices=[depth // 2 - 1, depth - 1], intermediates_only=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_window_as_large_as_the_map_is_global_attention() -> None:
    images = batch("detect")[0]
    plain = backbone("vit_s16", prefix_tokens=0, pool="gap")
    whole = PlainBlocks(plain, (1.0,), window=None, global_blocks=1)(plain, images)[0]
    windowed = backbone("vit_s16", prefix_tokens=0, pool="gap")
    same = PlainBlocks(windowed, (1.0,), window=SIZE // 16, global_blocks=1)(windowed, images)[0]
    torch.testing.assert_close(same, whole)


@pytest.mark.parametrize(("global_blocks", "reaches"), [(1, True), (4, True)])
def test_windows_keep_to_themselves_and_global_blocks_see_all(global_blocks: int, reaches: bool) -> None:
    """Of 4 × 4 tokens in windows of 3, which do not divide them, a change in one corner reaches the other corner in
    global blocks alone."""
    model = backbone("vit_s16").eval()
    blocks = PlainBlocks(model, (0.25, 1.0), window=3, global_blocks=global_blocks)
    images = batch("detect")[0]
    changed = images.clone()
    changed[:, :, :16, :16] += 1
    first, last = (one - other for one, other in zip(blocks(model, images), blocks(model, changed), strict=True))
    assert bool(first[:, :, 3, 3].abs().max() > 0) == (global_blocks == 4)
    assert bool(last[:, :, 3, 3].abs().max() > 0) == reaches


def test_windows_change_no_name_of_a_weight() -> None:
    model = backbone("vit_s16")
    names = set(model.state_dict())
    make_maps(model, taps=False, window=2, global_blocks=2)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("name", "size", "window", "message"),
    [
        ("poolformer_s12", 64, 7, "`objective.window` is for plain ViTs; poolformer_s12 has a pyramid"),
        ("timm:test_vit", 64, 7, "is not a plain ViT of isoflop"),
        ("poolformer_s12", 80, None, "80×80 px do not divide by the coarsest stride, 32"),
    ],
)
def test_backbones_that_cannot_are_refused_in_one_line(name: str, size: int, window: int | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_maps(backbone(name, size=size), taps=False, window=window, global_blocks=4)


def test_a_backbone_without_feature_maps_is_refused() -> None:
    model = create_model("timm:test_efficientnet", num_classes=3, image_size=64, seed=0)
    model.feature_strides = (2, 16)
    with pytest.raises(ModelError, match="has no feature maps for dense tasks: they need strides that double"):
        make_maps(model, taps=False, window=None, global_blocks=4)
