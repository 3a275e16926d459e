"""What a backbone is trained for: a table for each objective, told apart by its `name`."""

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


class SupervisedConfig(Table):
    """Labels."""

    name: Literal["supervised"] = "supervised"
    """Learn from labels."""
    loss: Maybe[Literal["softmax", "sigmoid"]] = None
    """Over the classes, of which an image has one, or for each class; sigmoid for several labels when left out."""
    head_bias: Maybe[float] = None
    """Where the classifier's bias starts; -10 with a sigmoid over classes of which an image has one."""


class MaskedConfig(Table):
    """Hidden patches are predicted from visible ones (arXiv 2111.06377)."""

    name: Literal["masked"]
    """Learn by predicting hidden patches."""
    ratio: Maybe[Annotated[float, Field(gt=0, lt=1)]] = None
    """Share of the patches that are hidden; 0.75 for plain ViTs and 0.6 for the others when left out."""
    sampler: Literal["random", "block", "grid"] = "random"
    """Which patches are hidden: any, rectangles of them, or all but a regular lattice."""
    normalise: bool = True
    """Predict each patch's pixels with its own mean and deviation taken out, and not the pixels themselves."""
    decoder_depth: Count = 8
    """Transformer blocks of the decoder, which is thrown away after training."""
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


class DistilledConfig(Table):
    """A trained teacher is imitated (arXiv 2012.12877)."""

    name: Literal["distilled"]
    """Learn from labels and a teacher."""
    teacher: Text = names_weights()
    """Folder of a finished run, or a preset (`nfnet_f0`, `timm:NAME`)."""
    teacher_weights: Maybe[Text] = names_weights(None)
    """Weight file of a preset; `timm:NAME` loads timm's own when left out."""
    kind: Literal["hard", "soft"] = "hard"
    """Imitate the teacher's answers, or its probabilities."""
    through: Literal["token", "logits"] = "token"
    """What imitates: a distillation token with a head of its own, or the same logits that learn the labels."""
    share: Fraction = 0.5
    """Weight of the teacher in the loss; the labels have the rest. Left out, 0.5 for hard and 0.1 for soft imitation
    (section 6 of the paper)."""
    temperature: Positive = 3.0
    """Softens both sides of a soft imitation."""

    @model_validator(mode="before")
    @classmethod
    def _share_of_the_paper(cls, raw: Any) -> Any:
        is_soft = isinstance(raw, dict) and raw.get("kind") == "soft" and "share" not in raw
        return {**raw, "share": 0.1} if is_soft else raw


def _by_name(value: Any) -> Any:
    """A bare name stands for the table with that name and defaults."""
    return {"name": value} if isinstance(value, str) else value


ObjectiveConfig = Annotated[
    SupervisedConfig | MaskedConfig | DistilledConfig | DetectConfig | SegmentConfig,
    Field(discriminator="name"),
    BeforeValidator(_by_name),
]
