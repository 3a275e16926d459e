"""What a finished run has trained, all of it: the backbone and what its objective learned with."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from isoflop.config import DistilledConfig, stored_run
from isoflop.data import Source
from isoflop.errors import CheckpointError, IsoflopError
from isoflop.models.interop import read_tensors
from isoflop.objectives import Objective
from isoflop.runs.directory import published
from isoflop.runs.files import read_json
from isoflop.train.loop import build_objective


def load_objective(run_directory: Path, source: Source) -> Objective:
    """The trained objective of the finished run in `run_directory`, which was trained on `source`; see `open_split`.

    Raises CheckpointError when the folder is not a finished run or its weights do not fit its configuration.
    """
    backbone, rest = published(run_directory), run_directory / "objective.safetensors"
    try:
        config = stored_run(read_json(run_directory / "config.json")).as_trained()
        if isinstance(config.objective, DistilledConfig):
            raise CheckpointError("a teacher is not among the weights of a distilled run; its backbone is")
        objective = build_objective(config.model_copy(update={"start": None}), source)
        weights = {f"backbone.{name}": tensor for name, tensor in read_tensors(backbone).items()}
        weights |= read_tensors(published(run_directory, rest.name)) if rest.is_file() else {}
        objective.load_state_dict(weights)
    except (OSError, ValueError, SafetensorError, RuntimeError, IsoflopError) as error:
        raise CheckpointError(f"{run_directory}: not readable: {' '.join(str(error).split())}") from error
    return objective
