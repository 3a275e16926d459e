"""Which model a file of weights is of, by the names and shapes in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from isoflop.errors import ModelError
from isoflop.models.interop.flax import from_flax, heads_of
from isoflop.models.interop.official import from_baseline, from_poolformer, is_baseline, is_poolformer, without_decoder
from isoflop.models.interop.timm_names import TIMMS_OWN
from isoflop.models.metaformer_config import MetaFormerConfig
from isoflop.models.nfnet import NFNetConfig
from isoflop.models.positions import sincos_2d
from isoflop.models.presets import PRESETS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels from -1 to 1
SEPARABLE = "stages.0.blocks.0.token_mixer.pwconv1.weight"  # of ConvFormer and CAFormer, as timm calls it
Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recognised:
    """A backbone's weights in a layout that `load_weights` reads, and what `create_model` needs to build it.

    Attributes:
        release: whose file it is, for people.
        image_size: pixels; None where no tensor depends on it.
        moments: mean and standard deviation of its images, as the release's code normalises them.
        left_out: tensors that do not belong to the backbone.
    """

    release: str
    preset: str
    options: dict[str, Any]
    layout: str
    state: dict[str, Tensor]
    classes: int | None
    channels: int
    image_size: int | None
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    left_out: list[str] = field(default_factory=list)


Test = Callable[[Named], bool]
Reader = Callable[[Named], Recognised | None]


def recognise(state: Mapping[str, Tensor]) -> Recognised | None:
    """What `state` holds; None where its names and shapes leave no answer, or more than one.

    Known are ViTs of big_vision and AugReg, MAE, PoolFormer, ConvFormer and CAFormer, and timm's ViTs, ConvFormers,
    CAFormers and NFNets.
    """
    rules: tuple[tuple[Test, Reader], ...] = (
        (lambda names: any(name.endswith("embedding/kernel") for name in names), _flax),
        (is_poolformer, _poolformer),
        (is_baseline, lambda state: _baseline(from_baseline(state), "MetaFormer baselines")),
        (lambda names: SEPARABLE in names, lambda state: _baseline(state, "timm's names of a MetaFormer")),
        (lambda names: "blocks.0.attn.qkv.weight" in names and "patch_embed.proj.weight" in names, _plain_vit),
        (
            lambda names: {"stem.conv4.gain", "final_conv.weight", "stages.0.0.attn_last.fc1.weight"} <= set(names),
            _nfnet,
        ),
    )
    return next((read(state) for applies, read in rules if applies(state)), None)


def _flax(state: Mapping[str, Tensor]) -> Recognised | None:
    heads, arrays = heads_of(state), from_flax(state)
    if heads is None or arrays["embedding/weight"].ndim != 4:
        return None
    width, channels, patch, _ = arrays["embedding/weight"].shape
    depth = 1 + max(int(match[1]) for match in map(re.compile(r".*encoderblock_(\d+)/").match, arrays) if match)
    token, pooled = "cls" in arrays, "MAPHead_0/probe" in arrays
    options: dict[str, Any] = {
        **_vit_options(width, depth, heads, patch, len(arrays["Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias"])),
        "activation": "gelu_tanh",  # Flax's GELU is the approximate one
        "pool": "token" if token else "map" if pooled else "gap",
        "prefix_tokens": int(token),
    }
    image_size = None
    extra: dict[str, Tensor] = {}
    if "pos_embedding" in arrays:
        image_size = math.isqrt(arrays["pos_embedding"].shape[1]) * patch  # a class token's makes no other root
    else:  # fixed ones are not stored; the release that has them is for 224 px (arXiv 2205.01580)
        image_size = 224 // patch * patch
        extra["pos_embedding"] = sincos_2d((224 // patch, 224 // patch), width)[None]
    return Recognised(
        release="big_vision or AugReg",
        preset="vit_b16",
        options=options,
        layout="flax",
        state={**state, **extra},
        classes=len(arrays["head/bias"]) if "head/bias" in arrays else None,
        channels=channels,
        image_size=image_size,
        moments=HALF if channels == 3 else None,
    )


def _plain_vit(state: Mapping[str, Tensor]) -> Recognised | None:
    encoder, left_out = without_decoder(state)
    width, channels, patch, _ = encoder["patch_embed.proj.weight"].shape
    depth, mlp = _count(encoder, r"blocks\.(\d+)\."), len(encoder["blocks.0.mlp.fc1.bias"])
    # Query, key and value are one matrix, which does not tell heads: those of the paper's model of that size.
    same = (_heads(config, width, depth, mlp) for _, config in PRESETS.values())
    heads = next((found for found in same if found), None)
    if heads is None or "pos_embed" not in encoder:
        return None
    of_mae = bool(left_out)
    last = "fc_norm.weight" in encoder
    options = {
        **_vit_options(width, depth, heads, patch, mlp),
        "prefix_tokens": int("cls_token" in encoder),
        "pool": "gap" if last or "cls_token" not in encoder else "token",
        "pool_first": last,
        "init": "vit",
    }
    return Recognised(
        release="MAE" if of_mae else "timm's names of a ViT",
        preset="mae_b16" if of_mae else "vit_b16",
        options=options,
        layout="timm",
        state=encoder,
        classes=_classes(encoder, "head.bias"),
        channels=channels,
        image_size=math.isqrt(encoder["pos_embed"].shape[1]) * patch,
        moments=IMAGENET if of_mae else None,
        left_out=left_out,
    )


def _poolformer(state: Mapping[str, Tensor]) -> Recognised | None:
    named = from_poolformer(state)
    options = _stages(named)
    return Recognised(
        release="PoolFormer",
        preset="poolformer_s12",
        options={**options, "layer_scale": 1e-5 if "stages.0.blocks.0.layer_scale1.scale" in named else None},
        layout="timm",
        state=named,
        classes=_classes(named, "head.fc.bias"),
        channels=named["stem.conv.weight"].shape[1],
        image_size=None,
        moments=IMAGENET,
    )


def _baseline(named: Mapping[str, Tensor], release: str) -> Recognised | None:
    options, last = _stages(named), _count(named, r"stages\.(\d+)\.") - 1
    if SEPARABLE not in named:
        return None  # pooling and identity have no parameters to tell them apart
    family = "caformer" if f"stages.{last}.blocks.0.token_mixer.qkv.weight" in named else "convformer"
    own = TIMMS_OWN[family] if release.startswith("timm") else {}
    heads = {"heads": tuple(width // 32 for width in options["widths"])}
    return Recognised(
        release=release,
        preset=f"{family}_s18",
        options={**options, **heads, **own, "mlp_head": "head.fc.fc1.weight" in named},
        layout="timm",
        state=dict(named),
        classes=_classes(named, "head.fc.fc2.bias") or _classes(named, "head.fc.bias"),
        channels=named["stem.conv.weight"].shape[1],
        image_size=None,
        moments=IMAGENET,
    )


def _nfnet(state: Mapping[str, Tensor]) -> Recognised | None:
    stages = _count(state, r"stages\.(\d+)\.")
    depths = tuple(_count(state, rf"stages\.{k}\.(\d+)\.") for k in range(stages))
    widths = tuple(len(state[f"stages.{k}.0.conv3.gain"]) for k in range(stages))
    same = (
        name
        for name, (_, config) in PRESETS.items()
        if isinstance(config, NFNetConfig) and (config.depths, config.widths) == (depths, widths)
    )
    preset = next(same, None)
    return Recognised(
        release="timm's names of an NFNet",
        preset=preset or "nfnet_f0",
        options=TIMMS_OWN["nfnet"] | ({} if preset else _nfnet_options(state, depths, widths)),
        layout="timm",
        state=dict(state),
        classes=_classes(state, "head.fc.bias"),
        channels=state["stem.conv1.weight"].shape[1],
        image_size=None,
        moments=IMAGENET,
    )


def _nfnet_options(state: Named, depths: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, Any]:
    middles = [state[f"stages.{k}.0.conv2.weight"].shape for k in range(len(widths))]
    return {
        "depths": depths,
        "widths": widths,
        "stem_widths": tuple(len(state[f"stem.conv{k}.weight"]) for k in range(1, 5)),
        "final_width": len(state["final_conv.weight"]),
        "group_width": min(shape[1] for shape in middles),  # a stage that does not divide has a single, wider group
        "bottleneck": middles[0][0] / widths[0],
        "squeeze": len(state["stages.0.0.attn_last.fc1.weight"]) / widths[0],
    }


def _vit_options(width: int, depth: int, heads: int, patch: int, mlp: int) -> dict[str, Any]:
    return {
        "depths": (depth,),
        "widths": (width,),
        "heads": (heads,),
        "mlp_widths": (mlp,),
        "stem_kernel": patch,
        "stem_stride": patch,
    }


def _heads(config: object, width: int, depth: int, mlp: int) -> int | None:
    if not isinstance(config, MetaFormerConfig) or config.mixers != ("attention",):
        return None
    same = (config.widths, config.depths, config.mlp_widths) == ((width,), (depth,), (mlp,))
    return config.heads[0] if same else None


def _stages(named: Mapping[str, Tensor]) -> dict[str, Any]:
    count = _count(named, r"stages\.(\d+)\.")
    if count < 1:
        raise ModelError("these weights have no stages")
    first = [f"stages.{k}.blocks.0.mlp.fc1.weight" for k in range(count)]
    return {
        "depths": tuple(_count(named, rf"stages\.{k}\.blocks\.(\d+)\.") for k in range(count)),
        "widths": tuple(named[name].shape[1] for name in first),
        "mlp_widths": tuple(named[name].shape[0] for name in first),
        "stem_kernel": named["stem.conv.weight"].shape[-1],
    }


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for found in map(re.compile(pattern).match, names) if found), default=-1)


def _classes(state: Mapping[str, Tensor], bias: str) -> int | None:
    return len(state[bias]) if bias in state else None
