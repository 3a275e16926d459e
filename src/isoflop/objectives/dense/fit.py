"""Whether an objective can learn from what a source has."""

from __future__ import annotations

from isoflop.config import DetectConfig, MaskedConfig, ObjectiveConfig, SegmentConfig
from isoflop.data import Source
from isoflop.data.dense import DenseSource
from isoflop.errors import DataError

_WHAT = {"detect": "objects", "segment": "maps of classes"}
_WHERE = {"detect": "coco:FOLDER or scenes?", "segment": "ade20k:FOLDER or scenes?task=segment"}


def check_fit(config: ObjectiveConfig, source: Source, *, mixes: bool) -> None:
    """Raises DataError where the truth of `source` is not what `config` learns from, or Mixup (`mixes`) is asked for
    where nothing can be mixed."""
    has = source.records.task if isinstance(source, DenseSource) else None
    if isinstance(config, DetectConfig | SegmentConfig):
        if has != config.name:
            told = _WHAT[has] if has else "classes alone"
            raise DataError(
                f"{source.uri}: to {config.name} is learnt from {_WHAT[config.name]} ({_WHERE[config.name]}), "
                f"and these pictures have {told}"
            )
        if mixes:
            raise DataError(f"{source.uri}: Mixup and CutMix mix classes, not {_WHAT[config.name]}")
        if isinstance(config, DetectConfig) and config.head == "mask_rcnn" and not _has_masks(source):
            raise DataError(f"{source.uri}: Mask R-CNN learns from masks: ask for them (`masks=1`), or use RetinaNet")
    elif has and not isinstance(config, MaskedConfig):
        raise DataError(f"{source.uri}: these pictures have {_WHAT[has]}, not a class each: set `objective` to {has}")


def _has_masks(source: Source) -> bool:
    return isinstance(source, DenseSource) and source.records.has_masks
