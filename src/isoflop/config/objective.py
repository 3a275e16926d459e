"""Configuration of the objectives: a table for each, identified by its `name`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from isoflop.config.fields import (
    Count,
    Fraction,
    Listed,
    Maybe,
    Natural,
    NonNegative,
    Positive,
    Table,
    Text,
    names_data,
    names_weights,
    problem,
)

# Dense tasks as objectives: where things are in a picture, and what each of its pixels shows.


class DenseTable(Table):
    """What both have in common: how a backbone of one resolution, such as a plain ViT, is made to see details."""

    window: Maybe[Count] = None
    """Side of the attention windows of a plain ViT, in tokens; default global attention in all blocks."""
    global_blocks: Count = 4
    """With `window`: number of blocks with global attention, evenly spaced (arXiv 2203.16527)."""


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
    """Maximum number of detections per image."""
    proposals: Count = 1000
    """Mask R-CNN: proposals per image."""
    samples: Count = 512
    """Mask R-CNN: proposals per image that the second stage is trained on, a quarter of them positive."""


class SegmentConfig(DenseTable):
    """A class for every pixel, on data with maps of classes."""

    name: Literal["segment"]
    """Learn to tell what each pixel shows."""
    head: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    """Semantic FPN (arXiv 1901.02446) or UperNet (arXiv 1807.10221)."""
    width: Maybe[Count] = None
    """Channels of the pyramid; default 256 for Semantic FPN and 512 for UperNet."""
    auxiliary: NonNegative = 0.4
    """UperNet: weight of the loss of the auxiliary classifier on the second-to-last map."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of the channels before the last layer."""


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


class SupervisedConfig(Table):
    """Labels."""

    name: Literal["supervised"] = "supervised"
    """Learn from labels."""
    loss: Maybe[Literal["softmax", "sigmoid"]] = None
    """Softmax for one class per image, or a sigmoid per class; default sigmoid for images with several labels."""
    head_bias: Maybe[float] = None
    """Initial bias of the classifier; default -10 for a sigmoid with one class per image."""


class MaskedConfig(Table):
    """Hidden patches are predicted from visible ones (arXiv 2111.06377)."""

    name: Literal["masked"]
    """Learn by predicting hidden patches."""
    ratio: Maybe[Annotated[float, Field(gt=0, lt=1)]] = None
    """Fraction of masked patches; default 0.75 for plain ViTs and 0.6 for others."""
    sampler: Literal["random", "block", "grid"] = "random"
    """Which patches are masked: random ones, rectangles, or all but a regular lattice."""
    normalise: bool = True
    """Normalise the target pixels of each patch by their mean and deviation."""
    decoder_depth: Count = 8
    """Transformer blocks of the decoder, which is used only in training."""
    decoder_width: Count = 512
    """Width of the decoder, a multiple of 4."""
    decoder_heads: Count = 16
    """Attention heads of the decoder."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.decoder_width % self.decoder_heads:
            raise problem("decoder_heads", f"= {self.decoder_heads} must divide `decoder_width` = {self.decoder_width}")
        if self.decoder_width % 4:
            raise problem("decoder_width", f"= {self.decoder_width} must be a multiple of 4")
        return self


class LeJEPAConfig(Table):
    """Views of an image agree, and the views of all images are spread as a Gaussian (arXiv 2511.08544)."""

    name: Literal["lejepa"]
    """Learn from pairs of views of an image."""
    sigreg_weight: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """λ: weight of SIGReg, the distance to a Gaussian; the distance between views has 1 - λ."""
    views: Annotated[Count, Field(ge=2)] = 4
    """Views of each image; each costs a forward and a backward pass."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest area of a view, as a fraction of the image."""
    color_jitter: Fraction = 0.8
    """Largest relative change of brightness, contrast and saturation; 0 keeps the colours of the image."""
    projector_width: Count = 2048
    """Width of the two hidden layers of the projector, which is used only in training."""
    projection: Count = 16
    """Width of the projections, which the loss compares."""


UnlabelledConfig = MaskedConfig | LeJEPAConfig
"""Objectives that look at no labels, of any kind"""


class DistilledConfig(Table):
    """A trained teacher is imitated (arXiv 2012.12877)."""

    name: Literal["distilled"]
    """Learn from labels and a teacher."""
    teacher: Text = names_weights()
    """Folder of a finished run, or a preset (`nfnet_f0`, `timm:NAME`)."""
    teacher_weights: Maybe[Text] = names_weights(None)
    """Weight file of a preset; `timm:NAME` loads timm's weights by default."""
    kind: Literal["hard", "soft"] = "hard"
    """Learn the teacher's predicted class (hard) or its probabilities (soft)."""
    through: Literal["token", "logits"] = "token"
    """The output that learns from the teacher: a distillation token with its own head, or the logits."""
    share: Fraction = 0.5
    """Weight of the teacher in the loss; the labels have the rest. Default 0.5 for hard and 0.1 for soft distillation
    (section 6 of the paper)."""
    temperature: Positive = 3.0
    """Temperature of soft distillation."""

    @model_validator(mode="before")
    @classmethod
    def _share_of_the_paper(cls, raw: Any) -> Any:
        is_soft = isinstance(raw, dict) and raw.get("kind") == "soft" and "share" not in raw
        return {**raw, "share": 0.1} if is_soft else raw


def _by_name(value: Any) -> Any:
    """A bare name stands for the table with that name and defaults."""
    return {"name": value} if isinstance(value, str) else value


ObjectiveConfig = Annotated[
    SupervisedConfig | MaskedConfig | LeJEPAConfig | DistilledConfig | DetectConfig | SegmentConfig,
    Field(discriminator="name"),
    BeforeValidator(_by_name),
]
