"""What is hidden stays hidden, for every family; and with nothing hidden, a backbone is what it always was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone, create_model
from isoflop.models.bit import BiT, PlainConv
from isoflop.models.mixers import Attention
from isoflop.models.standardised import PlainStandardisedConv, StandardisedConv
from isoflop.objectives import Masked
from isoflop.objectives.masked import is_plain, patches, unpatched
from isoflop.objectives.supervised import Uniforms
from isoflop.objectives.visible import VisibleCells, only_visible

THIN = {"depths": (1, 1, 1, 1), "widths": (16, 16, 32, 32), "mlp_widths": (32, 32, 32, 32), "drop_path": 0.1}
HEADS = {**THIN, "heads": (1, 1, 2, 2)}
# A name, the size of its images, changes that make it small.
MODELS: tuple[tuple[str, int | tuple[int, int], dict[str, Any]], ...] = (
    ("vit_w16d2p8", 32, {}),
    ("vit_w16d2p8", 32, {"norm": "batch"}),
    ("deit_ti16_distilled", 64, {"depths": (1,), "widths": (48,), "mlp_widths": (96,)}),
    ("poolformer_w16d4p4", 32, {"drop_path": 0.2}),
    ("poolformer_w8d2p8", 32, {"norm": "batch"}),
    ("poolformer_w8d2p4", (32, 48), {"mixers": ("depthwise", "attention"), "pool_size": 5}),
    ("poolformer_w8d2p4", 32, {"mixers": ("random", "separable_conv"), "norm": "layer"}),
    ("poolformer_s12_pppa", 64, HEADS),
    ("poolformerv2_s12", 64, THIN),
    ("caformer_s18", 64, HEADS),
    ("randformer_s12", 64, THIN),
    ("pvt_ti", 64, HEADS),
    ("pvt_v2_b0", 64, HEADS),
    ("nfnet_w16d2", 32, {}),
    ("nfnet_f0", (96, 64), {"depths": (1, 1, 1, 1), "widths": (32, 32, 64, 64), "group_width": 16, "final_width": 64}),
    ("bit_r50x1", 64, {"depths": (1, 1)}),
    ("resnet_w8d8", 32, {}),
    ("resnet_w8d8", 32, {"norm": "batch"}),
    ("resnet_w8d8", (64, 32), {"stem_stride": 4}),
)
LABELS = torch.zeros(2, dtype=torch.int64)


def masked(name: str, size: int | tuple[int, int], changes: dict[str, Any]) -> Masked:
    backbone = create_model(name, image_size=size, in_channels=4, num_classes=3, seed=0, **changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim <= 1:  # so that biases and gains of zero hide nothing
                parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator) + 0.1)
    torch.manual_seed(0)  # of the decoder
    return Masked(backbone, ratio=0.5, decoder_depth=1, decoder_width=16, decoder_heads=2)


def drawn(objective: Masked) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the same with other hidden pixels, and all patches in order, visible ones first."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 4, *objective.backbone.image_size, generator=generator)
    noise = torch.rand(2, objective.grid[0] * objective.grid[1], generator=generator)
    order = objective.order(lambda stream, count: noise)
    cells = patches(images, objective.patch)
    hidden = order[:, objective.visible :, None].expand(-1, -1, cells.shape[-1])
    other = cells.scatter(1, hidden, 100 * torch.randn(hidden.shape, generator=generator))
    return images, unpatched(other, objective.patch, objective.grid), order


def ranked(order: Tensor) -> Uniforms:
    """Numbers that make a masked autoencoder draw `order`."""
    return lambda stream, count: order.argsort(dim=1).float()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("name", "size", "changes"), MODELS)
def test_hidden_pixels_change_no_output_at_visible_positions(
    name: str, size: int | tuple[int, int], changes: dict[str, Any], train: bool
) -> None:
    objective = masked(name, size, changes).train(train)
    images, other, order = drawn(objective)
    keep = order[:, : objective.visible]
    with torch.no_grad():
        torch.manual_seed(0)  # of stochastic depth
        before = objective.encode(images, keep)
        torch.manual_seed(0)
        after = objective.encode(other, keep)
    assert torch.equal(before, after)
    visible = images + (images - other == 0)
    with torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(objective.encode(visible, keep), before), "visible pixels do count"


@pytest.mark.parametrize(("name", "size", "changes"), MODELS)
def test_whatever_is_at_hidden_places_on_the_way_reaches_no_visible_one(
    name: str, size: int | tuple[int, int], changes: dict[str, Any]
) -> None:
    """Every layer by itself: noise is put into the hidden places of what each of them puts out. Hidden pixels alone
    would not tell, where they are gone after the first convolution and later ones see what it left in their places."""
    objective = masked(name, size, changes).eval()
    images, _, order = drawn(objective)
    keep = order[:, : objective.visible]
    sight, generator = VisibleCells(keep, objective.grid), torch.Generator().manual_seed(7)

    def disturb(module: nn.Module, inputs: Any, out: Any) -> Tensor | None:
        if not isinstance(out, Tensor) or out.ndim != 4:
            return None
        channels_first = isinstance(module, nn.Conv2d) and not isinstance(
            module, StandardisedConv | PlainStandardisedConv | PlainConv
        )
        rows, columns = out.shape[2:] if channels_first else out.shape[1:3]
        if rows % objective.grid[0] or columns % objective.grid[1]:
            return None
        hidden = 1 - sight.at(rows, columns)
        noise = 10 * torch.randn(out.shape, generator=generator)
        return out + noise * (hidden.movedim(-1, 1) if channels_first else hidden)

    with torch.no_grad():
        before = objective.encode(images, keep)
        for path, module in objective.backbone.named_modules():
            inside_attention = isinstance(objective.backbone.get_submodule(path.rpartition(".")[0]), Attention)
            cleaned_before_its_pooling = isinstance(objective.backbone, BiT) and path == "stem"
            if path and not inside_attention and not cleaned_before_its_pooling:
                module.register_forward_hook(disturb)
        assert torch.equal(objective.encode(images, keep), before)


@pytest.mark.parametrize(("name", "size", "changes"), MODELS)
def test_with_nothing_hidden_a_backbone_is_as_always(
    name: str, size: int | tuple[int, int], changes: dict[str, Any]
) -> None:
    objective = masked(name, size, changes).eval()
    backbone, images = objective.backbone, drawn(objective)[0]
    everything = torch.arange(objective.grid[0] * objective.grid[1]).expand(2, -1)
    with torch.no_grad():
        expected = backbone.tokens(images)
        with only_visible(backbone, everything, objective.grid):
            found = backbone.tokens(images)
        again = backbone.tokens(images)
    assert (found - expected).abs().max() / expected.abs().max() < 2e-5
    assert torch.equal(again, expected), "nothing stays behind"


def test_without_care_there_is_a_leak() -> None:
    """The test above would see one."""
    for name in ("poolformer_w16d4p4", "nfnet_w16d2"):
        objective = masked(name, 32, {}).eval()
        images, other, order = drawn(objective)
        with torch.no_grad():
            before, after = (objective.backbone.tokens(x) for x in (images, other))
        keep = order[:, : objective.visible, None].expand(-1, -1, before.shape[-1])
        assert not torch.equal(before.gather(1, keep), after.gather(1, keep))


@pytest.mark.parametrize("name", ["poolformer_w8d2p4", "nfnet_w8d2"])
def test_activations_computed_again_see_the_same_mask(name: str) -> None:
    """With `parallel.recompute`, blocks run a second time in the backward pass, when the forward pass is over."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    gradients = []
    for again in (False, True):
        objective = masked(name, 32, {})
        if again:
            for stage in objective.backbone.get_submodule("stages"):  # type: ignore[union-attr]
                for block in stage:
                    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        images, _, order = drawn(objective)
        objective(images, LABELS, ranked(order)).backward()
        gradients.append({n: p.grad for n, p in objective.named_parameters() if p.grad is not None})
        with torch.no_grad():
            dense = create_model(name, image_size=32, in_channels=4, num_classes=3, seed=0)
            dense.load_state_dict(objective.backbone.state_dict())
            assert torch.equal(dense(images), objective.backbone(images)), "nothing stays behind a backward pass"
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_plain_means_that_patches_can_be_encoded_by_themselves() -> None:
    def plain(name: str, **changes: Any) -> bool:
        return is_plain(create_model(name, image_size=64, num_classes=3, **changes))

    assert plain("vit_w8d1p8")
    assert plain("deit_ti16_distilled", depths=(1,))
    assert not plain("vit_w8d1p8", stem_kernel=9, stem_padding=1), "overlapping patches share pixels"
    assert not plain("poolformer_w4d1p8")
    assert not plain("nfnet_w8d1")
    assert Masked(create_model("nfnet_w8d2", image_size=64), decoder_width=16, decoder_heads=2).visible == 25  # 40 %
    assert Masked(create_model("vit_w8d1p8", image_size=64), decoder_width=16, decoder_heads=2).visible == 16  # 25 %


@pytest.mark.parametrize(
    ("name", "mixer"),
    [("fnet_s16", "fourier"), ("mixer_s32", "token_mlp"), ("gmlp_ti16", "gated_mlp"), ("resmlp_s12", "token_linear"),
     ("swin_mixer_t_d24", "window_mlp"), ("poolformer_s12_pppf", "token_linear")],
)  # fmt: skip
def test_backbones_that_need_every_token_say_so_and_who_does_not(name: str, mixer: str) -> None:
    small: dict[str, Any] = {"depths": (1, 1, 1, 1)} if "mixer_t" in name or "pool" in name else {"depths": (1,)}
    backbone = create_model(name, image_size=256 if "swin" in name else 64, num_classes=3, **small)
    with pytest.raises(ModelError, match=rf"its {mixer} mixer needs every token in its place; .*nfnet, resnet, bit"):
        Masked(backbone)


def test_models_of_timm_say_that_they_cannot() -> None:
    backbone: Backbone = create_model("timm:resnet18", image_size=32, num_classes=3)
    with pytest.raises(ModelError, match="only these families can"):
        Masked(backbone)
