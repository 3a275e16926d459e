"""Data for detection and segmentation: pictures with boxes, masks or maps of classes."""

from isoflop.data.dense.coco import CocoRecords
from isoflop.data.dense.folders import MapRecords
from isoflop.data.dense.objects import Objects, pack_objects, unpack_objects
from isoflop.data.dense.scenes import SceneRecords
from isoflop.data.dense.source import DenseSource

__all__ = [
    "CocoRecords",
    "DenseSource",
    "MapRecords",
    "Objects",
    "SceneRecords",
    "pack_objects",
    "unpack_objects",
]
