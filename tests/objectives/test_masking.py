"""Which patches are hidden: exact counts, the published shapes, and nothing random but what is handed in."""

import numpy as np
import pytest
import torch
from torch import Tensor

from isoflop.data import derive_key, uniforms
from isoflop.errors import ConfigError
from isoflop.objectives.masked import SAMPLERS, shuffle, visible_count
from isoflop.objectives.supervised import Uniforms

GRIDS = [(14, 14), (4, 4), (7, 12), (3, 5)]


def drawn(indices: list[int], seed: int = 0) -> Uniforms:
    """The numbers that training would hand in for the samples of these indices."""

    def draw(stream: str, count: int) -> Tensor:
        key = derive_key("objective", seed, stream)
        return torch.from_numpy(uniforms(key, 0, np.array(indices), count).astype(np.float32))

    return draw


def hidden(sampler: str, grid: tuple[int, int], ratio: float, count: int = 32) -> Tensor:
    """Masks (count, rows, columns), True where hidden."""
    visible = visible_count(grid, ratio)
    order = shuffle(sampler, drawn(list(range(count))), grid, visible)
    mask = torch.ones(count, grid[0] * grid[1], dtype=torch.bool)
    return mask.scatter(1, order[:, :visible], False).view(count, *grid)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_every_image_hides_exactly_its_share_and_every_patch_once(
    sampler: str, grid: tuple[int, int], ratio: float
) -> None:
    visible = visible_count(grid, ratio)
    order = shuffle(sampler, drawn(list(range(8))), grid, visible)
    assert torch.equal(order.sort(dim=1).values, torch.arange(grid[0] * grid[1]).expand(8, -1))
    assert (hidden(sampler, grid, ratio).sum(dim=(1, 2)) == grid[0] * grid[1] - visible).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_depends_on_its_sample_and_not_on_its_batch(sampler: str) -> None:
    whole = shuffle(sampler, drawn([5, 6, 7, 8]), (14, 14), 49)
    part = shuffle(sampler, drawn([7, 8]), (14, 14), 49)
    assert torch.equal(whole[2:], part)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(shuffle(sampler, drawn([7, 8], seed=1), (14, 14), 49), part)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_patch_is_spared(sampler: str) -> None:
    """The middle of a picture is in more rectangles than its corners, but no patch is left out."""
    often = hidden(sampler, (8, 8), 0.5, count=2000).float().mean(dim=0)
    least = 0.45 if sampler != "block" else 0.1
    assert often.mean() == pytest.approx(0.5)
    assert often.min() > least


def test_the_grid_keeps_one_patch_of_every_four() -> None:
    count = 16
    seen = ~hidden("grid", (14, 14), 0.75, count)
    cells = seen.view(count, 7, 2, 7, 2).sum(dim=(2, 4))
    assert (cells == 1).all()
    halves = ~hidden("grid", (8, 8), 0.5, count)
    assert not (halves[:, :, 1:] & halves[:, :, :-1]).any(), "a checkerboard has no neighbours"


def test_blocks_are_blocks() -> None:
    """Far more neighbours are hidden together than among patches hidden one by one."""

    def together(sampler: str) -> float:
        mask = hidden(sampler, (14, 14), 0.5, count=200)
        return float((mask[:, 1:] & mask[:, :-1]).float().mean())

    assert together("random") == pytest.approx(0.25, abs=0.02)
    assert together("block") > 0.36


def test_the_count_is_rounded_as_in_the_papers_code() -> None:
    assert visible_count((14, 14), 0.75) == 49
    assert visible_count((16, 16), 0.75) == 64
    assert visible_count((5, 1), 0.6) == 2
    assert visible_count((4, 4), 0.6) == 6


@pytest.mark.parametrize(("ratio", "which"), [(0.95, "visible"), (0.0, "masked")])
def test_a_ratio_that_leaves_nothing_is_refused(ratio: float, which: str) -> None:
    with pytest.raises(ConfigError, match=rf"`objective.ratio` = {ratio:g} leaves no {which} patch of 16 \(4x4\)"):
        visible_count((4, 4), ratio)
