"""What is seen inside a model, against implementations that are slow and obvious, and against timm's own."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.errors import ModelError
from isoflop.models import create_model
from isoflop.report.inspection.attention import (
    attention_distance,
    attention_layers,
    attention_rollout,
    attention_weights,
    feature_components,
    filter_components,
    first_filters,
    position_similarity,
    rollout_maps,
)
from isoflop.report.inspection.model import inspect_model
from isoflop.report.inspection.pictures import mosaic


@pytest.fixture(scope="module")
def ours() -> Any:
    """A small ViT in float64 with a class token, on a grid that is not square."""
    model = create_model(
        "vit_ti16", num_classes=10, image_size=(48, 64), seed=1, depths=(3,), prefix_tokens=1, pool="token"
    )
    return sharpened(model).double()


@pytest.fixture(scope="module")
def timms() -> Any:
    torch.manual_seed(0)
    model = create_model("timm:vit_tiny_patch16_224", num_classes=10, image_size=64, depth=3)
    return sharpened(model)


def sharpened(model: Any) -> Any:
    """Untrained attention is all but even; with larger queries and keys there is something to see."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter *= 6
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_our_attention_weights_give_the_output_of_the_layer(ours: Any, images: torch.Tensor) -> None:
    """A query at a time, a head at a time, in float64."""
    images = images[..., :48, :].double()
    outputs: dict[str, Any] = {}
    layer = attention_layers(ours)[1]
    hook = layer.module.register_forward_hook(lambda m, a, out: outputs.update(x=a[0], out=out))
    with torch.no_grad():
        ours(images)
    hook.remove()
    weights = attention_weights(ours, images)[1]
    x, module = outputs["x"], layer.module
    width = x.shape[-1] // layer.heads
    expected = torch.zeros_like(x)
    for b in range(len(x)):
        for h in range(layer.heads):
            columns = slice(h * width, (h + 1) * width)
            qkv = module.qkv(x[b])
            q, k, v = (qkv[:, i * x.shape[-1] : (i + 1) * x.shape[-1]][:, columns] for i in range(3))
            for t in range(x.shape[1]):
                scores = torch.stack([q[t] @ k[s] / math.sqrt(width) for s in range(x.shape[1])]).detach()
                share = scores.softmax(0)
                np.testing.assert_allclose(weights[b, h, t].numpy(), share.numpy(), atol=1e-12)
                expected[b, t, columns] = share @ v
    np.testing.assert_allclose(module.proj(expected).detach().numpy(), outputs["out"].numpy(), atol=1e-12)


