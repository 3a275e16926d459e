"""Import of public weights into a folder that can be used as a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import CheckpointError, ModelError
from isoflop.models import Backbone, create_model
from isoflop.models.interop import Recognised, load_weights, read_weights, recognise
from isoflop.models.interop.names import TIMMS_OWN
from isoflop.models.interop.recognise import IMAGENET
from isoflop.models.presets import PRESETS
from isoflop.models.saved import describe_model, save_model
from isoflop.runs.files import sha256_of
from isoflop.share.subject import whole_folder
from isoflop.transfer import Pretrained, open_backbone


@dataclass(frozen=True)
class Imported:
    """A folder that was written; `left_out` are tensors that do not belong to a backbone (a decoder).

    `by_name` is whether the name of the file said which of several models it is that have its names and shapes.
    """

    folder: Path
    model: str
    release: str
    parameters: int
    left_out: tuple[str, ...]
    by_name: bool = False


def import_weights(source: str, output: Path, *, model: str | None = None, image_size: int | None = None) -> Imported:
    """Writes the weights of `source` into the new folder `output`, under isoflop's names.

    Args:
        source: `timm:NAME`, a folder of timm's or Hugging Face's, or a file: `.npz` of big_vision or AugReg; `.pth` of
            MAE, PoolFormer, ConvFormer, CAFormer or timm's names; `.safetensors`.
        model: the preset whose weights they are, where names and shapes do not tell.
        image_size: pixels, in the place of the size that they were trained for; positions are resized.

    Raises CheckpointError or ModelError, with what is missing, unexpected and mis-shaped; `output` is then not there.
    """
    with whole_folder(output) as folder:
        path = Path(source).expanduser()
        left_out: list[str] = []
        if path.is_file():
            found, release, left_out = _from_file(path, model, image_size)
        else:
            found, release = open_backbone(source, image_size=image_size), _origin(source, path)
            if model is not None:
                found = _as_preset(found, model)
        origin = {**found.origin, "source": path.name if path.exists() else source, "release": release}
        if path.is_file():
            origin["sha256"] = sha256_of(path)
        description = describe_model(
            found.model,
            found.options,
            moments=found.moments,
            class_names=found.class_names,
            origin=origin,
            interpolation=found.interpolation,
            sigmoid=found.sigmoid,
        )
        save_model(folder, found.model.state_dict(), description)
        open_backbone(folder)
    count = sum(parameter.numel() for parameter in found.model.parameters())
    return Imported(output, found.preset, release, count, tuple(left_out), "by" in found.origin)


def _from_file(path: Path, preset: str | None, image_size: int | None) -> tuple[Pretrained, str, list[str]]:
    state = read_weights(path)
    found, by_name, unclear = None, False, ""
    try:
        found = recognise(state)
        if found is not None and preset is None:
            preset, by_name = found.choose(path.name)
    except ModelError as error:
        unclear = str(error)
    if preset is None:
        if path.suffix == ".safetensors" and not unclear:
            return open_backbone(path, image_size=image_size), "safetensors", []
        nothing = (
            f"names and shapes do not determine the model (the first is `{next(iter(state))}`): "
            "name the preset with --model"
        )
        raise CheckpointError(f"{path}: {unclear or nothing}")
    found = found or _unrecognised(state, preset)
    family = PRESETS[preset][0] if preset in PRESETS else ""
    own = TIMMS_OWN.get(family, {}) if found.layout == "timm" and found.release.startswith("timm") else {}
    options = found.fitting.get(preset, own)
    backbone = create_model(
        preset,
        num_classes=found.classes or 1,
        image_size=image_size or found.image_size or 224,
        in_channels=found.channels,
        seed=0,
        **options,
    )
    if preset.startswith("timm:"):
        try:
            backbone.load_state_dict({f"model.{name}": tensor for name, tensor in found.state.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error
    else:
        _load(backbone, found.state, found.layout, found.classes is not None, path)
    origin: dict[str, Any] = {} if found.classes is not None else {"classifier": None}
    origin |= {"by": "the name of the file"} if by_name else {}
    moments = found.moments or (IMAGENET if family in ("mae", "deit") else None)
    return Pretrained(backbone, path.stem, preset, options, moments, origin=origin), found.release, found.left_out


def _unrecognised(state: dict[str, Tensor], preset: str) -> Recognised:
    """Weights under timm's names, of which the user says what they are of."""
    bias = next((t for name, t in state.items() if name in HEADS and t.ndim == 1), None)
    stem = next((t for name, t in state.items() if t.ndim == 4 and name.split(".")[0] in ("patch_embed", "stem")), None)
    return Recognised(
        release=f"timm's names of {preset}",
        fitting={},
        layout="timm",
        state=state,
        classes=None if bias is None else len(bias),
        channels=3 if stem is None else int(stem.shape[1]),
        image_size=None,
    )


HEADS = ("head.bias", "head/bias", "head.fc.bias", "head.fc.fc2.bias", "fc.bias")


def _as_preset(found: Pretrained, preset: str) -> Pretrained:
    """timm's model as the same one of ours."""
    model = found.model
    if not found.preset.startswith("timm:"):
        raise CheckpointError(
            f"these are weights of {found.preset}: --model is only for files without this information"
        )
    shape: dict[str, Any] = {"num_classes": model.num_classes, "in_channels": model.in_channels}
    options = TIMMS_OWN.get(PRESETS[preset][0], {}) if preset in PRESETS else {}
    ours = create_model(preset, image_size=model.image_size, seed=0, **shape, **options)
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    _load(ours, state, "timm", True, found.name)
    return replace(found, model=ours, preset=preset, options=options)


def _load(backbone: Backbone, state: dict[str, Tensor], layout: str, has_head: bool, where: Path | str) -> None:
    try:
        load_weights(backbone, state, layout, head=has_head)
    except ModelError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if not has_head:
        for name, parameter in backbone.named_parameters():
            if name.startswith("head"):
                torch.nn.init.zeros_(parameter)


def _origin(source: str, path: Path) -> str:
    if source.startswith("timm:"):
        return "timm"
    return "folder" if path.is_dir() else source
