"""Data: sources of images, sample order, augmentation and batches."""

from isoflop import needs_training  # noqa: F401
from isoflop.data.conversion import Conversion, convert, index_shards
from isoflop.data.inspection import CheckReport, check
from isoflop.data.loader import Batch, Feed, batches, check_augmentation
from isoflop.data.opening import open_source, open_split
from isoflop.data.order import derive_key, locate, uniforms
from isoflop.data.records import Damage, Quarantine
from isoflop.data.source import Source, Split, Subset
from isoflop.data.transforms import AUGMENTATIONS, mix, soft_targets

__all__ = [
    "AUGMENTATIONS",
    "Batch",
    "CheckReport",
    "Conversion",
    "Damage",
    "Feed",
    "Quarantine",
    "Source",
    "Split",
    "Subset",
    "batches",
    "check",
    "check_augmentation",
    "convert",
    "derive_key",
    "index_shards",
    "locate",
    "mix",
    "open_source",
    "open_split",
    "soft_targets",
    "uniforms",
]
