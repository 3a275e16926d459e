"""What a MetaFormer can be: its options, which of them go together, and the maps that they lead to."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.errors import ModelError
from isoflop.models.initialise import INITIALISERS
from isoflop.models.layers import ACTIVATIONS, NORMS
from isoflop.models.mixers import MIXERS, SET_MIXERS
from isoflop.models.positions import SINCOS


@dataclass(frozen=True)
class MetaFormerConfig:
    """What there is to choose. Tuples have one entry per stage, sizes are in pixels (stem) or cells.

    Attributes:
        mixers: keys of `MIXERS`. heads, reductions: of the mixers that have them.
        mixer_widths: hidden widths of token MLPs and gated MLPs; `mlp_widths` those of channel MLPs.
        stem_norm, down_norm, down_norm_after: norms after the stem, before and after a downsampling convolution.
        patch_merging: Swin's merging instead of a downsampling convolution.
        positions: "none", "learned" or fixed ("sincos" as big_vision's ViTs have them, "sincos_mae"), added at the
            start of every stage, or only of those of `position_stages`.
        prefix_tokens: learned tokens that join at the last stage: 1 the class token, 2 with a distillation token.
        pool: "gap" the mean, "token" the class token, "map" attention pooling.
        pool_first: the last norm comes after the mean, not before.
        last_norm, last_norm_eps: those of the last norm, where not `norm` and `norm_eps`.
        stage_norms: a norm after every stage, of which the last is the last norm anyway (PVT v2).
        layer_scale: start of the branches' factors; res_scale: start of the shortcuts' factors, per stage.
        distilled: a second head on the second token; its logits are averaged in `forward` (DeiT).
        mlp_head: a hidden layer of 4 widths before the logits, whose norm has `head_eps`, with `dropout` behind it.
        representation_size: width of a hidden layer with tanh before the logits.
        init: "vit", "mae", "trunc_normal", "poolformer", "metaformer", "lecun" or "pvt" (`initialise.py`).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    mixers: tuple[str, ...]
    heads: tuple[int, ...]
    mlp_widths: tuple[int, ...]
    mixer_widths: tuple[int, ...] | None = None
    reductions: tuple[int, ...] | None = None
    stem_kernel: int = 16
    stem_stride: int = 16
    stem_padding: int = 0
    stem_norm: str = "none"
    down_kernel: int = 3
    down_padding: int = 1
    down_norm: str = "none"
    down_norm_after: str = "none"
    patch_merging: bool = False
    positions: str = "none"
    position_stages: tuple[int, ...] | None = None
    prefix_tokens: int = 0
    pool: str = "gap"
    pool_first: bool = False
    stage_norms: bool = False
    distilled: bool = False
    mlp_head: bool = False
    head_eps: float = 1e-5
    dropout: float = 0.0
    representation_size: int | None = None
    norm: str = "layer"
    norm_eps: float = 1e-6
    last_norm: str | None = None
    last_norm_eps: float | None = None
    activation: str = "gelu"
    mixer_bias: bool = True
    qkv_bias: bool = True
    mlp_bias: bool = True
    mlp_depthwise: bool = False
    qk_norm: bool = False
    pool_size: int = 3
    kernel_size: int = 7
    window: int = 8
    layer_scale: float | None = None
    res_scale: tuple[float | None, ...] | None = None
    drop_path: float = 0.0
    residual: bool = True
    channel_mlp: bool = True
    init: str = "trunc_normal"


def grids(config: MetaFormerConfig, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of the map at every stage; ModelError where one has no cell left."""

    def after(side: int, kernel: int, stride: int, padding: int) -> int:
        return (side + 2 * padding - kernel) // stride + 1

    sides = [after(side, config.stem_kernel, config.stem_stride, config.stem_padding) for side in image_size]
    grids = [(sides[0], sides[1])]
    for _ in config.depths[1:]:
        if config.patch_merging:
            sides = [(side + 1) // 2 for side in sides]
        else:
            sides = [after(side, config.down_kernel, 2, config.down_padding) for side in sides]
        grids.append((sides[0], sides[1]))
    if min(min(grid) for grid in grids) < 1:
        raise ModelError(f"images of {image_size[0]}x{image_size[1]} pixels are too small: a stage has no cell left")
    return grids


def check(config: MetaFormerConfig, image_size: tuple[int, int]) -> None:
    """Raises ModelError, with what to change, for options that no model can have together."""
    for field in ("widths", "mixers", "heads", "mlp_widths", "mixer_widths", "reductions", "res_scale"):
        value = getattr(config, field)
        if value is not None and len(value) != len(config.depths):
            raise ModelError(f"`{field}` has {len(value)} entries for {len(config.depths)} stages")
    choices = {
        "norm": NORMS,
        "last_norm": [*NORMS, None],
        "stem_norm": NORMS,
        "down_norm": NORMS,
        "down_norm_after": NORMS,
        "activation": ACTIVATIONS,
        "positions": ("none", "learned", *SINCOS),
        "pool": ("gap", "token", "map"),
        "init": INITIALISERS,
    }
    for field, known in choices.items():
        if getattr(config, field) not in known:
            raise ModelError(f"`{field}` is one of {', '.join(map(str, known))}, not {getattr(config, field)!r}")
    for mixer in config.mixers:
        if mixer not in MIXERS:
            raise ModelError(f"`mixers` are of {', '.join(MIXERS)}, not {mixer!r}")
    if config.prefix_tokens and config.mixers[-1] not in SET_MIXERS:
        raise ModelError(f"a {config.mixers[-1]} mixer is tied to the grid and leaves no room for prefix tokens")
    if config.pool == "token" and not config.prefix_tokens:
        raise ModelError("`pool` = 'token' needs `prefix_tokens` = 1")
    if config.distilled and config.prefix_tokens != 2:
        raise ModelError("`distilled` needs `prefix_tokens` = 2: the class token and the distillation token")
    if any(side % config.stem_stride for side in image_size):
        raise ModelError(
            f"images of {image_size[0]}x{image_size[1]} pixels do not divide into patches of {config.stem_stride}"
        )
    if config.positions in SINCOS and any(width % 4 for width in config.widths):
        raise ModelError(f"sine-cosine positions need widths that are multiples of 4, not {config.widths}")
    if not set(config.position_stages or ()) <= set(range(len(config.depths))):
        raise ModelError(
            f"`position_stages` = {config.position_stages} are not all of {len(config.depths)} stages from 0"
        )
    if config.mlp_head and config.representation_size:
        raise ModelError("`mlp_head` and `representation_size` are two kinds of head: one of them")
    if config.dropout and not config.mlp_head:
        raise ModelError("`dropout` is that of the hidden layer of `mlp_head`, which this model has not")
