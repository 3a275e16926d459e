"""A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from isoflop.data.transforms import crop_share
from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.bit import BiT
from isoflop.models.interop import shaped_like, to_layout
from isoflop.models.interop.names import TIMM, TIMMS_OWN
from isoflop.models.metaformer import MetaFormer, MetaFormerConfig
from isoflop.models.nfnet import NFNet
from isoflop.models.presets import PRESETS
from isoflop.models.saved import KEY, Description, architecture_of
from isoflop.share.subject import IMAGES, Subject, check, difference

# Where timm has fixed sizes, its name for a preset of ours.
TIMM_NAMES = {
    **{f"mixer_{size}": f"mixer_{size}_224" for size in ("s16", "s32", "b16", "b32", "l16", "l32")},
    "resmlp_s12": "resmlp_12_224",
    "resmlp_s24": "resmlp_24_224",
    "resmlp_s36": "resmlp_36_224",
    "resmlp_b24": "resmlp_big_24_224",
    "resmlp_b24_8": "resmlp_big_24_224",
    **{f"gmlp_{size}": f"gmlp_{size}_224" for size in ("ti16", "s16", "b16")},
    **{f"poolformer_{size}": f"poolformer_{size}" for size in ("s12", "s24", "s36", "m36", "m48")},
    **{f"poolformerv2_{size}": f"poolformerv2_{size}" for size in ("s12", "s24", "s36", "m36", "m48")},
    **{f"convformer_{size}": f"convformer_{size}" for size in ("s18", "s36", "m36", "b36")},
    **{f"caformer_{size}": f"caformer_{size}" for size in ("s18", "s36", "m36", "b36")},
    **{f"bit_r{size}": f"resnetv2_{size}_bit" for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")},
}
INSTEAD = "`--to safetensors` and `--to onnx` take any model"


def timm_model(model: Backbone) -> tuple[str, dict[str, Any]]:
    """timm's name of the architecture of `model`, and the arguments that make it that size.

    Raises ModelError, with what to do instead, where timm has no such model.
    """
    if model.family == "timm":
        inside: Any = model.model
        name = inside.pretrained_cfg["architecture"]
        fixed = inside.pretrained_cfg.get("fixed_input_size", False)
        return name, {"img_size": list(model.image_size)} if fixed else {}
    if isinstance(model, MetaFormer):
        return _metaformer(model)
    if isinstance(model, NFNet):
        return _nfnet(model)
    if isinstance(model, BiT):
        return _fixed_size(model), {}
    raise ModelError(f"timm has nothing like {model.preset}; {INSTEAD}")


def write_timm(folder: Path, subject: Subject, licence: str | None) -> float:
    """Writes `config.json` and `model.safetensors`; returns the largest relative difference of timm's outputs."""
    import timm

    model, description = subject.model, subject.description
    name, args = timm_model(model)
    if model.family == "timm":
        args = architecture_of(description.options) | args
    classes = description.num_classes if subject.classifies else 0
    try:
        peer: Any = timm.create_model(name, num_classes=classes, in_chans=description.channels, **args)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"timm cannot build {model.preset} as {name}: {error}; {INSTEAD}") from error
    if model.family == "timm":
        state = {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}
    else:
        state, description = _with_timms_eps(model, to_layout(model, "timm"), description)
        state = shaped_like(state, peer.state_dict())
    expected = peer.state_dict()
    state = {key: tensor for key, tensor in state.items() if key in expected or subject.classifies}
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if shapes != {key: tuple(tensor.shape) for key, tensor in expected.items()}:
        raise ModelError(f"timm's {name} is not {model.preset} with these options; {INSTEAD}")
    config = {
        "architecture": name,
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": {"in_chans": description.channels, **args},
        "pretrained_cfg": _pretrained_cfg(subject, peer.pretrained_cfg, classes, licence),
        KEY: description.to_dict(),
    }
    if description.class_names:
        config["label_names"] = list(description.class_names)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = subject.images(IMAGES)
    with torch.inference_mode():
        return check(difference(loaded(images), subject.outputs(images)), f"timm's {name}")


