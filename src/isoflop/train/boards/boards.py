"""All boards of a run as one, none of which may stop it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from isoflop.config import RunConfig, config_hash, dotted, flatten
from isoflop.train.boards.mlflow import MLflow
from isoflop.train.boards.tensorboard import TensorBoard
from isoflop.train.boards.wandb import WandB

SERIES = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "images_per_second": "speed/images_per_second",
    "mfu": "speed/model_flops_utilisation",
    "data_wait": "speed/data_wait_share",
    "memory_bytes": "cost/memory_bytes",
    "goodput": "cost/goodput",
    "device_hours": "cost/device_hours",
    "energy_kwh": "cost/energy_kwh",
}


class Board(Protocol):
    """One place where curves are shown."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each of the named curves."""

    def close(self) -> None:
        """Writes what is left."""


class Boards:
    """The boards that `config` asks for. One that fails, at any time and in any way, is left out from then on."""

    def __init__(self, config: RunConfig, directory: Path, start: int) -> None:
        self._boards: dict[str, Board] = {}
        run_id = config_hash(config)
        makers: dict[str, tuple[bool, Callable[[], Board]]] = {
            "TensorBoard": (config.tensorboard, lambda: TensorBoard(directory / "tensorboard", start)),
            "Weights & Biases": (config.wandb, lambda: WandB(directory, run_id, _flat(config))),
            "MLflow": (config.mlflow, lambda: MLflow(directory, run_id, _flat(config))),
        }
        for name, (wanted, make) in makers.items():
            if wanted:
                self._try(name, partial(self._open, name, make))

    def write(self, row: Mapping[str, Any]) -> None:
        """Shows a row of the journal."""
        values = named_values(row)
        for name, board in list(self._boards.items()):
            self._try(name, partial(board.write, row["step"], values))

    def close(self) -> None:
        for name, board in list(self._boards.items()):
            self._try(name, board.close)

    def _open(self, name: str, make: Callable[[], Board]) -> None:
        self._boards[name] = make()

    def _try(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a library of others raises
            self._boards.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"{name} failed and is left out from here on: {reason}", stacklevel=3)


def named_values(row: Mapping[str, Any]) -> dict[str, float]:
    """The curves of a row by the names under which they are shown; what is not finite is left out."""
    named = {SERIES[key]: value for key, value in row.items() if key in SERIES}
    named |= {f"heldout/{key.removeprefix('heldout_')}": v for key, v in row.items() if key.startswith("heldout_")}
    return {tag: float(v) for tag, v in named.items() if isinstance(v, int | float) and math.isfinite(v)}


def _flat(config: RunConfig) -> dict[str, Any]:
    return {dotted(path): value for path, value in flatten(config.model_dump(mode="json"))}
