"""A trained backbone as a folder that another library loads, with the proof that it is the same model."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.errors import ConfigError
from isoflop.models.saved import save_model
from isoflop.share.card import model_card
from isoflop.share.folders import whole_folder
from isoflop.share.subject import Subject, open_subject
from isoflop.share.to_huggingface import write_huggingface
from isoflop.share.to_onnx import BATCHES, write_onnx
from isoflop.share.to_timm import write_timm
from isoflop.share.verify import IMAGES, check, difference
from isoflop.transfer import open_backbone

FORMATS = ("timm", "huggingface", "onnx", "safetensors")
READERS = {"timm": "timm", "huggingface": "transformers", "onnx": "ONNX Runtime", "safetensors": "isoflop"}


@dataclass(frozen=True)
class Exported:
    """A folder that was written; `difference` is the largest of the reader's outputs from ours, as a share of the
    largest output."""

    folder: Path
    format: str
    model: str
    difference: float
    images: int


def export(checkpoint: str, format: str, output: Path, *, licence: str | None = None) -> Exported:
    """Writes the backbone of `checkpoint` as `format` into the new folder `output`, with a model card.

    Whoever is to read it reads it before this returns, and must come to the same outputs.

    Args:
        checkpoint: a finished run, or anything else that `isoflop transfer` takes.
        format: one of `FORMATS`.
        licence: of the weights, for the card: an SPDX identifier. Left out, the card names none.

    Raises ConfigError for an unknown format or a package that is missing, CheckpointError for what is no checkpoint or
    cannot be written, ModelError where the format has no such model; `output` is then not there.
    """
    if licence is not None and not re.fullmatch(r"[\w.+() -]+", licence):
        raise ConfigError(f"`--licence` is an SPDX identifier (`apache-2.0`), not {licence!r}")
    if format not in FORMATS:
        raise ConfigError(f"`--to` is one of {', '.join(FORMATS)}, not {format!r}")
    with whole_folder(output) as folder:
        subject = open_subject(checkpoint)
        found = _write(folder, subject, format, licence)
        images = sum(BATCHES) if format == "onnx" else IMAGES
        agreement = (
            f"{READERS[format]} was given these files and {images} random images before they were published: the "
            f"largest difference from isoflop's outputs is {found:.1e} of the largest output."
        )
        (folder / "README.md").write_text(model_card(subject, format, agreement, licence), encoding="utf-8")
    return Exported(output, format, subject.model.preset, found, images)


def _write(folder: Path, subject: Subject, format: str, licence: str | None) -> float:
    if format == "timm":
        return write_timm(folder, subject, licence)
    if format == "huggingface":
        return write_huggingface(folder, subject, licence)
    if format == "onnx":
        return write_onnx(folder, subject)
    save_model(folder, subject.model.state_dict(), subject.description)
    again = replace(subject, model=open_backbone(folder).model.eval())
    images = subject.images(IMAGES)
    return check(difference(again.outputs(images), subject.outputs(images)), "isoflop")
