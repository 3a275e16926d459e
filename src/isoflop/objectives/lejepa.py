"""LeJEPA (arXiv 2511.08544): views of an image agree, and the projections of all images are spread as a Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.data import derive_key
from isoflop.models import Backbone
from isoflop.models.saved import Moments
from isoflop.objectives.supervised import Objective, Uniforms

# The mean over a batch, which may be in parts on several processes.


def batch_mean(rows: Tensor, is_divided: bool) -> tuple[Tensor, Tensor]:
    """The mean (...) of `rows` (n, ...) and their number (); of those of all processes where the batch is divided.

    Its gradient is summed over the processes, whose losses `Step` weights by their share of the batch: so the gradient
    is that of the whole batch.
    """
    count = torch.full((), float(len(rows)), device=rows.device)
    if not is_divided:
        return rows.mean(dim=0), count
    dist.all_reduce(count)
    total: Tensor = _SumOfProcesses.apply(rows.sum(dim=0))  # type: ignore[no-untyped-call]
    return total / count, count


class _SumOfProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


# SIGReg: how far projections are from a standard Gaussian.


SLICES = 256
KNOTS, LAST_KNOT = 17, 3.0


def directions(width: int, seed: int, device: torch.device) -> Tensor:
    """`SLICES` random unit vectors as columns (width, SLICES), the same on any device."""
    drawn = torch.randn(width, SLICES, generator=torch.Generator().manual_seed(seed), device="cpu")
    return F.normalize(drawn, dim=0).to(device)


def sigreg(projections: Tensor, along: Tensor, is_divided: bool = False) -> Tensor:
    """The mean statistic of Epps and Pulley of `projections` (n, ..., width) along the columns of `along`.

    That is n·∫|φₙ(t) - φ(t)|²·φ(t) dt with the empirical characteristic function φₙ of the n rows and that of a
    standard Gaussian φ, over -3 … 3 by the trapezoidal rule; the integrand is even, so half of it is computed.
    """
    t = torch.linspace(0, LAST_KNOT, KNOTS, device=projections.device)
    gaussian = torch.exp(-t.square() / 2)
    angles = (projections @ along).float()[..., None] * t
    real, count = batch_mean(angles.cos(), is_divided)
    imaginary, _ = batch_mean(angles.sin(), is_divided)
    distance = (real - gaussian).square() + imaginary.square()
    integral = 2 * torch.trapezoid(distance * gaussian, t, dim=-1)
    return count * integral.mean()


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm with the statistics of the batch, also in evaluation, and of all of it where it is divided.

    Running means lag behind weights that change fast, and SIGReg would measure that.
    """

    is_divided = False

    def __init__(self, width: int) -> None:
        super().__init__(width, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.is_divided):
            return super().forward(x)
        mean, _ = batch_mean(x.float(), True)
        centred = x - mean
        var, _ = batch_mean(centred.square(), True)
        return centred * (var + self.eps).rsqrt() * self.weight + self.bias


# Views: random crops, flips and colours, made where the images are.


ASPECT = math.log(4 / 3)
JITTERED, GREY = 0.8, 0.2  # shares of the views
_NUMBERS = 10  # that a view is made of


def make_views(
    images: Tensor, u: Tensor, smallest_crop: float, color_jitter: float, mean: Tensor, std: Tensor
) -> Tensor:
    """Views (B, V, C, H, W) of normalised `images` (B, C, H, W), of numbers `u` (B, V, 10) in [0, 1).

    A crop of random area, aspect and place, resized bilinearly, and half of them flipped; then, of most of them,
    brightness, contrast and saturation are changed, and some lose their colours. Those of the paper without a change of
    hue, blur and solarisation.
    """
    batch, views = u.shape[:2]
    numbers = u.flatten(0, 1).unbind(dim=1)
    area = smallest_crop + (1 - smallest_crop) * numbers[0]
    aspect = torch.exp((2 * numbers[1] - 1) * ASPECT)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    # Centres in -1 … 1, as grid_sample counts.
    x, y = (2 * numbers[2] - 1) * (1 - width), (2 * numbers[3] - 1) * (1 - height)
    width = torch.where(numbers[4] < 0.5, -width, width)
    columns = width[:, None] * _centres(images.shape[3], u.device) + x[:, None]
    rows = height[:, None] * _centres(images.shape[2], u.device) + y[:, None]
    # Not by affine_grid, whose matrix product is one of half precision under autocast.
    shape = (-1, images.shape[2], images.shape[3])
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], dim=3)
    repeated = images.repeat_interleave(views, dim=0)
    made = F.grid_sample(repeated, grid.to(images.dtype), padding_mode="border", align_corners=False)
    if color_jitter:
        made = (_jittered(made * std + mean, numbers[5:], color_jitter) - mean) / std
    return made.view(batch, views, *images.shape[1:])


