"""Transfer to detection and segmentation."""

from isoflop.transfer.dense.judge import judge_dense

__all__ = ["judge_dense"]
