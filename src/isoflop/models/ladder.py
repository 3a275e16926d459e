"""Rows of the ladders: small models, made for images of about 32 px, from 2e5 to 1e9 FLOPs an image.

A name says what varies: `vit_w16d2p8` is a ViT of width 16, depth 2 and 8x8 patches; `poolformer_w16d4p4` and
`nfnet_w16d2` count the width of the first stage and the depth of all.
"""

from __future__ import annotations

from isoflop.errors import ModelError, did_you_mean
from isoflop.models.metaformer_config import MetaFormerConfig
from isoflop.models.nfnet import NFNetConfig

# width, depth, patch; heads are 16 wide, 32 from width 64 on
VIT_LADDER = (
    (4, 1, 8), (4, 2, 8), (6, 1, 8), (6, 2, 8), (8, 1, 8), (8, 2, 8), (12, 2, 8), (16, 2, 8), (24, 2, 8), (24, 4, 8),
    (32, 4, 8), (40, 4, 8), (48, 4, 8), (64, 4, 8), (96, 3, 8), (96, 4, 8), (128, 4, 8), (160, 4, 8), (96, 4, 4),
    (128, 4, 4), (128, 6, 4), (160, 6, 4), (192, 6, 4), (256, 6, 4), (256, 9, 4),
)  # fmt: skip
# first width, depth of each stage, patch; each stage is twice as wide as the one before, at half the resolution
POOLFORMER_LADDER = (
    (4, (1,), 8), (4, (1, 1), 8), (6, (1,), 8), (6, (1, 1), 8), (8, (1, 1), 8), (12, (1, 1), 8), (8, (1, 1), 4),
    (8, (2, 2), 4), (12, (1, 2), 4), (12, (2, 2), 4), (16, (2, 2), 4), (20, (2, 2), 4), (24, (2, 2), 4),
    (32, (2, 2), 4), (40, (2, 2), 4), (48, (2, 2), 4), (64, (2, 2), 4), (64, (2, 4), 4), (64, (2, 6, 2), 4),
    (80, (2, 6, 2), 4), (96, (2, 6, 2), 4), (128, (2, 6, 2), 4), (160, (2, 6, 2), 4), (160, (3, 12, 3), 4),
    (192, (4, 14, 4), 4),
)  # fmt: skip
# first width, depth of each stage; the first stage of two keeps its resolution, a single one halves it
NFNET_LADDER = (
    (4, (1,)), (6, (1,)), (8, (1,)), (6, (1, 1)), (8, (1, 1)), (12, (1, 1)), (16, (1, 1)), (20, (1, 1)), (24, (1, 1)),
    (32, (1, 1)), (40, (1, 1)), (48, (1, 1)), (64, (1, 1)), (80, (1, 1)), (96, (1, 1)), (128, (1, 1)), (160, (1, 2)),
    (192, (1, 2)), (256, (1, 2)), (256, (2, 4)), (384, (1, 3)), (384, (2, 6)), (512, (2, 6)),
)  # fmt: skip


def _vit(width: int, depth: int, patch: int) -> MetaFormerConfig:
    return MetaFormerConfig(
        depths=(depth,), widths=(width,), mixers=("attention",), mlp_widths=(4 * width,),
        heads=(max(1, width // 32) if width >= 64 else max(1, width // 16),),
        stem_kernel=patch, stem_stride=patch, positions="learned", init="vit",
    )  # fmt: skip


def _poolformer(width: int, depths: tuple[int, ...], patch: int) -> MetaFormerConfig:
    widths = tuple(width * 2**stage for stage in range(len(depths)))
    return MetaFormerConfig(
        depths=depths, widths=widths, mixers=("pooling",) * len(depths), mlp_widths=tuple(4 * w for w in widths),
        heads=(1,) * len(depths), stem_kernel=patch, stem_stride=patch, norm="group", norm_eps=1e-5, init="poolformer",
    )  # fmt: skip


def _nfnet(width: int, depths: tuple[int, ...]) -> NFNetConfig:
    return NFNetConfig(
        depths=depths, widths=(width, 2 * width)[: len(depths)], strides=(1, 2)[-len(depths) :],
        stem_widths=(max(4, width // 2), width),
        stem_strides=(2, 2), final_width=4 * width, group_width=64, drop_path=0.0, dropout=0.0,
    )  # fmt: skip


LADDERS: dict[str, dict[str, MetaFormerConfig | NFNetConfig]] = {
    "vit": {f"vit_w{w}d{depth}p{p}": _vit(w, depth, p) for w, depth, p in VIT_LADDER},
    "poolformer": {
        f"poolformer_w{w}d{sum(depths)}p{p}": _poolformer(w, depths, p) for w, depths, p in POOLFORMER_LADDER
    },
    "nfnet": {f"nfnet_w{w}d{sum(depths)}": _nfnet(w, depths) for w, depths in NFNET_LADDER},
}


def family_ladder(family: str, image_size: int = 32) -> tuple[str, ...]:
    """Names of the small presets of a family, ascending in FLOPs per image, for images of about 32 px.

    Raises ModelError when the family has no ladder, or its stems do not divide `image_size`.
    """
    if family not in LADDERS:
        raise ModelError(f"there is a ladder of {', '.join(LADDERS)}, not of {family!r}{did_you_mean(family, LADDERS)}")
    if image_size % 8:
        raise ModelError(f"ladder models need an image size that is a multiple of 8, not {image_size}")
    return tuple(LADDERS[family])


def ladder_of(preset: str) -> tuple[str, ...]:
    """The ladder that `preset` is a rung of, ascending in FLOPs per image; () for a preset of none."""
    return next((tuple(ladder) for ladder in LADDERS.values() if preset in ladder), ())
