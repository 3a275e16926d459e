"""Opening of a checkpoint of any origin as a backbone.

runs/vit-1a2b3c            the folder of a finished run
studies/mine               the folder of a finished study: the trained answer
weights.safetensors        a run's weights; with `model`, any weights of that model under isoflop's or timm's names
timm:vit_small_patch16_224 timm's weights, from its cache or the hub
some/folder                Hugging Face or timm: config.json with a `model_type` or an `architecture`, and
                           model.safetensors; or a folder of `isoflop import` or `isoflop export --to safetensors`
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isoflop.config import RunConfig, stored_run
from isoflop.config.load import nearest_path
from isoflop.config.run import code_of
from isoflop.data import open_split
from isoflop.errors import CheckpointError, ConfigError, ModelError
from isoflop.models import Backbone, create_model
from isoflop.models.interop import load_weights, read_tensors
from isoflop.models.interop.names import TIMMS_OWN
from isoflop.models.saved import (
    KEY,
    Description,
    Interpolation,
    Moments,
    checked_description,
    preset_in,
    read_description,
)
from isoflop.models.user_code import check_stored
from isoflop.runs.directory import published
from isoflop.runs.files import read_json
from isoflop.runs.results import answer_directory, is_study
from isoflop.train import build_model
from isoflop.train.identity import Shape, read_facts
from isoflop.train.start import load_trunk

# Hugging Face's `config.json` in our words: which preset, and what of it is different.


Options = dict[str, Any]


def huggingface_model(config: dict[str, Any], where: str) -> tuple[str, Options, int]:
    """Preset, overrides and input channels of the model that a Hugging Face `config` describes.

    Raises CheckpointError for a kind of model that has no counterpart here.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(f"{where}: no counterpart of Hugging Face's {kind!r}; there is {', '.join(_KINDS)}")
    usual = "relu" if kind == "bit" else "gelu"
    if config.get("hidden_act", usual) != usual:
        raise CheckpointError(f"{where}: a {kind} with {config['hidden_act']!r} has no counterpart; {usual} has")
    try:
        preset, options = _KINDS[kind](config)
        return preset, options, int(config.get("num_channels", 3))
    except KeyError as error:
        raise CheckpointError(f"{where}: config.json has no {error}") from error
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{where}: config.json does not describe a {kind}: {error}") from error


def _plain(preset: str, config: dict[str, Any]) -> tuple[str, Options]:
    return preset, {
        "depths": (config["num_hidden_layers"],),
        "widths": (config["hidden_size"],),
        "heads": (config["num_attention_heads"],),
        "mlp_widths": (config["intermediate_size"],),
        "stem_kernel": config["patch_size"],
        "stem_stride": config["patch_size"],
        "norm_eps": config["layer_norm_eps"],
    }


def _vit(config: dict[str, Any]) -> tuple[str, Options]:
    return _plain("vit_b16_token", config)


def _mae(config: dict[str, Any]) -> tuple[str, Options]:
    return _plain("mae_b16", config)


def _deit(config: dict[str, Any]) -> tuple[str, Options]:
    return _plain("deit_b16_distilled", config)


def _poolformer(config: dict[str, Any]) -> tuple[str, Options]:
    widths = tuple(config["hidden_sizes"])
    return "poolformer_s12", {
        "depths": tuple(config["depths"]),
        "widths": widths,
        "mlp_widths": tuple(int(width * config["mlp_ratio"]) for width in widths),
        "mixers": ("pooling",) * len(widths),
        "heads": (1,) * len(widths),
        "pool_size": config["pool_size"],
        "stem_kernel": config["patch_sizes"][0],
        "stem_stride": config["strides"][0],
        "stem_padding": config["padding"][0],
        "layer_scale": config["layer_scale_init_value"] if config["use_layer_scale"] else None,
    }


def _pvt(config: dict[str, Any]) -> tuple[str, Options]:
    widths = tuple(config["hidden_sizes"])
    return "pvt_ti", {
        "depths": tuple(config["depths"]),
        "widths": widths,
        "heads": tuple(config["num_attention_heads"]),
        "mlp_widths": tuple(width * ratio for width, ratio in zip(widths, config["mlp_ratios"], strict=True)),
        "reductions": tuple(config["sequence_reduction_ratios"]),
        "norm_eps": config["layer_norm_eps"],  # of the blocks; those between stages have 1e-5 here, 1e-6 there
    }


