"""Augmentations: the distributions and operations of their papers, each a pure function of its random numbers."""

from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.autoaugment import RandAugment, _apply_op
from torchvision.transforms.functional import InterpolationMode

from isoflop.config import DataConfig
from isoflop.data.dense.canvas import JITTERS
from isoflop.data.mixing import mix, soft_targets
from isoflop.data.randaugment import OPERATIONS, rand_augment
from isoflop.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    after_crop,
    augment_batch,
    centre_box,
    draw_uniforms,
    find_augmentation,
    inception_box,
)
from isoflop.errors import DataError

ZEROS = np.zeros(2000, dtype=np.int64)
U = draw_uniforms(0, ZEROS, np.arange(2000))
IMAGE = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_random_numbers_are_uniform_and_independent() -> None:
    assert stats.kstest(U.ravel(), "uniform").pvalue > 1e-4
    correlations = np.corrcoef(U.T)[np.triu_indices(64, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_inception_crops_have_the_distribution_of_torchvision() -> None:
    torch.manual_seed(0)
    picture = torch.empty(3, 400, 500)
    theirs = np.array(
        [
            v2.RandomResizedCrop(224).make_params([picture])[k]
            for _ in range(2000)
            for k in ("height", "width", "top", "left")
        ]
    )
    ours = np.array(
        [(box.height, box.width, box.top, box.left) for box in (inception_box(400, 500, u[:22]) for u in U)]
    )
    for column, expected in zip(ours.T, theirs.reshape(-1, 4).T, strict=True):
        assert stats.ks_2samp(column, expected).pvalue > 1e-4


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (7, 2000), (224, 224)])
def test_crops_lie_inside_pictures_of_any_shape(height: int, width: int) -> None:
    for u in U[:300]:
        top, left, h, w = inception_box(height, width, u[:22])
        assert top >= 0
        assert left >= 0
        assert h > 0
        assert w > 0
        assert top + h <= height
        assert left + w <= width


def test_evaluation_shows_the_centre() -> None:
    assert centre_box(400, 500, 224) == (25, 75, 350, 350)
    assert centre_box(32, 32, 32) == (0, 0, 32, 32)
    assert centre_box(224, 224, 224) == (14, 14, 196, 196)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: str) -> None:
    """At magnitude 9 of 30, in both directions, up to the rounding of a pixel."""
    theirs = {"shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY"}
    theirs |= {"saturation": "Color", "autocontrast": "AutoContrast"}
    their_name = theirs.get(name, name.capitalize())
    magnitudes, signed = RandAugment()._augmentation_space(31, (32, 32))[their_name]
    magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
    for sign in (1.0, -1.0):
        expected = _apply_op(
            IMAGE, their_name, sign * magnitude if signed else magnitude, InterpolationMode.NEAREST, None
        )
        difference = OPERATIONS[name](IMAGE, 9 / 30, sign).int() - expected.int()
        assert difference.abs().max() <= 1


def test_operations_are_drawn_equally_often() -> None:
    seen = np.bincount((U[:, 24] * len(OPERATIONS)).astype(int), minlength=len(OPERATIONS))
    assert stats.chisquare(seen).pvalue > 1e-4
    changed = sum(not torch.equal(rand_augment(IMAGE, 2, 9.0, u[24:44]), IMAGE) for u in U[:200])
    assert changed > 150


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_is_a_pure_function_of_its_numbers(name: str) -> None:
    augmentation = AUGMENTATIONS[name]
    images = torch.stack([IMAGE, IMAGE.flip(1), 255 - IMAGE])
    whole = augment_batch(augmentation, images, U[:3])
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    torch.manual_seed(123)
    assert torch.equal(augment_batch(augmentation, images[1:2], U[1:2])[0], whole[1])


def test_flips_happen_half_of_the_time() -> None:
    flip = Augmentation(flip=True)
    flipped = sum(torch.equal(after_crop(flip, IMAGE, u), IMAGE.flip(2)) for u in U)
    assert 900 < flipped < 1100


