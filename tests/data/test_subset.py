"""A part of a source is a source: what is read, augmented and repeated is what the whole would have given."""

import numpy as np
import torch

from isoflop.data import Subset, batches, open_source


def test_a_part_reads_the_samples_it_names() -> None:
    whole = open_source("digits", split="train", image_size=16)
    part = Subset(whole, np.asarray([5, 3, 11]))
    assert len(part) == 3
    for one, two in zip(part.read(np.asarray([2, 0])), whole.read(np.asarray([11, 5])), strict=True):
        assert torch.equal(one, two)
    assert part.fingerprint not in (whole.fingerprint, Subset(whole, np.asarray([5, 3])).fingerprint)
    assert (part.num_classes, part.mean) == (10, whole.mean)


def test_a_part_can_be_normalised_as_other_data_are() -> None:
    part = Subset(open_source("digits", split="train", image_size=16), moments=((0.5,), (0.25,)))
    assert (part.mean, part.std) == ((0.5,), (0.25,))


def test_batches_of_a_part_are_augmented_and_the_same_for_any_number_of_workers() -> None:
    part = Subset(open_source("digits", split="train", image_size=16), np.arange(40, 60))
    made = [
        list(batches(part, seed=0, batch_size=8, start_step=0, stop_step=5, augment="crop_flip", workers=workers))
        for workers in (0, 1)
    ]
    plain = list(batches(part, seed=0, batch_size=8, start_step=0, stop_step=5))
    assert all(torch.equal(one.images, two.images) for one, two in zip(*made, strict=True))
    assert not torch.equal(made[0][0].images, plain[0].images)
    assert set(np.concatenate([batch.indices for batch in plain]).tolist()) == set(range(20))
