"""Detection of the model of a weight file by names and shapes; ambiguous cases are not guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import ModelError
from isoflop.models.create import create_model, resolve
from isoflop.models.interop.names import (
    TIMMS_OWN,
    from_baseline,
    from_flax,
    from_poolformer,
    heads_of,
    is_baseline,
    is_poolformer,
    without_decoder,
)
from isoflop.models.interop.transfer import misfits
from isoflop.models.metaformer import MetaFormerConfig
from isoflop.models.nfnet import NFNetConfig
from isoflop.models.presets import FAMILIES, PRESETS, Config, ladder_of

Moments = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Moments = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Moments = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels from -1 to 1
BASELINES = ("poolformerv2", "identityformer", "randformer", "convformer", "caformer")
# Words by which the authors' files call presets of ours.
ALIASES = {
    "poolformer_s12_identity": "metaformer id",
    **{f"poolformer_s12_{mixers}": f"metaformer {mixers}" for mixers in ("pppa", "ppaa", "pppf", "ppff")},
}
SIZE = re.compile(r"(mu|xs|ti|s|m|b|l|h|so\d+m|giant|gigantic|e)\d+")  # in a preset's name, with or without patches
Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recognised:
    """A backbone's weights in a layout that `load_weights` reads, and what they may be.

    Attributes:
        release: whose file it is, for people.
        fitting: presets and options that have these names and shapes, each of which computes something else.
        proven: whether the release has no other model of these names and shapes than those of `fitting`.
        image_size: pixels; None where no tensor depends on it.
        moments: mean and standard deviation of its images, as the release's code normalises them.
        left_out: tensors that do not belong to the backbone.
        unfit: where `fitting` is empty, why.
    """

    release: str
    fitting: dict[str, dict[str, Any]]
    layout: str
    state: dict[str, Tensor]
    classes: int | None
    channels: int
    image_size: int | None
    moments: Moments | None = None
    left_out: list[str] = field(default_factory=list)
    proven: bool = True
    unfit: str = ""

    def choose(self, told: str) -> tuple[str, bool]:
        """The one that fits, or that the words of a file's name (`told`) single out; whether it was these that did.

        Raises ModelError, which lists all that fit, where neither does.
        """
        if not self.fitting:
            raise ModelError(f"{self.release}: {self.unfit}")
        if len(self.fitting) == 1 and self.proven:
            return next(iter(self.fitting)), False
        words = set(re.split(r"[^a-z0-9+]+", told.lower()))
        said = [(name, len(mine)) for name in self.fitting for mine in _words(name) if mine <= words]
        most = max((count for _, count in said), default=0)
        best = list(dict.fromkeys(name for name, count in said if count == most))
        if len({_function(resolve(name, **self.fitting[name])[1]) for name in best}) == 1:
            return best[0], True
        published = [name for name in self.fitting if not ladder_of(name)]
        if len(published) == 1 and self.proven:
            return published[0], False
        few = "; ".join(sorted(self.fitting))
        raise ModelError(
            f"{self.release}: names and shapes do not determine the model, and neither does the file name. "
            f"They fit {few}: name one with --model"
        )


def _words(preset: str) -> Iterable[set[str]]:
    """The words that stand for a preset in the name of a file, whatever its size."""
    yield {word for word in preset.split("_") if not SIZE.fullmatch(word)} - {"token"}
    if preset in ALIASES:
        yield set(ALIASES[preset].split())


Test = Callable[[Named], bool]
Reader = Callable[[Named], Recognised | None]


def recognise(state: Mapping[str, Tensor]) -> Recognised | None:
    """What `state` holds; None where its names are of no layout that is known here, or incomplete.

    Known are ViTs of big_vision and AugReg, MAE, DeiT, PoolFormer and its hybrids, the MetaFormer baselines, and timm's
    ViTs, MetaFormers and NFNets.
    """
    rules: tuple[tuple[Test, Reader], ...] = (
        (lambda names: any(name.endswith("embedding/kernel") for name in names), _flax),
        (is_poolformer, lambda state: _metaformer(from_poolformer(state), "PoolFormer", ("poolformer",))),
        (is_baseline, lambda state: _metaformer(from_baseline(state), "MetaFormer baselines", BASELINES)),
        (
            lambda names: {"stem.conv.weight", "stages.0.blocks.0.norm1.weight"} <= set(names),
            lambda state: _metaformer(state, "timm's names of a MetaFormer", ("poolformer", *BASELINES)),
        ),
        (lambda names: "blocks.0.attn.qkv.weight" in names and "patch_embed.proj.weight" in names, _plain_vit),
        (
            lambda names: {"stem.conv4.gain", "final_conv.weight", "stages.0.0.attn_last.fc1.weight"} <= set(names),
            _nfnet,
        ),
    )
    try:
        return next((read(state) for applies, read in rules if applies(state)), None)
    except (KeyError, IndexError, ValueError):  # some tensor that the release has is not there, or of another shape
        return None


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
    if "pre_logits/weight" in arrays:
        options["representation_size"] = len(arrays["pre_logits/weight"])
    if "pos_embedding" in arrays:
        image_size = math.isqrt(arrays["pos_embedding"].shape[1]) * patch  # a class token's makes no other root
    else:  # fixed ones are not stored; the release that has them is for 224 px (arXiv 2205.01580)
        image_size = 224 // patch * patch
        options["positions"] = "sincos"
    return Recognised(
        release="big_vision or AugReg",
        fitting={"vit_b16": options},
        layout="flax",
        state=dict(state),
        classes=len(arrays["head/bias"]) if "head/bias" in arrays else None,
        channels=channels,
        image_size=image_size,
        moments=HALF if channels == 3 else None,
    )


def _plain_vit(state: Mapping[str, Tensor]) -> Recognised | None:
    encoder, left_out = without_decoder(state)
    width, channels, patch, _ = encoder["patch_embed.proj.weight"].shape
    depth, mlp = _count(encoder, r"blocks\.(\d+)\."), len(encoder["blocks.0.mlp.fc1.bias"])
    prefix = int("cls_token" in encoder) + int("dist_token" in encoder)
    last, of_mae, distilled = "fc_norm.weight" in encoder, bool(left_out), "head_dist.weight" in encoder
    side = math.isqrt(encoder["pos_embed"].shape[1] - prefix)
    if side * side != encoder["pos_embed"].shape[1] - prefix:
        raise ModelError(f"{encoder['pos_embed'].shape[1] - prefix} positions are not of a square image")
    options: dict[str, Any] = {
        "prefix_tokens": prefix,
        "pool": "gap" if last or not prefix else "token",
        "pool_first": last,
        "distilled": distilled,
    }
    # Query, key and value are one matrix, which does not tell heads: they are those of the papers' model of that size.
    fitting: dict[str, dict[str, Any]] = {}
    is_published = False
    for family in ("mae",) if of_mae else ("deit",) if distilled else ("deit", "mae", "vit"):
        presets = [(name, c) for name, c in FAMILIES[family].items() if isinstance(c, MetaFormerConfig)]
        alike = ("distilled", "pool")
        presets.sort(key=lambda row: (row[1].stem_stride != patch, *(getattr(row[1], k) != options[k] for k in alike)))
        same = ((name, heads) for name, config in presets if (heads := _heads(config, width, depth, mlp)))
        name, heads = next(same, ("", 0))
        is_published |= bool(name)
        if not name and family in ("mae", "vit"):  # of another size of the papers, under the code of this family
            base = presets[0][0]
            other = (heads for _, config in PRESETS.values() if (heads := _heads(config, width, depth, mlp)))
            name, heads = base, next(other, 0)
        if heads:
            fitting[name] = options | _vit_options(width, depth, heads, patch, mlp)
    return Recognised(
        release="MAE" if of_mae else "DeiT" if distilled else "timm's names of a ViT",
        fitting=fitting,
        layout="timm",
        state=encoder,
        classes=_classes(encoder, "head.bias"),
        channels=channels,
        image_size=side * patch,
        moments=IMAGENET if of_mae or distilled else None,
        left_out=left_out,
        proven=(of_mae or distilled) and is_published,
        unfit=f"names and shapes do not tell the attention heads of a ViT of width {width}, depth {depth} and MLPs of "
        f"{mlp}, and no preset is of that size",
    )


def _metaformer(named: Mapping[str, Tensor], release: str, families: tuple[str, ...]) -> Recognised | None:
    channels, classes = named["stem.conv.weight"].shape[1], None
    for bias in ("head.fc.fc2.bias", "head.fc.bias"):
        classes = classes or _classes(named, bias)
    sizes, image_size = _stages(named), _square_side(named)
    fitting: dict[str, dict[str, Any]] = {}
    seen: set[Config] = set()
    unfit = ""
    presets = [row for family in families for row in FAMILIES[family].items()]
    presets.sort(key=lambda row: any(getattr(row[1], key) != sizes[key] for key in ("depths", "widths")))
    for name, config in presets:
        if not isinstance(config, MetaFormerConfig) or len(config.depths) != len(sizes["depths"]):
            continue
        if config.stem_kernel != named["stem.conv.weight"].shape[-1]:
            continue
        own = TIMMS_OWN.get(PRESETS[name][0], {}) if release.startswith("timm") else {}
        options = {**sizes, **own, "mlp_head": "head.fc.fc1.weight" in named}
        options["heads"] = tuple(
            heads if heads == 1 else max(1, new * heads // width)
            for heads, new, width in zip(config.heads, sizes["widths"], config.widths, strict=True)
        )
        has_scale = "stages.0.blocks.0.layer_scale1.scale" in named
        options["layer_scale"] = (config.layer_scale or 1e-5) if has_scale else None
        kind = _function(replace(config, **options))
        if kind in seen:
            continue
        seen.add(kind)
        shape = {"num_classes": classes or 1, "image_size": image_size or 224, "in_channels": channels}
        try:
            with torch.device("meta"):
                model = create_model(name, **shape, **options)
        except ModelError:
            continue  # these sizes do not go with it
        problems = misfits(model, named, "timm", head=classes is not None)
        if problems:
            unfit = unfit or f"no preset has these names and shapes; {name} has {problems}"
        else:
            fitting[name] = {key: value for key, value in options.items() if getattr(config, key) != value}
    return Recognised(
        release=release,
        fitting=fitting,
        layout="timm",
        state=dict(named),
        classes=classes,
        channels=channels,
        image_size=image_size,
        moments=IMAGENET,
        unfit=unfit or "no preset has as many stages and such a stem",
    )


def _function(config: Config) -> Config:
    """`config` without what only training and initial weights look at: equal ones compute the same."""
    if not isinstance(config, MetaFormerConfig):
        return config
    scale, positions = None if config.layer_scale is None else 1.0, "" if config.positions != "none" else "none"
    return replace(config, init="", drop_path=0.0, dropout=0.0, layer_scale=scale, positions=positions)


def _square_side(named: Named) -> int | None:
    """Pixels of a side of the square images for which positions, or mixers of tokens, were made; None without any."""
    for name, tensor in named.items():
        found = re.fullmatch(r"stages\.(\d+)\.(pos_embed|blocks\.0\.token_mixer\.(random_matrix|fc\.weight))", name)
        if found:
            side = math.isqrt(tensor.shape[1])
            if side * side != tensor.shape[1]:
                raise ModelError(f"{name} of {tensor.shape[1]} cells is not of a square image")
            return side * (4 << int(found[1]))
    return None


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
        fitting={
            preset or "nfnet_f0": TIMMS_OWN["nfnet"] | ({} if preset else _nfnet_options(state, depths, widths)),
        },
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
        raise ValueError("no stages")
    first = [named[f"stages.{k}.blocks.0.mlp.fc1.weight"] for k in range(count)]
    return {
        "depths": tuple(_count(named, rf"stages\.{k}\.blocks\.(\d+)\.") for k in range(count)),
        "widths": tuple(weight.shape[1] for weight in first),
        "mlp_widths": tuple(weight.shape[0] for weight in first),
    }


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for found in map(re.compile(pattern).match, names) if found), default=-1)


def _classes(state: Mapping[str, Tensor], bias: str) -> int | None:
    return len(state[bias]) if bias in state else None
