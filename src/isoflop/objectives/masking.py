"""Which patches of an image are hidden: samplers that are functions of the numbers they are given.

A sampler ranks the patches of every image; the lowest ranks stay visible. So the count is exact, whatever the sampler,
and a batch stays rectangular.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from isoflop.errors import ConfigError
from isoflop.objectives.objective import Uniforms

BLOCKS = 24  # rectangles laid on an image; what they leave uncovered is hidden last
LEAST_AREA = 0.08  # of the image, of a rectangle (16 of 196 patches in arXiv 2106.08254, algorithm 1)
MOST_ASPECT = 1 / 0.3

Grid = tuple[int, int]


def visible_count(grid: Grid, ratio: float) -> int:
    """How many patches of `grid` stay visible when `ratio` of them are hidden, rounded down as in the paper's code.

    Raises ConfigError when none is left of either kind.
    """
    total = grid[0] * grid[1]
    visible = int(total * (1 - ratio) + 1e-9)  # 0.4 · 5 is 2, although 1 - 0.6 is less than 0.4 in binary
    if not 0 < visible < total:
        which = "visible" if visible == 0 else "masked"
        raise ConfigError(
            f"`objective.ratio` = {ratio:g} leaves no {which} patch of {total} ({grid[0]}x{grid[1]}): "
            f"it must be above 0 and at most {1 - 1 / total:.4g}"
        )
    return visible


def random_ranks(uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """Any patches (arXiv 2111.06377): ranks (B, rows · columns)."""
    return uniforms("mask", grid[0] * grid[1])


def block_ranks(uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """Rectangles are hidden, one after another, of random area, aspect and place (BEiT, arXiv 2106.08254, alg. 1).

    The last one is cut at random where the count is reached.
    """
    rows, columns = grid
    total = rows * columns
    numbers = uniforms("mask", 4 * BLOCKS + total)
    area, aspect, top, left = numbers[:, : 4 * BLOCKS].view(-1, BLOCKS, 4).unbind(2)
    least, most = LEAST_AREA * total, max(LEAST_AREA * total, total - visible)
    area = least + (most - least) * area
    aspect = torch.exp((2 * aspect - 1) * math.log(MOST_ASPECT))
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top, left = (top * (rows - height + 1)).floor(), (left * (columns - width + 1)).floor()
    r = torch.arange(rows, device=numbers.device).view(1, 1, rows, 1)
    c = torch.arange(columns, device=numbers.device).view(1, 1, 1, columns)
    top, left, height, width = (x[..., None, None] for x in (top, left, height, width))
    covers = (r >= top) & (r < top + height) & (c >= left) & (c < left + width)
    order = torch.arange(BLOCKS, device=numbers.device).view(1, BLOCKS, 1, 1)
    first = torch.where(covers, order, BLOCKS).amin(dim=1).flatten(1)  # the first rectangle over each patch
    return -(first + numbers[:, 4 * BLOCKS :])


def grid_ranks(uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """A regular lattice stays visible, moved at random: at 0.75, one patch of every 2x2 (arXiv 2111.06377, fig. 6).

    For any ratio, the lattice is that of ordered dithering (Bayer's matrix), whose levels fill up one after another.
    """
    numbers = uniforms("mask", 2)
    levels = _bayer(max(grid)).to(numbers.device)
    side = len(levels)
    moved = (numbers * side).long()
    r = (torch.arange(grid[0], device=numbers.device) + moved[:, :1]) % side
    c = (torch.arange(grid[1], device=numbers.device) + moved[:, 1:]) % side
    return levels[r[:, :, None], c[:, None, :]].flatten(1)


def _bayer(least: int) -> Tensor:
    """Bayer's matrix of a power of two of at least `least`: float levels 0 … side² - 1, each once."""
    levels = torch.zeros(1, 1)
    while len(levels) < least:
        levels = torch.cat(
            [torch.cat([4 * levels, 4 * levels + 2], dim=1), torch.cat([4 * levels + 3, 4 * levels + 1], dim=1)]
        )
    return levels


SAMPLERS: dict[str, Callable[[Uniforms, Grid, int], Tensor]] = {
    "random": random_ranks,
    "block": block_ranks,
    "grid": grid_ranks,
}


def shuffle(sampler: str, uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """The patches of every image, visible ones first: int64 (B, rows · columns), of which `visible` are kept."""
    return SAMPLERS[sampler](uniforms, grid, visible).argsort(dim=1, stable=True)
