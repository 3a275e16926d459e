"""The subject of an export: a trained backbone and its metadata."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from isoflop.config import MaskedConfig, RunConfig
from isoflop.data import open_split
from isoflop.errors import CheckpointError, ModelError
from isoflop.models import Backbone
from isoflop.models.saved import Description, describe_model
from isoflop.runs.directory import read_status
from isoflop.runs.files import private_path
from isoflop.runs.results import answer_directory, is_study
from isoflop.train.identity import DataFacts, facts_of, read_facts
from isoflop.transfer import load_backbone, open_backbone

CLASSIFYING = ("supervised", "distilled")


@dataclass(frozen=True)
class Subject:
    """A backbone in evaluation mode. `run` and what follows are there where a run of isoflop trained it.

    Attributes:
        classifies: whether its logits mean anything; if not (masked pretraining, dense tasks), it gives features.
    """

    name: str
    model: Backbone
    description: Description
    classifies: bool
    run: Path | None = None
    config: RunConfig | None = None
    data: DataFacts | None = None

    def outputs(self, images: Tensor) -> Tensor:
        """Logits, or features of a backbone that classifies nothing, of normalised images (B, C, H, W)."""
        with torch.inference_mode():
            return self.model(images) if self.classifies else self.model.features(images)

    def images(self, count: int) -> Tensor:
        """Random images as the model expects them: normal numbers, always the same."""
        shape = (count, self.description.channels, *self.description.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @property
    def masked(self) -> MaskedConfig | None:
        """The objective of a masked autoencoder."""
        objective = self.config.objective if self.config else None
        return objective if isinstance(objective, MaskedConfig) else None


def open_subject(checkpoint: str) -> Subject:
    """The backbone of a finished run, or of anything else that `isoflop transfer` takes.

    Raises CheckpointError for a run that is not finished, and for what is no checkpoint.
    """
    folder = Path(checkpoint).expanduser()
    if is_study(folder):
        folder = answer_directory(folder)
    if (folder / "identity.json").is_file() or (folder / "status.json").is_file():
        return _of_run(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: neither a run nor a folder of weights (no config.json)")
    found = open_backbone(checkpoint)
    model = _with_plain_head(found.model).eval()
    description = describe_model(
        model,
        found.options,
        moments=found.moments,
        class_names=found.class_names,
        origin=found.origin,
        interpolation=found.interpolation,
        sigmoid=found.sigmoid,
    )
    return Subject(found.name, model, description, classifies="classifier" not in found.origin)


def _of_run(run: Path) -> Subject:
    status = read_status(run)
    if status is None or status.state != "done":
        how_far = f"{status.state}, step {status.step} of {status.steps}" if status else "not started"
        raise CheckpointError(f"{run}: the run is not finished ({how_far}); `isoflop train` resumes it")
    model, config = load_backbone(run)
    data = read_facts(run) or facts_of(open_split(config.data, "train", may_fetch=False))
    classifies = config.objective.name in CLASSIFYING
    model = _with_plain_head(model).eval()
    description = describe_model(
        model,
        config.model.overrides,
        moments=(data.mean, data.std),
        class_names=data.class_names if classifies else (),
        origin={} if classifies else {"classifier": None},
        interpolation=data.interpolation,
        sigmoid=data.has_sigmoid(config.objective),
    )
    return Subject(run.resolve().name, model, description, classifies, run, config, data)


def _with_plain_head(model: Backbone) -> Backbone:
    """`model` with a linear classifier in the place of BatchNorm without affine and one, which is the same function."""
    if not (isinstance(model.head, nn.Sequential) and isinstance(model.head[0], nn.BatchNorm1d)):
        return model
    norm, linear = model.head[0], model.head[1]
    assert isinstance(linear, nn.Linear)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    with torch.no_grad():
        linear.bias.sub_(linear.weight @ (norm.running_mean * scale))
        linear.weight.mul_(scale)
    model.head = linear
    return model


# The proof that what was written is the same model.


IMAGES = 4
LIMIT = 1e-4  # of the largest output, in float32; two orders above what rounding makes of it


def difference(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference, as a share of the largest output."""
    if theirs.shape != ours.shape:
        raise ModelError(f"outputs of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
    largest = float(ours.abs().max())
    return float((theirs - ours).abs().max()) / max(largest, 1e-12)


def check(found: float, reader: str) -> float:
    """`found`, if it is rounding; ModelError if what `reader` loads is another model."""
    if not found <= LIMIT:
        raise ModelError(
            f"{reader} computes something else from these weights: outputs differ by {found:.1e} of the largest, "
            f"{LIMIT:.0e} is allowed"
        )
    return found


# A folder that is there as a whole, or not at all.


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when all has gone well and is deleted when not.

    Raises CheckpointError where there is something at `target` already, or the storage refuses.
    """
    if target.exists():
        raise CheckpointError(f"{target}: there is something already; choose another --output or delete it")
    partial = private_path(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"{target}: cannot write here: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