def test_erasing_replaces_a_rectangle_of_the_promised_size() -> None:
    erase = Augmentation(erasing=0.25)
    shares = [float((after_crop(erase, IMAGE, u) != IMAGE).any(dim=0).float().mean()) for u in U]
    erased = [share for share in shares if share > 0]
    assert 400 < len(erased) < 600
    assert min(erased) > 0.01
    assert max(erased) < 0.4


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(DataError, match="unknown augmentation"):
        find_augmentation("autoaugment")


IMAGES = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TARGETS = soft_targets(torch.arange(64) % 10, 10)


def test_the_configuration_knows_every_augmentation() -> None:
    of_boxes_and_masks = tuple(name for name in JITTERS if name not in AUGMENTATIONS)
    assert get_args(DataConfig.model_fields["augment"].annotation) == (*AUGMENTATIONS, *of_boxes_and_masks)


def test_mixup_is_a_weighted_mean_of_a_pair_and_its_targets() -> None:
    images, targets = mix(IMAGES, TARGETS, seed=0, step=3, first=0, cutmix_alpha=0.0)
    for k in range(0, 64, 2):
        label = k % 10
        share = float((targets[k, label] - TARGETS[k + 1, label]) / (TARGETS[k, label] - TARGETS[k + 1, label]))
        expected = share * IMAGES[k] + (1 - share) * IMAGES[k + 1]
        assert torch.allclose(images[k], expected, atol=1e-5)
        assert torch.allclose(images[k + 1], share * IMAGES[k + 1] + (1 - share) * IMAGES[k], atol=1e-5)


def test_cutmix_pastes_a_rectangle_of_the_partner_and_weighs_by_area() -> None:
    images, targets = mix(IMAGES, TARGETS, seed=0, step=3, first=0, mixup_alpha=0.0)
    for k in range(64):
        from_partner = (images[k] != IMAGES[k]).any(dim=0)
        assert torch.equal(images[k][:, from_partner], IMAGES[k ^ 1][:, from_partner])
        rows, columns = torch.where(from_partner)
        if len(rows):
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert int(area) == int(from_partner.sum())
        share = 1 - float(from_partner.float().mean())
        assert torch.allclose(targets[k], share * TARGETS[k] + (1 - share) * TARGETS[k ^ 1], atol=1e-5)


def test_lambda_follows_its_beta_distribution() -> None:
    ones, zeros = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    images = torch.cat([ones, zeros]).repeat(1500, 1, 1, 1)
    mixed, _ = mix(images, torch.zeros(3000, 2), seed=0, step=0, first=0, mixup_alpha=0.8, cutmix_alpha=0.0)
    assert stats.kstest(mixed[::2].flatten().numpy(), stats.beta(0.8, 0.8).cdf).pvalue > 1e-4


def test_mixing_does_not_depend_on_the_number_of_ranks() -> None:
    whole, targets = mix(IMAGES, TARGETS, seed=0, step=5, first=0)
    parts = [mix(IMAGES[a:b], TARGETS[a:b], seed=0, step=5, first=a) for a, b in ((0, 20), (20, 42), (42, 64))]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    assert torch.equal(torch.cat([t for _, t in parts]), targets)
    assert not torch.equal(mix(IMAGES, TARGETS, seed=0, step=6, first=0)[0], whole)


def test_an_image_without_a_partner_stays_as_it_is_and_a_parted_pair_is_refused() -> None:
    images, targets = mix(IMAGES[:5], TARGETS[:5], seed=0, step=0, first=0)
    assert torch.equal(images[4], IMAGES[4])
    assert torch.equal(targets[4], TARGETS[4])
    with pytest.raises(DataError, match="at least two images per rank"):
        mix(IMAGES, TARGETS, seed=0, step=0, first=3)
    with pytest.raises(DataError, match="at least two images per rank"):
        mix(IMAGES[:1], TARGETS[:1], seed=0, step=0, first=0)
