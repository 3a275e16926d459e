"""`model.onnx`: a graph that ONNX Runtime computes, for any number of images."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import ConfigError, ModelError
from isoflop.share.subject import Subject
from isoflop.share.verify import check, difference

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
        onnx, onnxruntime, _ = map(importlib.import_module, ("onnx", "onnxruntime", "onnxscript"))
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
    return {"model": subject.model.preset} | {name: json.dumps(value) for name, value in facts.items() if value}


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
