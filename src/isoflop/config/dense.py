"""Dense tasks as objectives: where things are in a picture, and what each of its pixels shows."""

from typing import Annotated, Any, Literal

from pydantic import Field

from isoflop.config.fields import Count, Listed, Maybe, Natural, NonNegative, Positive, Table, Text, names_data


class DenseTable(Table):
    """What both have in common: how a backbone of one resolution, such as a plain ViT, is made to see details."""

    window: Maybe[Count] = None
    """Side in tokens of the windows in which a plain ViT attends; all blocks are global when left out."""
    global_blocks: Count = 4
    """With `window`: blocks, evenly spaced, that attend to everything all the same (arXiv 2203.16527)."""


class DetectConfig(DenseTable):
    """Boxes, with `mask_rcnn` masks too, on data with objects."""

    name: Literal["detect"]
    """Learn to find objects."""
    head: Literal["retinanet", "mask_rcnn"] = "retinanet"
    """RetinaNet (arXiv 1708.02002) or Mask R-CNN (arXiv 1703.06870) on a feature pyramid."""
    width: Count = 256
    """Channels of the pyramid and of the heads' convolutions."""
    anchor: Maybe[Positive] = None
    """Side of the smallest anchors, in cells of the map that they are on: 4 in RetinaNet and 8 in Mask R-CNN when left
    out. Objects half as large want it half as large."""
    most_found: Count = 100
    """Objects reported for an image at most."""
    proposals: Count = 1000
    """Of Mask R-CNN: candidates for an image that its second stage looks at."""
    samples: Count = 512
    """Of Mask R-CNN: those of them that its second stage learns from, a quarter of them objects."""


class SegmentConfig(DenseTable):
    """A class for every pixel, on data with maps of classes."""

    name: Literal["segment"]
    """Learn to tell what each pixel shows."""
    head: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    """Semantic FPN (arXiv 1901.02446) or UperNet (arXiv 1807.10221)."""
    width: Maybe[Count] = None
    """Channels of the pyramid; 256 for Semantic FPN and 512 for UperNet when left out."""
    auxiliary: NonNegative = 0.4
    """Of UperNet: weight of the loss of a second classifier, on the map before the last."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of the channels before the last layer."""


class DenseTransferConfig(Table):
    """How a backbone is judged by detection or segmentation."""

    protocol: Literal["detect", "segment"]
    """Boxes and masks, or a class for every pixel."""
    dataset: Text = names_data()
    """`coco:FOLDER`, `ade20k:FOLDER` or `scenes`, as in `data.source`."""
    head: Maybe[Literal["retinanet", "mask_rcnn", "semantic_fpn", "upernet"]] = None
    """RetinaNet and Semantic FPN when left out."""
    seeds: Annotated[tuple[Natural, ...], Listed, Field(min_length=1)] = (0, 1, 2)
    """Each starts the head and orders the data in another way."""
    heldout: Count = 16
    """Training images on which the loss is watched."""
    run: dict[str, Any] = Field(default={})
    """Keys of a run that replace those of the short schedule (`run.steps`, `run.optim.learning_rate`)."""
