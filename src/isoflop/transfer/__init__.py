"""What a backbone is worth on other tasks."""

from isoflop.transfer.backbones import Pretrained, load_backbone, open_backbone
from isoflop.transfer.evaluate import transfer
from isoflop.transfer.few_shot import few_shot_accuracy, ridge

__all__ = ["Pretrained", "few_shot_accuracy", "load_backbone", "open_backbone", "ridge", "transfer"]
