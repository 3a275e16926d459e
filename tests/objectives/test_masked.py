"""Masked autoencoding of plain ViTs is the published one: Hugging Face's ViTMAE is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from isoflop.errors import ConfigError, ModelError
from isoflop.models import create_model
from isoflop.models.blocks import Block
from isoflop.models.layers import sincos_2d
from isoflop.objectives import Masked, load_huggingface_mae
from isoflop.objectives.masked import patches, unpatched
from isoflop.objectives.supervised import Uniforms

LABELS = torch.zeros(3, dtype=torch.int64)
SMALL = {"decoder_depth": 2, "decoder_width": 32, "decoder_heads": 4}


def same(noise: Tensor) -> Uniforms:
    """The same numbers, whatever is asked for."""
    return lambda stream, count: noise


def peer(**changes: Any) -> Any:
    """A small ViTMAEForPreTraining whose vectors are moved off their start."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        **{
            "image_size": 64,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 128,
            "layer_norm_eps": 1e-6,
            "initializer_range": 0.2,
            **changes,
        }
    )
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.3 * torch.rand(parameter.shape))
        model.decoder.initialize_weights(16)
    return model


def ours(**options: Any) -> Masked:
    backbone = create_model(
        "mae_b16", image_size=64, widths=(64,), heads=(4,), depths=(2,), mlp_widths=(256,), num_classes=5, seed=0
    )
    return Masked(backbone, **{**SMALL, **options}).eval()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("ratio", [0.75, 0.4])
