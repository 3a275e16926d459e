"""Export of a trained backbone to a folder that another library loads, verified by comparing outputs."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.data.transforms import crop_share
from isoflop.errors import ConfigError, ModelError
from isoflop.models.saved import save_model
from isoflop.share.card import model_card
from isoflop.share.subject import IMAGES, Subject, check, difference, open_subject, whole_folder
from isoflop.share.to_huggingface import write_huggingface
from isoflop.share.to_timm import write_timm
from isoflop.transfer import open_backbone

# `model.onnx`: a graph that ONNX Runtime computes, for any number of images.


BATCHES = (1, 3)


class _Features(nn.Module):
    """The pooled features of a backbone that classifies nothing."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.backbone = subject.model

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.features(images)


def write_onnx(folder: Path, subject: Subject) -> float:
    """Writes `model.onnx`; returns the largest relative difference of ONNX Runtime's outputs, over two batch sizes."""
    try:
        onnx: Any
        onnxruntime: Any
        onnx, onnxruntime, _ = map(importlib.import_module, PACKAGES["onnx"])
    except ImportError as error:
        raise ConfigError(f"export to ONNX needs {error.name}: pip install 'isoflop[export]'") from error
    model = subject.model if subject.classifies else _Features(subject).eval()
    path = folder / "model.onnx"
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model,
                (subject.images(2),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits" if subject.classifies else "features"],
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=_is_large(model))
        except torch.onnx.errors.OnnxExporterError as error:
            raise ModelError(f"{subject.model.preset} cannot be exported: {_first_line(error)}") from error
    graph = onnx.load(path, load_external_data=False)
    for key, value in _metadata(subject).items():
        graph.metadata_props.add(key=key, value=value)
    path.write_bytes(graph.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = 0.0
    for batch in BATCHES:
        images = subject.images(batch)
        (theirs,) = session.run(None, {"images": images.numpy()})
        found = max(found, difference(torch.from_numpy(theirs), subject.outputs(images)))
    return check(found, "ONNX Runtime")


def _metadata(subject: Subject) -> dict[str, str]:
    mean, std = subject.description.moments or ((), ())
    facts = {"mean": mean, "std": std, "class_names": subject.description.class_names}
    view = {
        "interpolation": subject.description.interpolation,
        "crop_pct": json.dumps(crop_share(subject.description.image_size[0])),
    }
    return {"model": subject.model.preset} | {name: json.dumps(value) for name, value in facts.items() if value} | view


def _is_large(model: nn.Module) -> bool:
    """Whether the weights are beyond what one file of this format can hold."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) > 1_900_000_000


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its steps on stdout, and of itself in warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        yield


FORMATS = ("timm", "huggingface", "onnx", "safetensors")
READERS = {"timm": "timm", "huggingface": "transformers", "onnx": "ONNX Runtime", "safetensors": "isoflop"}
PACKAGES = {
    "timm": (),
    "huggingface": ("transformers",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "safetensors": (),
}
"""What a format needs beside what isoflop does."""


def find_format(name: str) -> str:
    """The format called `name`, or `hf`; ConfigError where there is none."""
    format = "huggingface" if name == "hf" else name
    if format not in FORMATS:
        raise ConfigError(f"`--to` is one of {', '.join(FORMATS)}, not {name!r}")
    return format


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
        format: one of `FORMATS`, or `hf`.
        licence: of the weights, for the card: an SPDX identifier. Left out, the card names none.

    Raises ConfigError for an unknown format or a package that is missing, CheckpointError for what is no checkpoint or
    cannot be written, ModelError where the format has no such model; `output` is then not there.
    """
    if licence is not None and not re.fullmatch(r"[\w.+() -]+", licence):
        raise ConfigError(f"`--licence` is an SPDX identifier (`apache-2.0`), not {licence!r}")
    format = find_format(format)
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
