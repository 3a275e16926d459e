"""Augmentations: the distributions and operations of their papers, each a pure function of its random numbers."""

import zlib
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from isoflop.config import DataConfig
from isoflop.data.decode import resize
from isoflop.data.dense.canvas import JITTERS
from isoflop.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    after_crop,
    augment_batch,
    centre_box,
    draw_uniforms,
    erase,
    find_augmentation,
    inception_box,
    interpolation_of,
    mix,
    shift_flip,
    soft_targets,
    stretched_box,
    tensorflow_box,
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


@pytest.mark.parametrize(
    ("smallest", "covered", "mean", "quantiles"),
    [
        (0.05, 0.0, 0.3442, (0.0833, 0.1500, 0.3010, 0.5063, 0.6754)),
        (0.08, 0.1, 0.3881, (0.1388, 0.2089, 0.3544, 0.5395, 0.6875)),
    ],
)
def test_tensorflows_crops_are_as_large_as_tensorflows(
    smallest: float, covered: float, mean: float, quantiles: tuple[float, ...]
) -> None:
    """Areas of 20,000 crops of 375 × 500 by `tf.image.sample_distorted_bounding_box` of TensorFlow 2.21: their mean,
    and their 10, 25, 50, 75 and 90 % quantiles. torchvision's have a mean of 0.43."""
    boxes = np.array([tensorflow_box(375, 500, u[:22], smallest, covered) for u in U])
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 375
    assert (boxes[:, 1] + boxes[:, 3]).max() <= 500
    areas = boxes[:, 2] * boxes[:, 3] / (375 * 500)
    assert areas.mean() == pytest.approx(mean, abs=0.02)
    assert np.quantile(areas, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx(quantiles, abs=0.04)
    ratios = boxes[:, 3] / boxes[:, 2]
    assert ratios.min() > 0.72
    assert ratios.max() < 1.37


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (3, 2), (40, 7), (2000, 5)])
def test_tensorflows_crops_of_odd_pictures_lie_inside(height: int, width: int) -> None:
    for u in U[:200]:
        top, left, h, w = tensorflow_box(height, width, u[:22], 0.05)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h
        assert w


@pytest.mark.parametrize(
    ("interpolation", "theirs", "off"),
    [("bilinear", Image.Resampling.BILINEAR, 1), ("bicubic", Image.Resampling.BICUBIC, 2)],  # of 255: 8-bit weights
)
@pytest.mark.parametrize("size", [32, 224, 500])
def test_resizing_is_pillows(interpolation: str, theirs: Image.Resampling, off: int, size: int) -> None:
    photograph = load_sample_image("china.jpg")[:400, 100:500].copy()
    ours = resize(torch.from_numpy(photograph).permute(2, 0, 1), size, interpolation)
    reference = np.array(Image.fromarray(photograph).resize((size, size), theirs))
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - reference)
    assert difference.max() <= off
    assert difference.mean() < 0.1


def test_random_interpolation_is_either_for_each_picture() -> None:
    bicubic = [interpolation_of(Augmentation(interpolation="random"), u) == "bicubic" for u in U]
    assert 900 < sum(bicubic) < 1100


def test_the_stretched_crop_is_that_of_256_and_224() -> None:
    """Resized to 256 × 256 whatever the aspect ratio, the centre 224 of it (big_vision, evaluators/fewshot)."""
    photograph = Image.fromarray(load_sample_image("flower.jpg"))  # 640 × 427
    top, left, height, width = stretched_box(427, 640, 224)
    ours = resize(torch.from_numpy(np.array(photograph)[top : top + height, left : left + width]).permute(2, 0, 1), 224)
    reference = photograph.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.array(reference)).mean() < 1.5


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


def test_shifts_and_flips_are_torchvisions() -> None:
    images = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for image, shown, (y, x, flip) in zip(images, shift_flip(images, U[:500]), U[:500, :3], strict=True):
        crop = TF.crop(TF.pad(image, [4, 4], padding_mode="reflect"), int(9 * y), int(9 * x), 32, 32)
        assert torch.equal(shown, TF.horizontal_flip(crop) if flip < 0.5 else crop)


def test_erasing_is_torchvisions_of_rectangles_as_in_the_paper() -> None:
    """Zhong et al., arXiv 1708.04896: probability, 2–33 % of the area, sides 0.3 to 3.3, random pixels."""
    images = IMAGE.expand(len(U), -1, -1, -1)
    shown = erase(images, U[:, 44:52], 0.25)
    changed = (shown != images).any(dim=1)
    shares, ratios, noise = [], [], []
    for image, after, mask in zip(images, shown, changed, strict=True):
        if not mask.any():
            assert torch.equal(image, after)
            continue
        rows, columns = (mask.any(dim=d).nonzero() for d in (1, 0))
        y, x = int(rows[0]), int(columns[0])
        h, w = int(rows[-1]) + 1 - y, int(columns[-1]) + 1 - x
        pixels = after[:, y : y + h, x : x + w]
        assert torch.equal(after, TF.erase(image, y, x, h, w, pixels))
        shares.append(h * w / 32**2)
        ratios.append(h / w)
        noise.append(pixels.flatten())
    assert 400 < len(shares) < 600
    assert 0.015 < min(shares) < 0.03
    assert 0.3 < max(shares) < 0.36  # sides are whole pixels, and no longer than the image
    assert 0.2 < min(ratios) < 0.4
    assert 2.8 < max(ratios) < 4.5
    assert stats.chisquare(np.bincount(torch.cat(noise).numpy(), minlength=256)).pvalue > 1e-3
    assert abs(np.corrcoef(torch.cat(noise)[:-1], torch.cat(noise)[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("name", ["crop_flip", "crop_flip_erase", "deit"])
def test_neither_order_nor_size_of_a_batch_matters_to_an_image(name: str) -> None:
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    kept, u = images.clone(), U[:60]
    whole = augment_batch(AUGMENTATIONS[name], images, u)
    order = np.random.default_rng(0).permutation(60)
    assert torch.equal(augment_batch(AUGMENTATIONS[name], images[order], u[order]), whole[order])
    parts = [augment_batch(AUGMENTATIONS[name], images[k : k + 7], u[k : k + 7]) for k in range(0, 60, 7)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(images, kept)


def test_random_pixels_are_the_same_on_any_machine() -> None:
    """A change of them is another run: the change log says so."""
    shown = augment_batch(Augmentation(erasing=1.0), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), U[:2])
    assert zlib.crc32(shown.numpy().tobytes()) == 2751771514


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
