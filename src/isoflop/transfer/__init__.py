"""What a backbone is worth on other tasks."""

from isoflop.transfer.evaluate import load_backbone, transfer
from isoflop.transfer.few_shot import few_shot_accuracy, ridge

__all__ = ["few_shot_accuracy", "load_backbone", "ridge", "transfer"]