def _centres(size: int, device: torch.device) -> Tensor:
    """Of pixels, in -1 … 1."""
    return (2 * torch.arange(size, device=device) + 1) / size - 1


def _jittered(pixels: Tensor, u: tuple[Tensor, ...], most: float) -> Tensor:
    """`pixels` (n, C, H, W) in 0 … 1 with other brightness, contrast and saturation, of five numbers (n,) each."""

    def factor(number: Tensor) -> Tensor:
        change = torch.where(u[0] < JITTERED, (2 * number - 1) * most, 0.0)
        return 1 + change.view(-1, 1, 1, 1).to(pixels.dtype)

    def blended(other: Tensor, share: Tensor) -> Tensor:
        return torch.lerp(other.expand_as(pixels), pixels, share).clamp(0, 1)

    pixels = (pixels * factor(u[1])).clamp(0, 1)
    pixels = blended(_grey(pixels).mean(dim=(2, 3), keepdim=True), factor(u[2]))
    if pixels.shape[1] != 3:
        return pixels
    saturation = torch.where((u[4] < GREY).view(-1, 1, 1, 1), 0.0, factor(u[3]))
    return blended(_grey(pixels), saturation)


def _grey(pixels: Tensor) -> Tensor:
    """The luma (n, 1, H, W) of coloured images; the mean of other channels."""
    if pixels.shape[1] != 3:
        return pixels.mean(dim=1, keepdim=True)
    weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device, dtype=pixels.dtype)
    return (pixels * weights.view(3, 1, 1)).sum(dim=1, keepdim=True)


class LeJEPA(Objective):
    """λ·SIGReg + (1-λ)·the mean squared distance of an image's projections from their mean (arXiv 2511.08544).

    A projection is what a projector, a small MLP with BatchNorm, makes of the backbone's features of a view. SIGReg
    compares the images of a batch, view by view, along directions that are drawn anew in each step. No teacher, no
    stopped gradients.
    """

    is_of_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        sigreg_weight: float = 0.02,
        views: int = 4,
        smallest_crop: float = 0.08,
        color_jitter: float = 0.8,
        projector_width: int = 2048,
        projection: int = 16,
        moments: Moments | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sigreg_weight, self.views = sigreg_weight, views
        self.smallest_crop, self.color_jitter = smallest_crop, color_jitter
        self.moments = moments
        self.projector = nn.Sequential(
            nn.Linear(backbone.num_features, projector_width),
            BatchNorm(projector_width),
            nn.ReLU(),
            nn.Linear(projector_width, projector_width),
            BatchNorm(projector_width),
            nn.ReLU(),
            nn.Linear(projector_width, projection),
        )
        self.is_divided = False
        unused = tuple(f"{name}." for name in backbone.classifier())
        for name, parameter in backbone.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad_(False)

    def divide(self) -> None:
        """From now on, a batch in training is a part of that of all processes."""
        self.is_divided = True
        for module in self.projector:
            if isinstance(module, BatchNorm):
                module.is_divided = True

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """See `Objective.forward`; the labels are not looked at. Directions depend on the seed of the step."""
        distance, spread = self._terms(images, uniforms, torch.initial_seed(), self.is_divided)
        return self._weighted(distance, spread)

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """The loss of the batch times its images (`loss`), and so its terms."""
        distance, spread = self._terms(images, uniforms, 0, False)
        terms = {"loss": self._weighted(distance, spread), "invariance": distance, "sigreg": spread}
        return {name: term.double() * len(images) for name, term in terms.items()}

    def _weighted(self, distance: Tensor, spread: Tensor) -> Tensor:
        return self.sigreg_weight * spread + (1 - self.sigreg_weight) * distance

    def _terms(self, images: Tensor, uniforms: Uniforms, seed: int, is_divided: bool) -> tuple[Tensor, Tensor]:
        """The distance between views, and the distance of the projections from a Gaussian."""
        moments = self.moments or ((0.0,), (1.0,))
        mean, std = (torch.tensor(x, device=images.device).view(-1, 1, 1) for x in moments)
        u = uniforms("views", self.views * _NUMBERS).view(-1, self.views, _NUMBERS)
        views = make_views(images, u, self.smallest_crop, self.color_jitter, mean, std)
        projections = self.projector(self.backbone.features(views.flatten(0, 1))).float()
        projections = projections.unflatten(0, (len(images), self.views))
        distance = (projections - projections.mean(dim=1, keepdim=True)).square().mean()
        along = directions(projections.shape[-1], derive_key("sigreg", seed) >> 1, images.device)
        return distance, sigreg(projections, along, is_divided)
