"""TensorBoard, Weights & Biases and MLflow. A failure of a board does not stop a run."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from isoflop.config import RunConfig, config_hash, dotted, flatten

# TensorBoard event files beside the journal.


class TensorBoard:
    """Scalars over steps in `folder`; steps that a resumed run trains again replace the older ones."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import: only where it is wanted

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self._writer.close()


# MLflow. Server and experiment are those that its own environment variables say.


class MLflow:
    """The run with the tag `isoflop` = `run_id`, gone on with where it exists, with `config` as its parameters."""

    def __init__(self, directory: Path, run_id: str, config: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._mlflow = mlflow
        found = mlflow.search_runs(filter_string=f"tags.isoflop = '{run_id}'", max_results=1, output_format="list")
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
            return
        mlflow.start_run(run_name=directory.name, tags={"isoflop": run_id})
        mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # A slash is a folder here; dots and slashes are allowed in names, other signs are not.
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


# Weights & Biases. Project, team and key are those that its own environment variables and login say.


class WandB:
    """The run of that id, gone on with where it exists; `config` is shown beside its curves."""

    def __init__(self, directory: Path, run_id: str, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            id=run_id, name=directory.name, dir=str(directory), config=dict(config), resume="allow", job_type="train"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


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
    "probe_accuracy": "heldout/probe_accuracy",
    "rankme": "rankme",
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
