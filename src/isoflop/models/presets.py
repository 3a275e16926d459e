"""All backbones by name. A preset is a row of a table.

Names are `family_size` or `family_sizePATCH`, followed by the variant: `vit_b16`, `vit_b16_token`, `poolformer_s12`,
`nfnet_f4+`, `bit_r50x1`. The small models of studies have names such as `vit_w16d2p8`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from isoflop.config import REVISION
from isoflop.errors import ModelError, did_you_mean
from isoflop.models.bit import BiTConfig
from isoflop.models.metaformer import MetaFormerConfig
from isoflop.models.nfnet import NFNetConfig
from isoflop.models.resnet9 import ResNet9Config

Config = MetaFormerConfig | NFNetConfig | BiTConfig | ResNet9Config

# The ladders: models that a study compares at equal compute, by the size of the images that they are for.
#
# A name says what varies: `vit_w64d4p4` is a ViT of width 64, depth 4 and 4x4 patches; `poolformer_w16d4p4` and
# `nfnet_w16d2` count the width of the first stage and the depth of all. A ResNet's depth counts layers, as papers do:
# the stem, two a block, the classifier; its patch is the stem's stride, 1 without. Three stages are CIFAR's ResNets
# (arXiv 1512.03385, section 4.2), four ImageNet's. A ResNet-9 has one depth and a width.
#
# A ladder begins where training reaches a quarter of the rate of `F.linear` on one core: below, a step is overhead.
# `EARLIER` models are smaller, or see their images less finely: they can be named, but are of no ladder.

SIDES = (32, 64, 128)
"""Images of about so many pixels, or of more than the last, have ladders of their own."""
LADDER_ROWS: dict[str, tuple[tuple[str, str], ...]] = {  # for each of `SIDES`: the end of the names, their beginnings
    "vit": (
        ("p4", "w32d2 w32d4 w48d4 w64d4 w96d4 w128d4 w128d6 w160d6 w192d6 w256d6 w256d9 w384d8"),
        ("p8", "w32d2 w32d4 w48d4 w64d4 w96d4 w128d4 w128d6 w160d6 w192d6 w256d6 w256d9 w384d8"),
        ("p16", "w64d4 w96d4 w128d4 w128d8 w160d8 w192d12 w256d12 w320d12 w384d12 w512d12 w640d12 w768d12"),
    ),
    "poolformer": (
        ("p4", "w24d4 w32d4 w40d4 w48d4 w64d4 w64d6 w64d10 w80d10 w96d10 w128d10 w160d10 w160d18 w192d22"),
        ("p4", "w16d4 w24d4 w32d4 w32d10 w40d10 w48d10 w64d10 w80d10 w96d10 w128d10 w160d10 w160d18"),
        ("p4", "w16d12 w24d12 w32d12 w40d12 w48d12 w64d12 w80d12 w96d12 w96d24 w96d36"),
    ),
    "convformer": (
        ("p4", "w24d4 w32d4 w40d4 w48d4 w64d4 w64d6 w64d10 w80d10 w96d10 w128d10 w160d10 w160d18"),
        ("p4", "w16d4 w24d4 w32d4 w32d10 w40d10 w48d10 w64d10 w80d10 w96d10 w128d10 w160d10"),
        ("p4", "w16d12 w24d12 w32d12 w40d12 w48d12 w64d12 w80d12 w96d12 w96d24"),
    ),
    "caformer": (
        ("p4", "w24d4 w32d4 w40d4 w48d4 w64d4 w64d6 w64d10 w80d10 w96d10 w128d10 w160d10 w160d18"),
        ("p4", "w16d4 w24d4 w32d4 w32d10 w40d10 w48d10 w64d10 w80d10 w96d10 w128d10 w160d10"),
        ("p4", "w16d12 w24d12 w32d12 w40d12 w48d12 w64d12 w80d12 w96d12 w96d24"),
    ),
    "nfnet": (
        ("", "w32d2 w40d2 w48d2 w64d2 w80d2 w96d2 w128d2 w160d3 w192d3 w256d3 w256d6 w384d4 w384d8 w512d8"),
        ("", "w24d2 w32d2 w40d2 w48d2 w64d2 w80d2 w96d2 w128d2 w160d3 w192d3 w256d3 w256d6 w384d4 w384d8"),
        ("", "w16d12 w24d12 w32d12 w48d12 w64d12 w96d12 w128d12 w192d12"),
    ),
    "resnet": (
        ("", "w8d8p2 w12d8p2 w16d8p2 w24d8p2 w32d8p2 w48d8p2 w64d8p2 w64d14p2 w96d14p2 w48d18 w64d18 w80d18 w96d18"),
        ("", "w8d8p4 w12d8p4 w16d8p4 w24d8p4 w32d8p4 w48d8p4 w64d8p4 w64d14p4 w96d14p4 w48d18p2 w64d18p2 w96d18p2"),
        ("p4", "w8d18 w12d18 w16d18 w24d18 w32d18 w48d18 w64d18 w64d34 w80d34 w96d34"),
    ),
    "resnet9": (
        ("", "w4 w6 w8 w12 w16 w24 w32 w48 w64 w80 w96 w128"),
        ("p2", "w4 w6 w8 w12 w16 w24 w32 w48 w64 w80 w96 w128"),
        ("p4", "w4 w6 w8 w12 w16 w24 w32 w48 w64 w80 w96 w128"),
    ),
}  # fmt: skip
EARLIER: dict[str, tuple[tuple[str, str], ...]] = {
    "vit": (("p8", "w4d1 w4d2 w6d1 w6d2 w8d1 w8d2 w12d2 w16d2 w24d2 w24d4 w40d4 w96d3 w160d4"),),
    "poolformer": (
        ("p8", "w4d1 w4d2 w6d1 w6d2 w8d2 w12d2"),
        ("p4", "w8d2 w8d4 w12d3 w12d4 w16d4 w20d4"),
    ),
    "nfnet": (("", "w4d1 w6d1 w8d1 w6d2 w8d2 w12d2 w16d2 w20d2 w24d2"),),
    "resnet": (
        ("", "w8d14p2 w8d8 w8d14 w16d8 w16d14 w16d20 w24d18 w32d18 w40d18"),
        ("p2", "w8d8 w8d14 w16d8 w16d14 w16d20 w24d18 w32d18 w40d18"),
    ),
}  # fmt: skip
_POOLFORMER_DEPTHS = {
    1: (1,), 2: (1, 1), 3: (1, 2), 4: (2, 2), 6: (2, 4), 10: (2, 6, 2), 18: (3, 12, 3), 22: (4, 14, 4),
    12: (2, 2, 6, 2), 24: (4, 4, 12, 4), 36: (6, 6, 18, 6),
}  # fmt: skip
DEPTHS: dict[str, dict[int, tuple[int, ...]]] = {  # of each stage, by the depth in the name
    **dict.fromkeys(("poolformer", "convformer", "caformer"), _POOLFORMER_DEPTHS),
    "nfnet": {1: (1,), 2: (1, 1), 3: (1, 2), 4: (1, 3), 6: (2, 4), 8: (2, 6), 12: (1, 2, 6, 3)},
    "resnet": {8: (1,) * 3, 14: (2,) * 3, 20: (3,) * 3, 18: (2,) * 4, 34: (3, 4, 6, 3)},
}  # fmt: skip


def _small(name: str) -> Config:
    """The model that a name of the ladders' grammar stands for."""
    if found := re.fullmatch(r"resnet9_w(\d+)(?:p(\d+))?", name):
        return ResNet9Config(int(found[1]), int(found[2] or 1))
    found = re.fullmatch(r"([a-z]+)_w(\d+)d(\d+)(?:p(\d+))?", name)
    assert found is not None, name
    family, width, depth, patch = found[1], int(found[2]), int(found[3]), int(found[4] or 1)
    if family == "vit":  # heads are 16 wide, 32 from width 64 on
        return MetaFormerConfig(
            depths=(depth,), widths=(width,), mixers=("attention",), mlp_widths=(4 * width,),
            heads=(max(1, width // 32) if width >= 64 else max(1, width // 16),),
            stem_kernel=patch, stem_stride=patch, positions="learned", init="vit",
        )  # fmt: skip
    depths = DEPTHS[family][depth]
    count = len(depths)
    if family == "resnet":
        return BiTConfig(depths, width=width, basic=True, stem_stride=patch, group_width=16)
    if family == "nfnet":
        four = count == 4  # as F0; fewer stages stay at the stem's resolution, a single one halves it
        return NFNetConfig(
            depths=depths,
            widths=(width, 2 * width, 6 * width, 6 * width) if four else (width, 2 * width)[:count],
            strides=(1, 2, 2, 2) if four else (1, 2)[-count:],
            stem_widths=tuple(max(8, width // k) for k in (16, 8, 4, 2)) if four else (max(4, width // 2), width),
            stem_strides=(2, 1, 1, 2) if four else (2, 2),
            final_width=12 * width if four else 4 * width, group_width=64, drop_path=0.0, dropout=0.0,
        )  # fmt: skip
    widths = tuple(width * 2**stage for stage in range(count))
    more: dict[str, Any] = {"mixers": ("pooling",) * count, "norm": "group", "norm_eps": 1e-5, "init": "poolformer"}
    if family != "poolformer":
        attention = 0 if family == "convformer" else (count + 1) // 2
        more = BASELINE | {
            "mixers": ("separable_conv",) * (count - attention) + ("attention",) * attention,
            "heads": tuple(max(1, w // 32) for w in widths),
            "norm": "layer_without_bias",
            "res_scale": (None,) * (count // 2) + (1.0,) * (count - count // 2),
        }
    if count == 4:
        more |= {"stem_kernel": 7, "stem_padding": 2}
    return MetaFormerConfig(
        **{"depths": depths, "widths": widths, "mlp_widths": tuple(4 * w for w in widths), "heads": (1,) * count,
           "stem_kernel": patch, "stem_stride": patch, **more}
    )  # fmt: skip


BASELINE: dict[str, Any] = {  # what the MetaFormer baselines have in common (arXiv 2210.13452)
    "activation": "star_relu", "mixer_bias": False, "qkv_bias": False, "mlp_bias": False,
    "stem_norm": "layer_without_bias", "down_norm": "layer_without_bias", "last_norm": "layer", "pool_first": True,
    "init": "metaformer",
}  # fmt: skip


def _names(family: str, rows: tuple[tuple[str, str], ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{family}_{row}{end}" for row in beginnings.split()) for end, beginnings in rows)


LADDERS: dict[str, tuple[tuple[str, ...], ...]] = {family: _names(family, rows) for family, rows in LADDER_ROWS.items()}
SMALL_MODELS: dict[str, dict[str, Config]] = {
    family: {name: _small(name) for names in (*_names(family, EARLIER.get(family, ())), *ladders) for name in names}
    for family, ladders in LADDERS.items()
}


def family_ladder(family: str, image_size: int = 32) -> tuple[str, ...]:
    """Names of the presets of a family that studies compare, ascending in FLOPs per image, for images of that size.

    Raises ModelError when the family has no ladder, or its stems do not divide `image_size`.
    """
    if family not in LADDERS:
        raise ModelError(f"there is a ladder of {', '.join(LADDERS)}, not of {family!r}{did_you_mean(family, LADDERS)}")
    if image_size % 8:
        raise ModelError(f"ladder models need an image size that is a multiple of 8, not {image_size}")
    nearest = min(range(len(SIDES)), key=lambda k: abs(SIDES[k] - image_size))
    return LADDERS[family][nearest]


def ladder_of(preset: str, image_size: int = 32) -> tuple[str, ...]:
    """The ladder, for images of that size, of the family that `preset` is a small model of; () for other presets.

    With `EARLIER` models below it where `preset` is one of them and not on the ladder.
    """
    family = PRESETS[preset][0] if preset in PRESETS else ""
    if preset not in SMALL_MODELS.get(family, ()):
        return ()
    ladder = family_ladder(family, image_size)
    earlier = tuple(name for names in _names(family, EARLIER.get(family, ())) for name in names)
    is_earlier = preset in earlier and preset not in ladder
    return (*earlier, *(name for name in ladder if name not in earlier)) if is_earlier else ladder


# --- one stage of tokens -------------------------------------------------------------------------------------------


def _isotropic(mixer: str, width: int, depth: int, patch: int, mlp: int, **more: Any) -> Config:
    more = {"heads": (1,), "init": "lecun", **more}
    return MetaFormerConfig(
        depths=(depth,),
        widths=(width,),
        mixers=(mixer,),
        mlp_widths=(mlp,),
        stem_kernel=patch,
        stem_stride=patch,
        **more,
    )


# size: width, depth, MLP width, heads, patches (arXiv 2010.11929, 2106.04560, 2305.13035). Two sizes are called "s" and
# two "g" in the papers: xs is the 256 wide one of 2106.04560, giant and gigantic are its g and G.
VIT = {
    "mu": (32, 1, 128, 2, (16, 32)),
    "xs": (256, 6, 1024, 8, (16, 28, 32)),
    "ti": (192, 12, 768, 3, (16,)),
    "s": (384, 12, 1536, 6, (8, 14, 16, 28, 32)),
    "m": (512, 12, 2048, 8, (16,)),
    "b": (768, 12, 3072, 12, (8, 14, 16, 28, 32)),
    "l": (1024, 24, 4096, 16, (14, 16, 32)),
    "so150m": (880, 18, 2320, 16, (14, 16)),
    "so400m": (1152, 27, 4304, 16, (14, 16)),
    "h": (1280, 32, 5120, 16, (14, 16)),
    "giant": (1408, 40, 6144, 16, (14,)),
    "gigantic": (1664, 48, 8192, 16, (14,)),
    "e": (1792, 56, 15360, 16, (14,)),
}
# How the tokens become one vector: the mean (no suffix), a class token, or attention pooling.
VIT_HEADS: dict[str, dict[str, Any]] = {
    "": {"pool": "gap"},
    "_token": {"pool": "token", "prefix_tokens": 1},
    "_map": {"pool": "map"},
}
# Masked autoencoders (arXiv 2111.06377) have a class token and fixed positions.
MAE = {"b": 16, "l": 16, "h": 14}
DEIT = ("ti", "s", "b")
MIXER = {  # width, depth, token MLP, channel MLP, patches (arXiv 2105.01601, table 1)
    "s": (512, 8, 256, 2048, (16, 32)),
    "b": (768, 12, 384, 3072, (16, 32)),
    "l": (1024, 24, 512, 4096, (16, 32)),
    "h": (1280, 32, 640, 5120, (14,)),
}
# width, depth, patch, start of LayerScale (arXiv 2105.03404)
RESMLP = {
    "s12": (384, 12, 16, 0.1),
    "s24": (384, 24, 16, 1e-5),
    "s36": (384, 36, 16, 1e-6),
    "b24": (768, 24, 16, 1e-6),
    "b24_8": (768, 24, 8, 1e-6),
}
GMLP = {"ti16": 128, "s16": 256, "b16": 512}  # width; 30 blocks, six times as wide inside (arXiv 2105.08050, table 1)


def _vit(size: str, patch: int, **more: Any) -> Config:
    width, depth, mlp, heads, _ = VIT[size]
    more = {"init": "vit", "positions": "learned", **more}
    return _isotropic("attention", width, depth, patch, mlp, heads=(heads,), **more)


def _vits() -> dict[str, dict[str, Config]]:
    deit: dict[str, Any] = {"init": "trunc_normal", "pool": "token", "drop_path": 0.1}
    return {
        "vit": {
            f"vit_{size}{patch}{suffix}": _vit(size, patch, **head)
            for size, row in VIT.items()
            for patch in row[4]
            for suffix, head in VIT_HEADS.items()
        },
        "mae": {
            f"mae_{size}{patch}": _vit(size, patch, positions="sincos_mae", init="mae", **VIT_HEADS["_token"])
            for size, patch in MAE.items()
        },
        "deit": {f"deit_{size}16": _vit(size, 16, prefix_tokens=1, **deit) for size in DEIT}
        | {f"deit_{size}16_distilled": _vit(size, 16, prefix_tokens=2, distilled=True, **deit) for size in DEIT},
        "mixer": {
            f"mixer_{size}{patch}": _isotropic("token_mlp", width, depth, patch, mlp, mixer_widths=(token_mlp,))
            for size, (width, depth, token_mlp, mlp, patches) in MIXER.items()
            for patch in patches
        },
        "resmlp": {
            f"resmlp_{size}": _isotropic(
                "token_linear", width, depth, patch, 4 * width, norm="affine", layer_scale=scale, init="trunc_normal"
            )
            for size, (width, depth, patch, scale) in RESMLP.items()
        },
        "gmlp": {
            f"gmlp_{size}": _isotropic("gated_mlp", width, 30, 16, 6 * width, channel_mlp=False)
            for size, width in GMLP.items()
        },
        "fnet": {
            f"fnet_{size}16": _isotropic("fourier", VIT[size][0], VIT[size][1], 16, VIT[size][2], init="vit")
            for size in ("s", "b", "l")
        },
    }


# --- four stages ---------------------------------------------------------------------------------------------------

SMALL, MEDIUM = (64, 128, 320, 512), (96, 192, 384, 768)
# depths, widths, stochastic depth, start of LayerScale (arXiv 2111.11418, table 1)
POOLFORMER = {
    "s12": ((2, 2, 6, 2), SMALL, 0.1, 1e-5),
    "s24": ((4, 4, 12, 4), SMALL, 0.1, 1e-5),
    "s36": ((6, 6, 18, 6), SMALL, 0.2, 1e-6),
    "m36": ((6, 6, 18, 6), MEDIUM, 0.3, 1e-6),
    "m48": ((8, 8, 24, 8), MEDIUM, 0.4, 1e-6),
}
P, A, F = "pooling", "attention", "token_linear"
# What the paper changes on S12 (table 5). Attention has a bias behind it and none in front, and comes with LayerNorm in
# the whole model and positions in one stage, as in the authors' code.
ATTENTION: dict[str, Any] = {"qkv_bias": False, "norm": "layer", "positions": "learned"}
ABLATIONS: dict[str, dict[str, Any]] = {
    "identity": {"mixers": ("identity",) * 4},
    "random": {"mixers": ("random",) * 4},
    "depthwise": {"mixers": ("depthwise",) * 4},
    "pool5": {"pool_size": 5},
    "pool7": {"pool_size": 7},
    "pool9": {"pool_size": 9},
    "layernorm": {"norm": "layer"},
    "batchnorm": {"norm": "batch"},
    "nonorm": {"norm": "none"},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "noresidual": {"residual": False},
    "nomlp": {"channel_mlp": False},
    "pppa": {"mixers": (P, P, P, A), "heads": (1, 1, 1, 16), **ATTENTION, "position_stages": (3,)},
    "ppaa": {"mixers": (P, P, A, A), "heads": (1, 1, 10, 16), **ATTENTION, "position_stages": (2,)},
    "pppf": {"mixers": (P, P, P, F), "mixer_bias": False},
    "ppff": {"mixers": (P, P, F, F), "mixer_bias": False},
}
# MetaFormer baselines (arXiv 2210.13452, tables 1 and 2): mixers by family, depths and widths by size.
BASELINE_MIXERS = {
    "identityformer": ("identity",) * 4,
    "randformer": ("identity", "identity", "random", "random"),
    "poolformerv2": ("pooling",) * 4,
}
CONV_MIXERS = {
    "convformer": ("separable_conv",) * 4,
    "caformer": ("separable_conv", "separable_conv", "attention", "attention"),
}
CONV_SIZES = {
    "s18": ((3, 3, 9, 3), SMALL),
    "s36": ((3, 12, 18, 3), SMALL),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}
# stochastic depth and dropout in the head, by size (authors' scripts)
CONV_RATES = {
    "convformer": ((0.2, 0.0), (0.3, 0.0), (0.4, 0.0), (0.6, 0.0)),
    "caformer": ((0.15, 0.0), (0.3, 0.4), (0.4, 0.4), (0.6, 0.5)),
}
PVT_HEADS, PVT_REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)
# depths; widths are those of PoolFormer S (arXiv 2102.12122, table 1)
PVT = {"ti": (2, 2, 2, 2), "s": (3, 4, 6, 3), "m": (3, 4, 18, 3), "l": (3, 8, 27, 3)}
# depths, width of the first stage in 32nds, MLP ratios (arXiv 2106.13797, table 1)
PVT_V2 = {
    "b0": ((2, 2, 2, 2), 1, (8, 8, 4, 4)),
    "b1": ((2, 2, 2, 2), 2, (8, 8, 4, 4)),
    "b2": ((3, 4, 6, 3), 2, (8, 8, 4, 4)),
    "b3": ((3, 4, 18, 3), 2, (8, 8, 4, 4)),
    "b4": ((3, 8, 27, 3), 2, (8, 8, 4, 4)),
    "b5": ((3, 6, 40, 3), 2, (4, 4, 4, 4)),
}
# first width, depths, width of a head (arXiv 2103.14030, table 7)
SWIN_MIXER = {
    "t_d24": (96, (2, 2, 6, 2), 24),
    "t_d12": (96, (2, 2, 6, 2), 12),
    "t_d6": (96, (2, 2, 6, 2), 6),
    "b_d24": (128, (2, 2, 18, 2), 32),
}


def _stages(mixers: tuple[str, ...], depths: tuple[int, ...], widths: tuple[int, ...], **more: Any) -> Config:
    more = {"mlp_widths": tuple(4 * w for w in widths), "heads": (1,) * 4, "stem_kernel": 7, "stem_padding": 2, **more}
    return MetaFormerConfig(depths=depths, widths=widths, mixers=mixers, stem_stride=4, **more)


def _poolformers() -> dict[str, Config]:
    plain = {
        size: _stages(
            (P,) * 4, depths, widths, norm="group", norm_eps=1e-5, drop_path=drop, layer_scale=scale, init="poolformer"
        )
        for size, (depths, widths, drop, scale) in POOLFORMER.items()
    }
    ablated = {f"poolformer_s12_{name}": replace(plain["s12"], **changes) for name, changes in ABLATIONS.items()}
    return {f"poolformer_{size}": config for size, config in plain.items()} | ablated


def _baseline(mixers: tuple[str, ...], depths: tuple[int, ...], widths: tuple[int, ...], **more: Any) -> Config:
    return _stages(mixers, depths, widths, res_scale=(None, None, 1.0, 1.0), **BASELINE, **more)


def _baselines() -> dict[str, dict[str, Config]]:
    plain: dict[str, dict[str, Config]] = {
        family: {
            f"{family}_{size}": _baseline(mixers, depths, widths, drop_path=drop, norm="group_without_bias")
            for size, (depths, widths, drop, _) in POOLFORMER.items()
        }
        for family, mixers in BASELINE_MIXERS.items()
    }
    conv: dict[str, dict[str, Config]] = {
        family: {
            f"{family}_{size}": _baseline(
                mixers, depths, widths, drop_path=drop, dropout=dropout, norm="layer_without_bias", mlp_head=True,
                heads=tuple(width // 32 for width in widths),
            )
            for (size, (depths, widths)), (drop, dropout) in zip(CONV_SIZES.items(), CONV_RATES[family], strict=True)
        }
        for family, mixers in CONV_MIXERS.items()
    }  # fmt: skip
    return plain | conv


def _pyramids() -> dict[str, dict[str, Config]]:
    reduced: dict[str, Any] = {
        "mixers": ("reduced_attention",) * 4, "heads": PVT_HEADS, "reductions": PVT_REDUCTIONS, "drop_path": 0.1,
    }  # fmt: skip
    pvt: dict[str, Config] = {
        f"pvt_{size}": _stages(
            depths=depths, widths=SMALL, mlp_widths=(512, 1024, 1280, 2048), stem_kernel=4, stem_padding=0,
            stem_norm="layer", down_kernel=2, down_padding=0, down_norm_after="layer",
            positions="learned", prefix_tokens=1, pool="token", **reduced,
        )
        for size, depths in PVT.items()
    }  # fmt: skip
    v2: dict[str, Config] = {
        f"pvt_v2_{size}": _stages(
            depths=depths, widths=tuple(32 * unit * k for k in (1, 2, 5, 8)),
            mlp_widths=tuple(32 * unit * k * ratio for k, ratio in zip((1, 2, 5, 8), ratios, strict=True)),
            stem_padding=3, stem_norm="layer", down_norm_after="layer", stage_norms=True, mlp_depthwise=True,
            init="pvt", **reduced,
        )
        for size, (depths, unit, ratios) in PVT_V2.items()
    }  # fmt: skip
    swin: dict[str, Config] = {
        f"swin_mixer_{size}": _stages(
            ("window_mlp",) * 4, depths, tuple(width * 2**k for k in range(4)),
            heads=tuple(width * 2**k // head for k in range(4)), stem_kernel=4, stem_padding=0, stem_norm="layer",
            norm_eps=1e-5, patch_merging=True, drop_path=0.2,
        )
        for size, (width, depths, head) in SWIN_MIXER.items()
    }  # fmt: skip
    return {"pvt": pvt, "pvt_v2": v2, "swin_mixer": swin}


# --- convolutional networks ----------------------------------------------------------------------------------------

# N, dropout (arXiv 2102.06171, table 1)
NFNET = {"f0": 0.2, "f1": 0.3, "f2": 0.4, "f3": 0.4, "f4": 0.5, "f5": 0.5, "f6": 0.5, "f7": 0.5}
BIT = {"r50": ((3, 4, 6, 3), (1, 3)), "r101": ((3, 4, 23, 3), (1, 3)), "r152": ((3, 8, 36, 3), (2, 4))}


def _nfnets() -> dict[str, Config]:
    plain: dict[str, Config] = {
        f"nfnet_{size}": NFNetConfig(depths=(n, 2 * n, 6 * n, 3 * n), dropout=dropout)
        for n, (size, dropout) in enumerate(NFNET.items(), start=1)
    }
    wide: dict[str, Any] = {"widths": (384, 768, 2048, 2048), "stem_widths": (16, 32, 64, 192), "final_width": 4096}
    return plain | {f"nfnet_{size}+": replace(plain[f"nfnet_{size}"], **wide) for size in ("f3", "f4", "f7")}


FAMILIES: dict[str, dict[str, Config]] = {
    **_vits(),
    "poolformer": _poolformers(),
    **_baselines(),
    **_pyramids(),
    "nfnet": _nfnets(),
    "bit": {f"bit_{size}x{k}": BiTConfig(depths, k) for size, (depths, factors) in BIT.items() for k in factors},
}
for _family, _ladder in SMALL_MODELS.items():
    FAMILIES[_family] = {**FAMILIES.get(_family, {}), **_ladder}

PRESETS: dict[str, tuple[str, Config]] = {
    name: (family, config) for family, models in FAMILIES.items() for name, config in models.items()
}

# What a family, or one preset, was in revision 1 (`ModelConfig.revision`), where that was something else.
CONVOLUTIONS_TOO: dict[str, Any] = {"init": "metaformer"}
GROUP_WITHOUT_POSITIONS: dict[str, Any] = {"norm": "group", "positions": "none", "position_stages": None}
TIMMS_HEAD: dict[str, Any] = {"head_eps": 1e-6, "dropout": 0.0}
REVISION_1: dict[str, dict[str, Any]] = {
    "nfnet": {"activation": "gelu", "scale_by_keep": True},
    "mae": {"init": "vit"},
    **dict.fromkeys(("deit", "resmlp", "poolformer", "pvt", "swin_mixer"), CONVOLUTIONS_TOO),
    **dict.fromkeys(("convformer", "caformer"), TIMMS_HEAD),
    **dict.fromkeys(("poolformer_s12_pppa", "poolformer_s12_ppaa"), CONVOLUTIONS_TOO | GROUP_WITHOUT_POSITIONS),
}


def as_of(revision: int, name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """`overrides` of the preset `name`, with what makes it the model of that `revision`."""
    if revision == REVISION:
        return overrides
    changes = {**REVISION_1.get(name, REVISION_1.get(PRESETS[name][0], {})), **overrides}
    if changes.get("positions") == "sincos":
        changes["positions"] = "sincos_mae"
    return changes
