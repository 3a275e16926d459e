"""Where the journal is shown, beside its own file: TensorBoard, Weights & Biases, MLflow."""

from isoflop.train.boards.boards import Boards

__all__ = ["Boards"]
