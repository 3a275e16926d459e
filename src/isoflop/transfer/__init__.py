"""Transfer: evaluation of a backbone on other tasks."""

from isoflop.transfer.backbones import Pretrained, load_backbone, open_backbone
from isoflop.transfer.evaluate import check_transfer, transfer
from isoflop.transfer.few_shot import ridge
from isoflop.transfer.predict import Guess, predict

__all__ = [
    "Guess",
    "Pretrained",
    "check_transfer",
    "load_backbone",
    "open_backbone",
    "predict",
    "ridge",
    "transfer",
]
