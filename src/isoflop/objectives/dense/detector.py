"""Detection: torchvision's RetinaNet and Mask R-CNN on the maps of any backbone.

torchvision provides anchors, matching, sampling, losses, heads and postprocessing. Our code provides the maps and the
pyramid, batches of one size, anchors that follow the strides, and a loss that is the mean over images, so that it does
not depend on how a batch is divided.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from isoflop.config import DetectConfig
from isoflop.data.dense import unpack_objects
from isoflop.models import Backbone
from isoflop.objectives.dense.maps import LEVELS, Maps, Pyramid, make_maps
from isoflop.objectives.supervised import Objective, Uniforms

Found = dict[str, Tensor]


class Detector(Objective):
    """Finds objects of `num_classes` classes; its loss is the sum of the losses of the head.

    Raises ModelError as `make_maps`.
    """

    def __init__(self, backbone: Backbone, config: DetectConfig, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        freeze_unused(backbone)
        self.maps = make_maps(backbone, taps=False, window=config.window, global_blocks=config.global_blocks)
        first = 1 if config.head == "retinanet" else 0  # RetinaNet leaves the finest map out
        self.neck = Neck(self.maps, config.width, first, is_retina=config.head == "retinanet")
        strides = [self.maps.strides[0] * 2**k for k in range(first, first + 5)]
        self.detector = _retinanet(config, num_classes, strides) if first else _mask_rcnn(config, num_classes, strides)
        self.detector.transform = _Untransformed()

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """See `Objective.forward`; `labels` are packed objects."""
        if images.is_meta:
            return self._counted(images)
        targets = unpack_objects(labels, images.shape[-1])
        pyramid = self._pyramid(images)
        if not isinstance(self.detector, MaskRCNN):  # its loss is that of each image by itself already
            return self._loss(images, targets, pyramid)
        # torchvision means over the candidates of all images, and draws them one image after the other.
        seeds = (uniforms("candidates", 1)[:, 0].double() * 2**32).long().tolist()
        losses = []
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            for k, (target, seed) in enumerate(zip(targets, seeds, strict=True)):
                torch.manual_seed(seed)
                target["labels"] = target["labels"] + 1  # 0 is the background
                own = OrderedDict((name, x[k : k + 1]) for name, x in pyramid.items())
                losses.append(self._loss(images[k : k + 1], [target], own))
        return torch.stack(losses).mean()

    def _loss(self, images: Tensor, targets: list[Found], pyramid: OrderedDict[str, Tensor]) -> Tensor:
        self.detector.backbone.handed = pyramid
        losses: Found = self.detector(list(images), targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """The sum over the images of the loss; the backbone is in the mode that it is in."""
        self.detector.train()  # it has losses in that mode alone, and no layer that the mode changes
        loss = self(images, labels, uniforms)
        self.detector.train(self.training)
        return {"loss": loss.double() * len(images)}

    @torch.no_grad()
    def find(self, images: Tensor) -> list[Found]:
        """What is in each image: `boxes` (n, 4) in its pixels, `scores` (n,) falling, `labels` (n,) from 0 on, and of
        Mask R-CNN `masks` (n, 28, 28), the probabilities within each box."""
        self.detector.eval()
        self.detector.backbone.handed = self._pyramid(images)
        found: list[Found] = self.detector(list(images))
        self.detector.train(self.training)
        if isinstance(self.detector, MaskRCNN):
            found = [{**one, "labels": one["labels"] - 1, "masks": one["masks"][:, 0]} for one in found]
        return found

    def _pyramid(self, images: Tensor) -> OrderedDict[str, Tensor]:
        pyramid = self.neck(self.maps(self.backbone, images))
        return OrderedDict((name, x.float()) for name, x in pyramid.items())

    def _counted(self, images: Tensor) -> Tensor:
        """What is worked out for images on the meta device, where nothing has a place: every layer with the shapes of
        training."""
        pyramid = self.neck(self.maps(self.backbone, images))
        head = self.detector
        if isinstance(head, RetinaNet):
            return torch.stack([x.sum() for x in head.head(list(pyramid.values())).values()]).sum()
        logits, _ = head.rpn.head(list(pyramid.values()))
        width, count = self.config.width, len(images) * self.config.samples
        boxes = head.roi_heads.box_head(images.new_zeros(count, width, 7, 7) + pyramid["0"].sum())
        masks = images.new_zeros(count // 4, width, 14, 14) + pyramid["0"].sum()
        masks = head.roi_heads.mask_predictor(head.roi_heads.mask_head(masks))
        classes, _ = head.roi_heads.box_predictor(boxes)
        total: Tensor = logits[0].sum() + classes.sum() + masks.sum()
        return total


class Neck(nn.Module):
    """The pyramid of one width that heads look at, finest first, named "0", "1", … as torchvision names them.

    Stages get a feature pyramid (arXiv 1612.03144). A plain ViT's maps have all seen the whole network already and need
    no way from top to bottom: each gets a 1×1 and a 3×3 convolution (arXiv 2203.16527, section 3). Mask R-CNN's fifth
    map is the fourth, pooled; RetinaNet's fourth and fifth are convolutions of the backbone's last map, as in its paper
    (arXiv 1708.02002, section 4) and PoolFormer's code.
    """

    def __init__(self, maps: Maps, width: int, first: int, *, is_retina: bool) -> None:
        super().__init__()
        self.first = first
        widths = maps.widths[first:]
        self.coarser: nn.Module = LastLevelMaxPool()
        if is_retina:
            convolutions = LastLevelP6P7(widths[-1], width)
            convolutions.use_P5 = False  # which torchvision concludes from equal widths
            self.coarser = convolutions
        self.pyramid: nn.Module | None = None
        if isinstance(maps, Pyramid):
            self.pyramid = FeaturePyramidNetwork(list(widths), width)
        else:
            self.levels = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(own, width, 1, bias=False),
                    nn.GroupNorm(1, width),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.GroupNorm(1, width),
                )
                for own in widths
            )

    def forward(self, maps: list[Tensor]) -> OrderedDict[str, Tensor]:
        """Five maps (batch, width, rows, columns) of the four of a backbone."""
        names = [str(k) for k in range(LEVELS - self.first)]
        if self.pyramid is not None:
            levels = list(self.pyramid(OrderedDict(zip(names, maps[self.first :], strict=True))).values())
        else:
            levels = [level(x) for level, x in zip(self.levels, maps[self.first :], strict=True)]
        levels, names = self.coarser(levels, maps[self.first :], names)
        return OrderedDict(zip(names, levels, strict=True))


class _Handed(nn.Module):
    """Stands where torchvision expects a backbone, and gives what it was handed: the backbone is the objective's."""

    handed: OrderedDict[str, Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.handed


class _Untransformed(nn.Module):
    """Images are normalised and of one size already, and boxes are wanted in their pixels."""

    def forward(self, images: list[Tensor], targets: list[Found] | None = None) -> tuple[ImageList, list[Found] | None]:
        height, width = images[0].shape[-2:]
        return ImageList(torch.stack(images), [(height, width)] * len(images)), targets

    def postprocess(
        self, result: list[Found], image_shapes: list[tuple[int, int]], original_image_sizes: list[tuple[int, int]]
    ) -> list[Found]:
        return result


def _retinanet(config: DetectConfig, num_classes: int, strides: list[float]) -> RetinaNet:
    cells = config.anchor or 4
    sizes = tuple(tuple(cells * stride * 2 ** (k / 3) for k in range(3)) for stride in strides)
    detector = RetinaNet(
        _Handed(config.width),
        num_classes,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        detections_per_img=config.most_found,
    )
    _begin_as_if_wide(detector.head, config.width)
    return detector


def _mask_rcnn(config: DetectConfig, num_classes: int, strides: list[float]) -> MaskRCNN:
    width, cells = config.width, config.anchor or 8
    detector = MaskRCNN(
        _Handed(width),
        rpn_anchor_generator=AnchorGenerator(
            tuple((cells * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides)
        ),
        box_head=TwoMLPHead(width * 7 * 7, 4 * width),
        box_predictor=FastRCNNPredictor(4 * width, num_classes + 1),
        mask_head=MaskRCNNHeads(width, (width,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes + 1),
        rpn_pre_nms_top_n_train=2 * config.proposals,
        rpn_pre_nms_top_n_test=config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_post_nms_top_n_test=config.proposals,
        box_batch_size_per_image=config.samples,
        box_detections_per_img=config.most_found,
    )
    _begin_as_if_wide(detector.rpn.head, width)
    return detector


@torch.no_grad()
def _begin_as_if_wide(head: nn.Module, width: int) -> None:
    """Scales the convolutions of `head` so that its answers begin as large as those of one of 256 channels.

    torchvision's begin with a deviation of 0.01 whatever their width. Four of them, one after the other, pass on 1 % of
    the signal at 256 channels, and 0.02 % at 32: such a head hardly learns.
    """
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight *= math.sqrt(256 / width)


def freeze_unused(backbone: Backbone) -> None:
    """Has nothing trained of a backbone that only its maps are asked of: its classifier."""
    for parameter in backbone.head.parameters():
        parameter.requires_grad_(False)
