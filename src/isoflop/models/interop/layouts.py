"""Which layouts there are, and what they call the tensors of a model of ours."""

from __future__ import annotations

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.interop.flax import FLAX
from isoflop.models.interop.huggingface_names import HUGGINGFACE, file_name
from isoflop.models.interop.rules import Rules, translate
from isoflop.models.interop.timm_names import TIMM, VIT
from isoflop.models.metaformer import MetaFormer

LAYOUTS: dict[str, dict[str, Rules]] = {"timm": TIMM, "huggingface": HUGGINGFACE, "flax": FLAX}
# The position table and the prefix tokens of the last stage: they are sums of two of theirs, so no rule fits.
PREFIXES = {
    "timm": ("cls_token", "dist_token"),
    "huggingface": ("cls_token", "distillation_token"),
    "flax": ("cls",),
}
TABLES = {"timm": "pos_embed", "flax": "pos_embedding"}


def names_in(model: Backbone, layout: str) -> dict[str, tuple[str, ...]]:
    """Their name, or names, for each of our tensors, except positions and prefix tokens."""
    if layout not in LAYOUTS:
        raise ModelError(f"`layout` is one of {', '.join(LAYOUTS)}, not {layout!r}")
    if model.family not in LAYOUTS[layout]:
        known = ", ".join(LAYOUTS[layout])
        raise ModelError(f"{layout} has no weights of the family {model.family!r}; it has {known}")
    names = {
        name: translate(name, LAYOUTS[layout][model.family])
        for name in model.state_dict()
        if not name.startswith("positions.") and name != "prefix"
    }
    if layout == "timm" and LAYOUTS[layout][model.family] is VIT and _norm_is_last(model):
        names |= {name: (f"fc_{name}",) for name in names if name.startswith("norm.")}
    return names


def token_names(model: Backbone, layout: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """For every stage with positions: its index, their table, and their prefix tokens that join there."""
    if not isinstance(model, MetaFormer) or model.config.positions == "none":
        return []
    if model.family == "poolformer":  # the authors' hybrids, which only their own files have
        return [(k, f"stages.{k}.pos_embed", ()) for k in model.config.position_stages or range(len(model.stages))]
    prefixes = PREFIXES[layout][: model.config.prefix_tokens]
    if layout in TABLES:
        return [(0, TABLES[layout], prefixes)]
    if model.family != "pvt":
        return [(0, "embeddings.position_embeddings", tuple(f"embeddings.{name}" for name in prefixes))]
    root, last = "encoder.patch_embeddings", len(model.stages) - 1
    return [
        (k, f"{root}.{k}.position_embeddings", tuple(f"{root}.{k}.{name}" for name in prefixes if k == last))
        for k in range(last + 1)
    ]


def _norm_is_last(model: Backbone) -> bool:
    """Whether the last norm comes after the mean: timm then calls it `fc_norm`."""
    return isinstance(model, MetaFormer) and model.config.pool_first


def in_files(name: str, layout: str) -> str:
    """The name that a tensor of theirs has in their files."""
    return file_name(name) if layout == "huggingface" else name
