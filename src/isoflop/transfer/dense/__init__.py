"""What a backbone is worth where every place in a picture has an answer."""

from isoflop.transfer.dense.judge import judge_dense

__all__ = ["judge_dense"]
