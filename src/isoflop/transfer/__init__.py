"""Transfer: evaluation of a backbone on other tasks."""

from isoflop import needs_training  # noqa: F401
from isoflop.train.probe import ridge
from isoflop.transfer.backbones import Pretrained, load_backbone, open_backbone
from isoflop.transfer.predict import Evaluation, Guess, evaluate, predict
from isoflop.transfer.protocols import check_transfer, transfer

__all__ = [
    "Evaluation",
    "Guess",
    "Pretrained",
    "check_transfer",
    "evaluate",
    "load_backbone",
    "open_backbone",
    "predict",
    "ridge",
    "transfer",
]
