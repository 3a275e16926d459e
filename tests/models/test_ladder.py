"""The ladders: small models from 2e5 to 1e9 FLOPs an image that a study can compare at equal compute."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from isoflop.errors import ModelError
from isoflop.models import cost, create_model, family_ladder

FAMILIES = ("vit", "poolformer", "nfnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ladder_spans_its_range_in_steps_of_at_most_two(family: str) -> None:
    flops = [cost(name, image_size=32).flops for name in family_ladder(family)]
    assert flops == sorted(flops)
    assert flops[0] < 3e5
    assert flops[-1] > 7e8
    assert max(b / a for a, b in itertools.pairwise(flops)) <= 2.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image_size", [32, 64, (32, 64)])
def test_a_small_model_learns_to_tell_four_images_apart(family: str, image_size: int | tuple[int, int]) -> None:
    model = create_model(family_ladder(family)[8], num_classes=4, image_size=image_size, in_channels=1, seed=0)
    images = torch.randn(4, 1, *model.image_size, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), torch.arange(4))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_fixes_the_weights_and_leaves_the_global_randomness_alone(family: str) -> None:
    name = family_ladder(family)[0]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = create_model(name, image_size=32, seed=7).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again = create_model(name, image_size=32, seed=7).state_dict()
    other = create_model(name, image_size=32, seed=8).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_an_unknown_ladder_is_refused() -> None:
    with pytest.raises(ModelError, match="vit, poolformer, nfnet"):
        family_ladder("vitt")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rung", [0, 1, 2])
def test_even_the_smallest_rungs_learn_digits(family: str, rung: int) -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:256], dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=4, mode="bilinear")
    labels = torch.tensor(digits.target[:256])
    model = create_model(family_ladder(family)[rung], num_classes=10, image_size=32, in_channels=1, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for step in range(60):
        batch = slice(64 * (step % 4), 64 * (step % 4 + 1))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) / 4 < 0.8 * sum(losses[:4]) / 4