def _with_timms_eps(
    model: Backbone, state: dict[str, Tensor], description: Description
) -> tuple[dict[str, Tensor], Description]:
    """The same function with timm's eps in the norm of a ConvFormer's head.

    The norm of c·h with eps is that of h with eps/c², and what it normalises is the square of a ReLU of a linear map.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, MetaFormerConfig) or not config.mlp_head or not config.head_eps:
        return state, description
    timms = TIMMS_OWN["convformer"]["head_eps"]
    factor = (timms / config.head_eps) ** 0.25
    changed = {name: state[name] * factor for name in ("head.fc.fc1.weight", "head.fc.fc1.bias")}
    return state | changed, replace(description, options={**description.options, "head_eps": timms})


def _pretrained_cfg(subject: Subject, known: dict[str, Any], classes: int, licence: str | None) -> dict[str, Any]:
    height, width = subject.description.image_size
    mean, std = subject.description.moments or (None, None)
    found = {
        "input_size": [subject.description.channels, height, width],
        "fixed_input_size": bool(known.get("fixed_input_size", False)),
        "num_classes": classes,
        "interpolation": subject.description.interpolation,
        "crop_pct": crop_share(height),
        "crop_mode": "center",
        "mean": mean,
        "std": std,
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
        "pool_size": None,
        "license": licence,
    }
    return {name: value for name, value in found.items() if value is not None}


def _metaformer(model: MetaFormer) -> tuple[str, dict[str, Any]]:
    config = model.config
    if model.family in ("vit", "mae", "deit"):
        return _vit(model)
    if model.family == "pvt_v2":
        return "pvt_v2_b0", {
            "depths": list(config.depths),
            "embed_dims": list(config.widths),
            "num_heads": list(config.heads),
            "sr_ratios": list(config.reductions or ()),
            "mlp_ratios": [_ratio(*pair) for pair in zip(config.mlp_widths, config.widths, strict=True)],
        }
    if model.family == "poolformer" and not config.pool_first:
        raise ModelError(
            "timm's PoolFormer normalises the mean of the last map; this one, as the paper's code, the map: "
            "use `--to huggingface`"
        )
    name = _fixed_size(model)
    sized = model.family in ("mixer", "resmlp", "gmlp")
    return name, {"img_size": list(model.image_size)} if sized else {}


def _vit(model: MetaFormer) -> tuple[str, dict[str, Any]]:
    config = model.config
    args: dict[str, Any] = {
        "img_size": list(model.image_size),
        "patch_size": config.stem_stride,
        "embed_dim": config.widths[0],
        "depth": config.depths[0],
        "num_heads": config.heads[0],
        "mlp_ratio": _ratio(config.mlp_widths[0], config.widths[0]),
        "qkv_bias": config.qkv_bias,
    }
    if config.distilled:
        return "deit_tiny_distilled_patch16_224", args
    pools = {"gap": "avg", "token": "token", "map": "map"}
    more = {
        "class_token": config.prefix_tokens > 0,
        "global_pool": pools[config.pool],
        "fc_norm": config.pool_first,
        "act_layer": config.activation,
    }
    optional = {"qk_norm": config.qk_norm, "init_values": config.layer_scale}
    return "vit_base_patch16_224", args | more | {key: value for key, value in optional.items() if value}


def _nfnet(model: NFNet) -> tuple[str, dict[str, Any]]:
    config = model.config
    stem = config.stem_widths[-1]
    tiers, strides = (stem // 8, stem // 4, stem // 2, stem), tuple(2 if k else 1 for k in range(len(config.depths)))
    if config.stem_widths != tiers or config.stem_strides != (2, 1, 1, 2) or config.strides != strides:
        raise ModelError(f"timm's NFNets have a stem of four convolutions, which {model.preset} has not; {INSTEAD}")
    if config.activation == "gelu_tanh":
        raise ModelError(
            f"timm's NFNets have the exact GELU, {model.preset} the authors' tanh form (train with "
            f'`model.activation = "gelu"` for timm); {INSTEAD}'
        )
    return "dm_nfnet_f0", {
        "depths": list(config.depths),
        "channels": list(config.widths),
        "stem_chs": stem,
        "num_features": config.final_width,
        "group_size": config.group_width,
        "bottle_ratio": config.bottleneck,
        "alpha": config.alpha,
        "act_layer": config.activation,
        "std_conv_eps": max(config.weight_eps, 1e-12),  # PyTorch's BatchNorm, by which timm does it, takes no 0
    }


def _fixed_size(model: Backbone) -> str:
    """timm's name of the size of `model`, in a family whose sizes timm does not take as arguments."""
    config: Any = getattr(model, "config", None)
    same = ("depths", "widths", "mlp_widths", "mixer_widths", "stem_stride", "factor", "norm")
    for preset, name in TIMM_NAMES.items():
        family, known = PRESETS.get(preset, ("", None))
        if family == model.family and all(getattr(known, f, None) == getattr(config, f, None) for f in same):
            return name
    if model.family not in TIMM:
        raise ModelError(f"timm has no {model.family}; {INSTEAD}")
    raise ModelError(f"timm has no {model.family} of the size of {model.preset} with these options; {INSTEAD}")


def _ratio(hidden: int, width: int) -> float:
    """What timm multiplies `width` by, before it cuts off what is behind the point."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
