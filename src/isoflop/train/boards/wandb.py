"""Weights & Biases. Project, team and key are those that its own environment variables and login say."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