def test_loss_and_reconstruction_are_those_of_vit_mae(normalise: bool, ratio: float) -> None:
    theirs = peer(norm_pix_loss=normalise, mask_ratio=ratio)
    objective = ours(normalise=normalise, ratio=ratio)
    load_huggingface_mae(objective, theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    images, noise = torch.randn(3, 3, 64, 64, generator=generator), torch.rand(3, 16, generator=generator)
    expected = theirs(images, noise=noise)
    loss = objective(images, LABELS, same(noise))
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert objective.evaluate(images, LABELS, same(noise))["loss"].item() / 3 == pytest.approx(loss.item(), rel=1e-5)

    order = objective.order(same(noise))
    predicted = objective.predict(images, order)
    hidden = order[:, objective.visible :, None].expand_as(predicted)
    error = (predicted - expected.logits.gather(1, hidden)).abs().max() / expected.logits.abs().max()
    assert error < 1e-5
    made = objective.reconstruct(images, same(noise))
    assert torch.equal(made.hidden.flatten(1), expected.mask.bool())
    assert made.is_normalised == normalise
    cells, values = theirs.patchify(images), expected.logits
    if normalise:  # with the statistics of what was hidden, which the model does not know
        values = values * (cells.var(dim=-1, keepdim=True) + 1e-6).sqrt() + cells.mean(dim=-1, keepdim=True)
    shown = theirs.unpatchify(torch.where(expected.mask[..., None] > 0, values, cells))
    assert torch.allclose(made.images, shown, atol=1e-5)


def test_gradients_are_those_of_vit_mae() -> None:
    theirs, objective = peer(norm_pix_loss=True), ours()
    load_huggingface_mae(objective, theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    images, noise = torch.randn(3, 3, 64, 64, generator=generator), torch.rand(3, 16, generator=generator)
    theirs(images, noise=noise).loss.backward()
    objective(images, LABELS, same(noise)).backward()
    expected = theirs.vit.embeddings.patch_embeddings.projection.weight.grad
    found = objective.backbone.get_parameter("stem.conv.weight").grad
    assert found is not None
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5
    mask_token = objective.decoder.mask_token.grad
    assert mask_token is not None
    assert torch.allclose(mask_token, theirs.decoder.mask_token.grad, rtol=1e-4, atol=1e-7)


def test_fixed_positions_are_the_published_ones() -> None:
    model = peer()
    assert torch.allclose(model.decoder.decoder_pos_embed[0, 1:], sincos_2d((4, 4), 32, "sincos_mae"), atol=1e-6)
    assert not ours().decoder.positions.requires_grad
    assert not ours().backbone.get_parameter("positions.0").requires_grad


def test_what_nothing_looks_at_is_left_out_and_changes_nothing() -> None:
    torch.manual_seed(0)
    objective = ours(decoder_depth=1)
    decoder = objective.decoder
    images, order = torch.randn(2, 3, 64, 64), torch.rand(2, 16).argsort(dim=1)
    whole = objective.backbone.embed(images).flatten(1, 2)  # type: ignore[operator]
    seen = objective.backbone.embed(images, order[:, :4])  # type: ignore[operator]
    assert torch.allclose(seen, whole.gather(1, order[:, :4, None].expand_as(seen)), atol=1e-6)

    tokens = torch.randn(2, 17, 32)
    assert torch.allclose(decoder.blocks[0](tokens, 5), Block.forward(decoder.blocks[0], tokens)[:, 5:], atol=1e-6)


def test_weights_of_another_decoder_are_refused() -> None:
    with pytest.raises(ModelError, match="not of this decoder"):
        load_huggingface_mae(ours(decoder_depth=1), peer().state_dict())


def test_images_that_are_not_square_and_have_other_channels() -> None:
    backbone = create_model("vit_w8d1p8", image_size=(32, 64), in_channels=5, num_classes=3, seed=0)
    objective = Masked(backbone, **SMALL)
    images, noise = torch.randn(2, 5, 32, 64), torch.rand(2, 32)
    objective(images, LABELS[:2], same(noise)).backward()
    made = objective.reconstruct(images, same(noise))
    assert made.images.shape == images.shape
    assert made.hidden.shape == (2, 4, 8)
    assert made.hidden.sum() == 48
    assert made.is_normalised
    seen = ~made.hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
    assert torch.equal(made.images[seen], images[seen]), "visible patches are shown as they were given"
    assert torch.equal(unpatched(patches(images, 8), 8, (4, 8)), images)


def test_the_default_is_the_published_size() -> None:
    with torch.device("meta"):
        objective = Masked(create_model("mae_b16", image_size=32))
    assert len(objective.decoder.blocks) == 8
    assert objective.decoder.embed.out_features == 512
    assert objective.visible == 1  # of four patches, at 0.75


def test_everything_that_is_trained_has_a_gradient_and_the_classifier_is_not() -> None:
    small: dict[str, Any] = {"widths": (48,), "mlp_widths": (96,), "depths": (1,)}
    thin = {"depths": (1, 1, 1, 1), "widths": (16, 16, 32, 32), "mlp_widths": (32, 32, 32, 32), "heads": (1, 1, 2, 2)}
    for name in ("vit_w8d1p8", "vit_ti16_map", "deit_ti16_distilled", "caformer_s18"):
        changes = thin if name == "caformer_s18" else {} if name == "vit_w8d1p8" else small
        objective = Masked(create_model(name, image_size=64, num_classes=3, **changes), **SMALL)
        noise = torch.rand(2, objective.grid[0] * objective.grid[1])
        objective(torch.randn(2, 3, 64, 64), LABELS[:2], same(noise)).backward()
        assert [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []
        assert not any(p.requires_grad for p in objective.backbone.head.parameters())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no visible patch of 16"):
        Masked(create_model("vit_w8d1p8", image_size=32), ratio=0.95, **SMALL)
    with pytest.raises(ModelError, match="cannot be split into 5 heads"):
        Masked(create_model("vit_w8d1p8", image_size=32), decoder_depth=1, decoder_width=32, decoder_heads=5)
    with pytest.raises(ModelError, match="do not divide into patches of 16"):
        create_model("vit_ti16", image_size=40)
    with pytest.raises(ModelError, match=r"32x32 pixels of poolformer_s12, into which images of 48x64 do not divide"):
        Masked(create_model("poolformer_s12", image_size=(48, 64)), **SMALL)
