"""Hand-written gradients are the gradients, and the folded pooling block is the unfolded one."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import isoflop
from isoflop.models import create_model, operators
from isoflop.models.bit import GroupNormReLU
from isoflop.models.layers import StarReLU, _StarReLU
from isoflop.models.mixers import Pooling, Site
from isoflop.models.operators import (
    WORTHWHILE,
    GroupNorm,
    _Narrow,
    attention,
    group_norm_relu,
    linear,
    pool_residual,
    writes_attention_out,
    written_out_attention,
)
from isoflop.models.standardised import FLOOR, _Standardise


def doubles(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return values.requires_grad_()


@pytest.mark.parametrize("size", [3, 5])
def test_the_folded_pooling_block_has_its_own_gradient(size: int) -> None:
    keep = torch.tensor([0.0, 2.0], dtype=torch.float64).view(2, 1, 1, 1)
    assert torch.autograd.gradcheck(
        lambda x, gain, bias: pool_residual(x, gain, bias, keep, size, 1e-5),
        (doubles(2, 4, 5, 3), doubles(3, seed=1), doubles(3, seed=2)),
    )


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_folding_pooling_into_the_block_changes_nothing(size: int) -> None:
    norm = GroupNorm(6, 1).double()
    with torch.no_grad():
        norm.weight.copy_(doubles(6, seed=1))
        norm.bias.copy_(doubles(6, seed=2))  # cancels in the folded form
    x = doubles(2, 7, 9, 6)
    plain = x + 0.3 * Pooling(Site(6, (7, 9), pool_size=size))(norm(x))
    ones = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(pool_residual(x, 0.3 * norm.weight, norm.bias, ones, size, norm.eps), plain)


@pytest.mark.parametrize("scale", [1.0, 1e-4], ids=["above the floor", "below the floor"])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_weight_standardisation_has_its_own_gradient(scale: float, eps: float) -> None:
    inputs = (doubles(5, 9, scale=scale), doubles(5, 1, seed=1))
    assert torch.autograd.gradcheck(lambda w, g: _Standardise.apply(w, g, eps, FLOOR), inputs, eps=1e-6 * scale)


def test_star_relu_has_its_own_gradient_and_value() -> None:
    inputs = (doubles(4, 6), doubles(1, seed=1), doubles(1, seed=2))
    assert torch.autograd.gradcheck(_StarReLU.apply, inputs)
    x = torch.randn(3, 4)
    torch.testing.assert_close(StarReLU()(x), F.relu(x) ** 2)


def test_group_norm_is_pytorch_group_norm() -> None:
    norm, x = GroupNorm(12, 3), torch.randn(2, 4, 5, 12)
    expected = F.group_norm(x.movedim(-1, 1), 3, norm.weight, norm.bias).movedim(1, -1)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x.flatten(1, 2)), expected.flatten(1, 2))


def test_group_norm_with_relu_has_its_own_gradient() -> None:
    inputs = (doubles(2, 3, 4, 6), doubles(6, seed=1), doubles(6, seed=2))
    assert torch.autograd.gradcheck(lambda x, w, b: _Narrow.apply(x, w, b, 3, 1e-5), inputs)


@pytest.mark.parametrize("width", [64, 512], ids=["narrow groups", "wide groups"])
def test_group_norm_with_relu_is_pytorch_s_in_training_and_inference(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    norm, x = GroupNormReLU(width), torch.randn(2, 9, 7, width, generator=generator).requires_grad_()
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    wanted, grad = [x, norm.weight, norm.bias], torch.randn(x.shape, generator=generator)
    ours = norm(x)
    theirs = F.group_norm(x.movedim(-1, 1), 32, norm.weight, norm.bias).relu().movedim(1, -1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, wanted, grad), torch.autograd.grad(theirs, wanted, grad))
    with torch.no_grad():
        torch.testing.assert_close(norm(x), theirs)


def test_group_norm_with_relu_in_bfloat16_errs_no_more_than_pytorch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(2, 28, 28, 64, generator=generator)
    weight, bias = torch.randn(2, 64, generator=generator)
    grad = torch.randn(x.shape, generator=generator)

    def gradients(fused: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(dtype, copy=True), weight.to(torch.promote_types(dtype, torch.float32), copy=True), bias.clone()]
        inputs = [leaf.requires_grad_() for leaf in leaves]
        inputs[2] = inputs[2].to(inputs[1].dtype)
        if fused:
            out = group_norm_relu(*inputs, 32, 1e-5)
        else:
            out = F.group_norm(inputs[0].movedim(-1, 1), 32, *inputs[1:], 1e-5).relu().movedim(1, -1)
        return [out.detach().double(), *(g.double() for g in torch.autograd.grad(out, inputs, grad.to(dtype)))]

    exact = gradients(False, torch.float64)
    ours, theirs = (
        [(a - b).norm() / b.norm() for a, b in zip(gradients(fused, torch.bfloat16), exact, strict=True)]
        for fused in (True, False)
    )
    for mine, peer in zip(ours, theirs, strict=True):
        assert mine < max(1.5 * peer, 0.01)


@pytest.mark.parametrize("name", ["vit_ti16", "poolformer_s12", "nfnet_w16d2", "resnet_w16d14"])
def test_bfloat16_follows_float32(name: str) -> None:
    model = create_model(name, image_size=64, num_classes=5, seed=0).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        full = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x).float()
    assert ((half - full).norm() / full.norm()).item() < 0.05


@pytest.mark.parametrize("bias", [True, False])
def test_the_detour_of_linear_maps_leads_to_the_same_place(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 640, 128, generator=generator).requires_grad_()
    weight = torch.randn(256, 128, generator=generator).requires_grad_()
    inputs = (x, weight, torch.randn(256, generator=generator).requires_grad_() if bias else None)
    assert x.numel() * weight.shape[0] >= WORTHWHILE
    wanted = [tensor for tensor in inputs if tensor is not None]
    grad = torch.randn(2, 640, 256, generator=generator)
    ours, theirs = linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for one, two in zip(
        torch.autograd.grad(ours, wanted, grad), torch.autograd.grad(theirs, wanted, grad), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["vit_w16d2p8", "poolformer_w16d4p4", "nfnet_w16d2", "bit_r50x1", "convformer_s18"])
def test_a_gpu_gives_the_logits_and_gradients_of_a_cpu(name: str) -> None:
    results = []
    for device in ("cpu", "cuda"):
        model = create_model(name, image_size=32, num_classes=4, seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # heads and gains that start at zero would hide what is behind them
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        model = model.to(device).eval()
        logits = model(torch.randn(2, 3, 32, 32, generator=generator).to(device))
        logits.square().mean().backward()
        results.append([logits.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=2e-3 * one.abs().max().item())


def heads(tokens: int, seed: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(3, tokens, 2, 8, generator=torch.Generator().manual_seed(seed))
    return values.to(kind).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize(("queries", "tokens"), [(7, 7), (1, 9), (40, 40), (5, 50)])
def test_attention_written_out_is_pytorch_attention(
    monkeypatch: pytest.MonkeyPatch, queries: int, tokens: int, hides: bool
) -> None:
    """Short and long sequences, the long ones in chunks of one image and of two."""
    monkeypatch.setattr(operators, "CHUNK_BYTES", 2 * 2 * queries * tokens * 4)
    q, k, v = heads(queries, 1), heads(tokens, 2), heads(tokens, 3)
    mask = torch.rand(3, 1, 1, tokens) > 0.3 if hides else None
    found, expected = written_out_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradient = torch.randn(expected.shape)
    pairs = (torch.autograd.grad(out, (q, k, v), gradient) for out in (found, expected))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6)


def test_attention_written_out_in_bfloat16_is_within_its_rounding_and_repeats_its_bits() -> None:
    for tokens in (16, 100):
        q, k, v = (heads(tokens, seed, torch.bfloat16) for seed in (1, 2, 3))
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
        ours = (written_out_attention(q, k, v).double() - exact).abs().max()
        assert ours < 2**-7 * v.abs().max()  # weights, scores and result are rounded to 8 bits each
        twice = [written_out_attention(q, k, v), written_out_attention(q, k, v)]
        gradients = [torch.autograd.grad(out.float().square().sum(), (q, k, v)) for out in twice]
        assert torch.equal(*twice)  # and so are resumed runs
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_long_sequences_do_not_keep_their_attention_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CHUNK_BYTES", 1)
    for tokens, keeps in ((32, True), (64, False)):
        q, k, v = heads(tokens, 1), heads(tokens, 2), heads(tokens, 3)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            written_out_attention(q, k, v)
        assert (max(sizes, default=0) >= tokens * tokens) == keeps


def test_attention_is_written_out_in_bfloat16_on_processors_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    monkeypatch.setattr(operators, "cpu_has_bfloat16", lambda: True)
    assert writes_attention_out(x.bfloat16())
    assert not writes_attention_out(x)
    assert not writes_attention_out(x.bfloat16().to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert writes_attention_out(x)
        q, k, v = heads(9, 1), heads(9, 2), heads(9, 3)
        assert attention(q, k, v).dtype == torch.bfloat16
    monkeypatch.setattr(operators, "cpu_has_bfloat16", lambda: False)
    assert not writes_attention_out(x.bfloat16())


def test_all_attention_goes_through_one_function() -> None:
    files = Path(isoflop.__file__).parent.rglob("*.py")
    assert [file.name for file in files if "scaled_dot_product" in file.read_text()] == ["operators.py"]
