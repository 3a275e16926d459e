"""Training: the loop, optimizers, schedules, checkpoints, the journal."""

from isoflop import needs_training  # noqa: F401
from isoflop.runs.journal import read_journal, verify_ledger
from isoflop.train.attempt import RunResult
from isoflop.train.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from isoflop.train.loop import build_model, build_objective, train
from isoflop.train.optim.build import rate_factor

__all__ = [
    "Checkpoint",
    "RunResult",
    "build_model",
    "build_objective",
    "latest_checkpoint",
    "load_checkpoint",
    "rate_factor",
    "read_journal",
    "save_checkpoint",
    "train",
    "verify_ledger",
]