def _pvt_v2(config: dict[str, Any]) -> tuple[str, Options]:
    if config.get("linear_attention"):
        raise CheckpointError("a pvt_v2 with linear attention has no counterpart")
    _, options = _pvt({**config, "sequence_reduction_ratios": config["sr_ratios"]})
    return "pvt_v2_b0", options


def _bit(config: dict[str, Any]) -> tuple[str, Options]:
    if config.get("layer_type") != "preactivation" or config.get("global_padding") is not None:
        raise CheckpointError("a bit that is not of the paper's architecture has no counterpart")
    return "bit_r50x1", {
        "depths": tuple(config["depths"]),
        "factor": config["width_factor"],
        "weight_eps": 1e-8,
    }


_KINDS = {
    "vit": _vit,
    "vit_mae": _mae,
    "deit": _deit,
    "poolformer": _poolformer,
    "pvt": _pvt,
    "pvt_v2": _pvt_v2,
    "bit": _bit,
}


@dataclass(frozen=True)
class Pretrained:
    """A backbone, and what is needed to build and feed it again.

    `preset` and `options` are what `create_model` was called with; `moments` the mean and standard deviation of its
    images, where they belong to the weights and not to the data. `class_names` are those of its logits, where they
    are known, and `origin` tells where the weights come from, for people; with `classifier` in it, logits mean nothing.
    `interpolation` is how its pictures are resized, `sigmoid` whether each class has a probability of its own, and
    `run` the folder of the run that trained it.
    """

    model: Backbone
    name: str
    preset: str
    options: dict[str, Any] = field(default_factory=dict)
    moments: Moments | None = None
    class_names: tuple[str, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    interpolation: Interpolation = "bilinear"
    sigmoid: bool = False
    run: Path | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of architecture, image size and every weight."""
        digest = hashlib.blake2b(repr((self.preset, sorted(self.options.items()))).encode(), digest_size=16)
        digest.update(repr((self.model.image_size, self.moments)).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def open_backbone(
    checkpoint: str | Path, *, image_size: int | None = None, random_weights: bool = False, model: str | None = None
) -> Pretrained:
    """The backbone of `checkpoint` (see this module's first lines).

    Args:
        image_size: pixels, in the place of the size that it was trained for; positions are resized.
        random_weights: the same backbone as it was before training.
        model: the preset (or `timm:NAME`) whose weights a `.safetensors` file holds, where the file does not say.

    Raises CheckpointError for what is none of these, cannot be read or fetched, or is of another architecture.
    """
    text, path = str(checkpoint), Path(checkpoint).expanduser()
    if model is not None and path.suffix != ".safetensors":
        raise CheckpointError(f"{text} contains the name of its model: --model {model} is only for a file of weights")
    if text.startswith("timm:"):
        return _from_timm(text, image_size, random_weights)
    if is_study(path):
        path = answer_directory(path)
    if path.is_dir():
        config_file = _config_of(path)
        if isinstance(config_file.get(KEY), dict):
            return _from_saved(path, config_file, image_size, random_weights)
        if "model_type" in config_file:
            return _from_hugging_face(path, image_size, random_weights)
        if "architecture" in config_file:
            return _from_timm_folder(path, config_file, image_size, random_weights)
    if path.suffix == ".safetensors":
        beside = path.with_name("config.json")
        if model is None and path.name == "model.safetensors" and beside.is_file():
            return open_backbone(path.parent, image_size=image_size, random_weights=random_weights)
        return _from_file(path, image_size, random_weights, model)
    backbone, config = load_backbone(path, random_weights=random_weights, image_size=image_size)
    facts = read_facts(path)
    names = facts.class_names if facts and facts.num_classes == backbone.num_classes else ()
    preset = config.model.name
    return Pretrained(
        backbone,
        preset,
        preset,
        config.model.overrides,
        (config.data.mean, config.data.std) if config.data.mean and config.data.std else None,
        class_names=names,
        interpolation=facts.interpolation if facts else "bilinear",
        sigmoid=facts is not None and facts.has_sigmoid(config.objective),
        run=path,
    )


def load_backbone(
    run_directory: Path, *, random_weights: bool = False, image_size: int | None = None
) -> tuple[Backbone, RunConfig]:
    """The backbone that the finished run in `run_directory` trained, or the same one as it was before training.

    Raises CheckpointError when the folder is not a finished run or its weights do not fit its configuration.
    """
    if not run_directory.exists():
        raise CheckpointError(f"{run_directory}: no such file or folder{nearest_path(run_directory)}")
    weights = published(run_directory)
    try:
        config = stored_run(read_json(run_directory / "config.json")).as_trained()
        check_stored(config.model.code, run_directory)
        source: Shape = read_facts(run_directory) or open_split(config.data, "train", may_fetch=False)
        sized = config.model_copy(
            update={"data": config.data.model_copy(update={"image_size": image_size or config.data.image_size})}
        )
        model = build_model(sized, source)
        if not random_weights:
            load_trunk(model, read_tensors(weights), weights, with_head=True)
    except (OSError, ValueError, SafetensorError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{run_directory}: not readable: {' '.join(str(error).split())}") from error
    return model, config


def _from_saved(path: Path, config: dict[str, Any], image_size: int | None, random_weights: bool) -> Pretrained:
    """A folder that isoflop wrote, in its own layout or in timm's or Hugging Face's."""
    found = read_description(config, path)
    assert found is not None
    check_stored(code_of(found.preset, found.options), path)
    backbone = found.build(image_size, path / "model.safetensors")
    if not random_weights:
        state = read_tensors(path / "model.safetensors")
        try:
            if "model_type" in config or ("architecture" in config and not found.preset.startswith("timm:")):
                layout = "huggingface" if "model_type" in config else "timm"
                state = {name: tensor for name, tensor in state.items() if not _is_of_a_task(name)}
                load_weights(backbone, state, layout, head="classifier" not in found.origin)
            else:
                prefix = "model." if "architecture" in config else ""
                load_trunk(backbone, {prefix + n: t for n, t in state.items()}, path, with_head=True)
        except ModelError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return _described(backbone, path, found)


def _described(backbone: Backbone, path: Path, found: Description) -> Pretrained:
    return Pretrained(
        backbone,
        path.name,
        found.preset,
        found.options,
        found.moments,
        found.class_names,
        dict(found.origin),
        found.interpolation,
        found.sigmoid,
    )


def _interpolation(name: object) -> Interpolation:
    """timm's name of a way to resize, or Pillow's number, as one of the two that there are here."""
    return "bicubic" if name in ("bicubic", 3) else "bilinear"


def _from_timm_folder(path: Path, config: dict[str, Any], image_size: int | None, random_weights: bool) -> Pretrained:
    """A folder that `timm.create_model("local-dir:…")` loads."""
    try:
        known, args = config.get("pretrained_cfg") or {}, dict(config.get("model_args") or {})
        channels, *sides = known.get("input_size", (3, 224, 224))
        classes = config.get("num_classes", known.get("num_classes"))
        found = checked_description(
            path,
            preset=f"timm:{config['architecture']}",
            options={name: v for name, v in args.items() if name not in ("img_size", "in_chans", "num_classes")},
            num_classes=classes or 1,
            image_size=sides,
            channels=channels,
            moments=(known["mean"], known["std"]) if "mean" in known else None,
            class_names=config.get("label_names") or (),
            origin={} if classes else {"classifier": None},
            interpolation=_interpolation(known.get("interpolation")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its config.json does not describe a model: {error!r}") from error
    backbone = found.build(image_size, path / "model.safetensors")
    if not random_weights:
        state = {f"model.{name}": tensor for name, tensor in read_tensors(path / "model.safetensors").items()}
        load_trunk(backbone, state, path, with_head=True)
    return _described(backbone, path, found)


def _from_timm(name: str, image_size: int | None, random_weights: bool) -> Pretrained:
    import timm

    wanted = name.removeprefix("timm:")
    if not timm.is_model(wanted):
        create_model(name)  # says what is wrong with the name
    known = timm.get_pretrained_cfg(wanted)
    shape: dict[str, Any] = {"num_classes": 1000, "image_size": image_size or 224, "in_channels": 3}
    if known is not None:
        shape = {
            "num_classes": known.num_classes or 1000,
            "image_size": image_size or known.input_size[-1],
            "in_channels": known.input_size[0],
        }
    # The hub's client tells every retry; its last word is ours to tell.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    try:
        backbone = create_model(name, **shape, seed=0, **({} if random_weights else {"pretrained": True}))
    except Exception as error:  # the hub raises many kinds; all mean that the weights cannot be had
        if random_weights:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise CheckpointError(
            f"{name}: its weights are not in the cache and cannot be downloaded ({reason}); "
            "--random judges the architecture with random weights"
        ) from error
    moments = (tuple(known.mean), tuple(known.std)) if known is not None else None
    origin = {"classifier": None} if known is not None and not known.num_classes else {}
    interpolation = _interpolation(known.interpolation if known is not None else None)
    told = name + (", random weights" if random_weights else "")
    return Pretrained(backbone, told, name, {}, moments, origin=origin, interpolation=interpolation)


def _from_hugging_face(path: Path, image_size: int | None, random_weights: bool) -> Pretrained:
    config = _config_of(path)
    preset, options, in_channels = huggingface_model(config, str(path))
    state = {} if random_weights else read_tensors(path / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if not _is_of_a_task(name)}
    head = next((tensor for name, tensor in state.items() if name.endswith(CLASSIFIERS)), None)
    size, seen = config.get("image_size", 224), _config_of(path, "preprocessor_config.json")
    found = checked_description(
        path,
        preset=preset,
        options=options,
        num_classes=1000 if head is None else len(head),
        image_size=size if isinstance(size, list) else (size, size),
        channels=in_channels,
        moments=(seen["image_mean"], seen.get("image_std")) if "image_mean" in seen else None,
        class_names=() if head is None else _label_names(config, len(head)),
        origin={} if head is not None else {"classifier": None},
        interpolation=_interpolation(seen.get("resample")),
    )
    backbone = found.build(image_size, path / "model.safetensors")
    if not random_weights:
        try:
            load_weights(backbone, state, "huggingface", head=head is not None)
        except ModelError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return _described(backbone, path, found)


def _label_names(config: dict[str, Any], count: int) -> list[str]:
    """The names of the classes in Hugging Face's `id2label`; [] where it has none, or those that it gives by itself."""
    listed = config.get("id2label")
    names = [listed.get(str(k)) for k in range(count)] if isinstance(listed, dict) else []
    is_named = all(isinstance(name, str) for name in names) and names != [f"LABEL_{k}" for k in range(count)]
    return [str(name) for name in names] if is_named else []


def _from_file(path: Path, image_size: int | None, random_weights: bool, preset: str | None) -> Pretrained:
    state = read_tensors(path)
    with safe_open(path, "pt") as file:
        own, options = preset_in(file.metadata() or {})
    if preset is not None and preset != own:
        options = {}
    preset = preset or own
    if not preset:
        raise CheckpointError(f"{path} does not contain the name of its model: give the preset with --model")
    if preset.startswith("timm:") and not any(name.startswith("model.") for name in state):
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    head = next((tensor for name, tensor in state.items() if name.endswith(_HEADS) and tensor.ndim == 2), None)
    size = image_size or _size_of(state, preset, path)
    problems: list[str] = []
    for in_channels in (3, 1):
        shape: dict[str, Any] = {"num_classes": 1000 if head is None else len(head), "in_channels": in_channels}
        backbone = create_model(preset, image_size=size, seed=0, **shape, **options)
        if random_weights:
            break
        try:
            load_trunk(backbone, state, path, with_head=head is not None)
            break
        except CheckpointError as error:
            problems.append(str(error))
        try:  # weights under timm's names, computed as timm computes them
            theirs = TIMMS_OWN.get(backbone.family, {})
            backbone = create_model(preset, image_size=size, seed=0, **shape, **theirs)
            load_weights(backbone, state, "timm", head=head is not None)
            options = theirs
            break
        except ModelError:
            continue
    else:
        raise CheckpointError(problems[0])
    return Pretrained(backbone, path.stem, preset, options, origin={} if head is not None else {"classifier": None})


def _size_of(state: dict[str, Tensor], preset: str, path: Path) -> int:
    """The pixels that a model with learned positions was trained for, or what timm says of it."""
    if preset.startswith("timm:"):
        import timm

        known = timm.get_pretrained_cfg(preset.removeprefix("timm:"))
        if known is not None:
            return int(known.input_size[-1])
    if "positions.0" in state:
        stride = create_model(preset, image_size=224, num_classes=1).feature_strides[0]
        return math.isqrt(state["positions.0"].shape[1]) * stride
    raise CheckpointError(f"{path} does not contain its image size: give --image-size")


CLASSIFIERS = ("classifier.weight", "classifier.1.weight")
_HEADS = (*CLASSIFIERS, "head.weight", "head.fc.weight", "fc.weight")


def _config_of(path: Path, name: str = "config.json") -> dict[str, Any]:
    return read_json(path / name) if (path / name).is_file() else {}


def _is_of_a_task(name: str) -> bool:
    """Whether a tensor belongs to what Hugging Face puts around a backbone: poolers, decoders, mask tokens."""
    return any(part in name for part in ("pooler.", "decoder.", "mask_token", "decoder_"))
