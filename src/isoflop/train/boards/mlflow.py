"""MLflow. Server and experiment are those that its own environment variables say."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
