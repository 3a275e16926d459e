"""RandAugment does to a picture what timm and the TensorFlow code of the authors do."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from sklearn.datasets import load_sample_image
from timm.data import auto_augment as theirs

from isoflop.data.randaugment import DRAWS, GOOGLE, TIMM, Draw, apply, draw, parse_policy, rand_augment
from isoflop.errors import DataError

GOOGLE_RESULTS = Path(__file__).with_name("google_randaugment.npz")
"""What the operations of big_vision's pp/archive/autoaugment.py made of a photograph of 24 px (`image`), by
`NAME|magnitude|sign`: TensorFlow 2.21, tensorflow_addons' transforms by ImageProjectiveTransformV3, the threshold of
Solarize taken modulo 256, as TensorFlow does when it makes an 8-bit number of it."""
DEIT = "rand-m9-mstd0.5-inc1"
HPARAMS = {"img_mean": (124, 116, 104), "translate_const": 100, "interpolation": Image.Resampling.BICUBIC}


def photographs() -> list[Image.Image]:
    """Crops of the two photographs that scikit-learn comes with."""
    found = []
    for name, box in (
        ("china.jpg", (0, 0, 400, 400)),
        ("flower.jpg", (200, 20, 580, 400)),
        ("china.jpg", (300, 150, 420, 270)),
    ):
        found.append(Image.fromarray(load_sample_image(name)).crop(box).resize((64, 64), Image.Resampling.BICUBIC))
    return found


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def timms(name: str, picture: Image.Image, magnitude: float, sign: float) -> Image.Image:
    """The operation of timm's at this magnitude; `sign` is what its coin says."""
    operation = theirs.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=HPARAMS)
    coin, random.random = random.random, lambda: 0.25 if sign > 0 else 0.75  # type: ignore[assignment]
    try:
        out: Image.Image = operation(picture)
    finally:
        random.random = coin  # type: ignore[assignment]
    return out


@pytest.mark.parametrize("name", TIMM)
def test_an_operation_does_what_timms_does(name: str) -> None:
    for picture in photographs():
        for magnitude in (0.0, 2.5, 5.0, 7.3, 9.0, 10.0):
            for sign in (1.0, -1.0):
                ours = apply(as_tensor(picture), [Draw(name, magnitude, sign)], "rand").int()
                if (name, magnitude) in (("Posterize", 0.0), ("PosterizeIncreasing", 10.0)):
                    assert not ours.any()  # no bits are left: black, which newer versions of Pillow refuse
                    continue
                reference = as_tensor(timms(name, picture, magnitude, sign)).int()
                assert (ours - reference).abs().float().mean() <= 1.0, (magnitude, sign)
                assert torch.equal(ours, reference), (magnitude, sign)


@pytest.mark.parametrize("name", [name for name in GOOGLE if name != "Cutout"])
def test_an_operation_does_what_the_tensorflow_code_does(name: str) -> None:
    stored = np.load(GOOGLE_RESULTS)
    keys = [key for key in stored.files if key.split("|")[0] == name]
    assert len(keys) >= 3
    for key in keys:
        _, magnitude, sign = key.split("|")
        ours = apply(
            torch.from_numpy(stored["image"]).permute(2, 0, 1), [Draw(name, float(magnitude), float(sign))], "google"
        )
        difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - stored[key])
        assert difference.mean() <= (0.01 if name == "Sharpness" else 0.0), (key, difference.mean())  # a float32's bit


def test_cutout_greys_a_square_around_its_place() -> None:
    image = torch.zeros(3, 200, 200, dtype=torch.uint8)
    cut = apply(image, [Draw("Cutout", 10.0, place=(0.5, 0.1))], "google")
    assert bool((cut[:, 60:140, 0:60] == 128).all())
    assert int((cut[0] == 128).sum()) == 80 * 60


def test_what_is_drawn_is_distributed_as_timms() -> None:
    policy = parse_policy(DEIT)
    numbers = np.random.default_rng(0).random((20_000, 2 * DRAWS))
    ours = [draw(policy, row) for row in numbers]
    reference = theirs.rand_augment_transform(DEIT, dict(HPARAMS))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that timm draws from
    told: list[list[tuple[str, float]]] = []
    for operation in reference.ops:

        def noted(magnitude: float, hparams: Any, name: str = operation.name) -> tuple[()]:
            told[-1].append((name, magnitude))
            return ()

        operation.level_fn, operation.aug_fn = noted, lambda image, **_: image
    for _ in range(20_000):
        told.append([])
        reference(None)
    counts = [Counter(len(found) for found in every) for every in (ours, told)]
    assert all(abs(counts[0][k] - counts[1][k]) < 5 * 20_000**0.5 * 0.5 for k in range(3)), counts
    mine, other = [one.magnitude for found in ours for one in found], [m for found in told for _, m in found]
    assert ks_2samp(mine, other).pvalue > 0.001
    names = Counter(one.name for found in ours for one in found)
    assert set(names) == {operation.name for operation in reference.ops}
    assert chisquare(list(names.values())).pvalue > 0.001
    assert abs(np.mean([one.sign for found in ours for one in found])) < 0.03


def test_deit_rotates_by_27_degrees_and_not_by_9() -> None:
    picture = photographs()[0]
    ours = apply(as_tensor(picture), [Draw("Rotate", 9.0)], "rand")
    turned = picture.rotate(27, resample=Image.Resampling.BICUBIC, fillcolor=(124, 116, 104))
    assert torch.equal(ours, as_tensor(turned))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("text", [DEIT, "google-n4-m5"])
def test_pictures_of_any_number_of_channels_keep_their_shape(channels: int, text: str) -> None:
    generator = np.random.default_rng(channels)
    policy = parse_policy(text)
    for _ in range(20):
        image = torch.from_numpy(generator.integers(0, 256, (channels, 8, 8), dtype=np.uint8))
        out = rand_augment(image, policy, generator.random(4 * DRAWS), "random")
        assert (out.shape, out.dtype) == (image.shape, torch.uint8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randaugment", "must start with `rand-`"),
        ("rand-m9-mst0.5", "`mst0.5` is not one of m, n, p, mstd, mmax, inc followed by a number"),
        ("google-m9-inc1", "`inc1` is not one of m, n followed"),
        ("rand-n5", "1 to 4 operations, not 5"),
        ("rand-m90", "a magnitude is at most 20"),
    ],
)
def test_a_policy_that_cannot_be_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)