def test_timms_attention_weights_are_timms_own(timms: Any, images: torch.Tensor) -> None:
    """timm hands its unfused weights to a dropout layer, where they can be overheard."""
    heard: list[torch.Tensor] = []
    layers = attention_layers(timms)
    for layer in layers:
        layer.module.fused_attn = False
    hooks = [layer.module.attn_drop.register_forward_hook(lambda m, a, out: heard.append(out)) for layer in layers]
    with torch.no_grad():
        timms(images)
    for hook in hooks:
        hook.remove()
    found = attention_weights(timms, images)
    assert len(found) == len(heard) == 3
    for a, b in zip(found, heard, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_attention_distance_is_the_mean_over_queries_and_keys_of_the_way_between_them(
    ours: Any, images: torch.Tensor
) -> None:
    images = images[..., :48, :].double()
    layer, weights = attention_layers(ours)[0], attention_weights(ours, images)[0]
    rows, columns = layer.grid
    assert (rows, columns, layer.prefix) == (3, 4, 1)
    expected = np.zeros(layer.heads)
    for head in range(layer.heads):
        ways = []
        for b in range(len(images)):
            for query in range(rows * columns):
                total = way = 0.0
                for key in range(rows * columns):
                    w = float(weights[b, head, 1 + query, 1 + key])
                    dy, dx = query // columns - key // columns, query % columns - key % columns
                    total, way = total + w, way + w * 16 * math.hypot(dy, dx)
                ways.append(way / total)
        expected[head] = np.mean(ways)
    np.testing.assert_allclose(attention_distance(weights, layer), expected, rtol=1e-12)


def test_rollout_follows_attention_through_the_layers(timms: Any, images: torch.Tensor) -> None:
    weights = attention_weights(timms, images)
    n = weights[0].shape[-1]
    expected = np.stack([np.eye(n)] * len(images))
    for layer in weights:
        for b in range(len(images)):
            step = np.array([[sum(float(layer[b, h, i, j]) for h in range(3)) / 3 for j in range(n)] for i in range(n)])
            expected[b] = (0.5 * step + 0.5 * np.eye(n)) @ expected[b]
    rollout = attention_rollout(weights)
    np.testing.assert_allclose(rollout.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(rollout.sum(-1).numpy(), 1, atol=1e-6)
    maps = rollout_maps(rollout, attention_layers(timms)[-1])
    assert maps.shape == (2, 4, 4)
    np.testing.assert_allclose(maps[0].ravel(), expected[0, 0, 1:] / expected[0, 0, 1:].sum(), atol=1e-6)


def test_fixed_positions_are_most_like_their_neighbours() -> None:
    model = create_model("vit_ti16", num_classes=10, image_size=64, positions="sincos", seed=0)
    similarity = position_similarity(model)
    assert similarity.shape == (4, 4, 4, 4)
    np.testing.assert_allclose(np.einsum("ijij->ij", similarity), 1, atol=1e-6)
    assert similarity[0, 0, 0, 1] > similarity[0, 0, 0, 2] > similarity[0, 0, 3, 3]


def test_timms_positions_leave_the_class_token_out(timms: Any) -> None:
    table = timms.model.pos_embed[0].detach().double().numpy()
    a, b = table[1 + 2], table[1 + 4 * 3 + 1]
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert position_similarity(timms)[0, 2, 3, 1] == pytest.approx(expected, abs=1e-6)


def test_components_are_those_of_scikit_learn(ours: Any, images: torch.Tensor) -> None:
    from sklearn.decomposition import PCA

    filters = first_filters(ours)
    assert filters.shape == (192, 16, 16, 3)
    components, share = filter_components(filters, 5)
    pca = PCA(5, svd_solver="full").fit(filters.reshape(192, -1))
    np.testing.assert_allclose(share, pca.explained_variance_ratio_, rtol=1e-6)
    cosine = (components.reshape(5, -1) * pca.components_).sum(1)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-6)

    images = images[..., :48, :].double()
    projected, share = feature_components(ours, images)
    assert projected.shape == (2, 3, 4, 3)
    cells = ours.feature_maps(images)[-1].detach().permute(0, 2, 3, 1).reshape(24, -1).double().numpy()
    pca = PCA(3, svd_solver="full").fit(cells)
    np.testing.assert_allclose(np.abs(projected.reshape(24, 3)), np.abs(pca.transform(cells)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("vit_ti16", set()),
        ("timm:vit_tiny_patch16_224", set()),
        ("poolformer_s12", {"position_similarity", "attention_distance", "attention_rollout"}),
        ("timm:resnet18", {"position_similarity", "attention_distance", "attention_rollout"}),
    ],
)
def test_a_model_is_opened_up_into_a_folder(name: str, skipped: set[str], images: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    model = create_model(name, num_classes=10, image_size=64)
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = inspect_model(model, images, tmp_path / "inside")
    assert set(found["skipped"]) == skipped
    assert json.loads((tmp_path / "inside" / "inspect.json").read_text()) == found
    for part in found.values():
        if isinstance(part, dict) and "picture" in part:
            picture = tmp_path / "inside" / part["picture"]
            assert picture.suffix == ".svg" or min(Image.open(picture).size) > 50
    assert model.training, "the model is left as it was"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_weights_that_are_not_finite_are_told_in_one_line(images: torch.Tensor, tmp_path: Path) -> None:
    model = create_model("vit_ti16", num_classes=2, image_size=64)
    with torch.no_grad():
        model.head.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"1 of the model's weights are not finite numbers \(head.weight\)"):
        inspect_model(model, images, tmp_path)


def test_a_model_without_attention_says_so(images: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="no attention"):
        attention_weights(create_model("poolformer_s12", num_classes=2, image_size=64), images)


def test_a_mosaic_has_every_picture_once() -> None:
    tiles = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 3, 3, 3), dtype=np.uint8)
    sheet = mosaic(tiles, 2, margin=1)
    assert sheet.shape == (13, 9, 3)
    assert [int((sheet == i).sum()) for i in range(5)] == [27] * 5
