"""Weights in the layouts of timm and Hugging Face, read and written.

A layout is a list of rules that turn each of our names into theirs; reading and writing walk the same list. Where they
keep query, key and value apart, a rule gives three names, whose rows we keep in one matrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.metaformer import MetaFormer
from isoflop.models.positions import resize

Rules = list[tuple[str, tuple[str, ...]]]


def _rules(text: str) -> Rules:
    """Lines of `pattern -> name [+ name …]`, first match wins; # stands for a number, < > for the numbers in order."""
    rules = []
    for line in text.strip().splitlines():
        pattern, names = line.split("->")
        regex = re.escape(pattern.strip()).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
        rules.append((regex, tuple(name.strip() for name in names.split(" + "))))
    return rules


# In a name, {0} and {1} are what # matched, {+} is the first number plus one, {*} what * matched.
VIT_TIMM = _rules("""
    stem.conv.*             -> patch_embed.proj.{*}
    stages.0.#.mixer.*      -> blocks.{0}.attn.{*}
    stages.0.#.scale1.gamma -> blocks.{0}.ls1.gamma
    stages.0.#.scale2.gamma -> blocks.{0}.ls2.gamma
    stages.0.#.*            -> blocks.{0}.{*}
    pool.probe              -> attn_pool.latent
    pool.*                  -> attn_pool.{*}
    head_distilled.*        -> head_dist.{*}
    norm.*                  -> norm.{*}
    head.*                  -> head.{*}
""")
MIXER_TIMM = _rules("""
    stem.conv.*             -> stem.proj.{*}
    stages.0.#.mixer.fc.*   -> blocks.{0}.linear_tokens.{*}
    stages.0.#.mixer.*      -> blocks.{0}.mlp_tokens.{*}
    stages.0.#.mlp.*        -> blocks.{0}.mlp_channels.{*}
    stages.0.#.scale1.gamma -> blocks.{0}.ls1
    stages.0.#.scale2.gamma -> blocks.{0}.ls2
    stages.0.#.*            -> blocks.{0}.{*}
    norm.*                  -> norm.{*}
    head.*                  -> head.{*}
""")
RESMLP_TIMM = _rules("""
    stages.0.#.norm1.weight -> blocks.{0}.norm1.alpha
    stages.0.#.norm1.bias   -> blocks.{0}.norm1.beta
    stages.0.#.norm2.weight -> blocks.{0}.norm2.alpha
    stages.0.#.norm2.bias   -> blocks.{0}.norm2.beta
    norm.weight             -> norm.alpha
    norm.bias               -> norm.beta
""") + MIXER_TIMM  # fmt: skip
GMLP_TIMM = _rules("""
    stages.0.#.norm1.*      -> blocks.{0}.norm.{*}
    stages.0.#.mixer.norm.* -> blocks.{0}.mlp_channels.gate.norm.{*}
    stages.0.#.mixer.gate.* -> blocks.{0}.mlp_channels.gate.proj.{*}
    stages.0.#.mixer.*      -> blocks.{0}.mlp_channels.{*}
""") + MIXER_TIMM  # fmt: skip
METAFORMER_TIMM = _rules("""
    stem.*                       -> stem.{*}
    downsamples.#.patches.conv.* -> stages.{+}.downsample.conv.{*}
    downsamples.#.norm.*         -> stages.{+}.downsample.norm.{*}
    stages.#.#.mixer.fc1.*       -> stages.{0}.blocks.{1}.token_mixer.pwconv1.{*}
    stages.#.#.mixer.fc2.*       -> stages.{0}.blocks.{1}.token_mixer.pwconv2.{*}
    stages.#.#.mixer.act.*       -> stages.{0}.blocks.{1}.token_mixer.act1.{*}
    stages.#.#.mixer.conv.*      -> stages.{0}.blocks.{1}.token_mixer.dwconv.{*}
    stages.#.#.mixer.*           -> stages.{0}.blocks.{1}.token_mixer.{*}
    stages.#.#.scale1.gamma      -> stages.{0}.blocks.{1}.layer_scale1.scale
    stages.#.#.scale2.gamma      -> stages.{0}.blocks.{1}.layer_scale2.scale
    stages.#.#.shortcut1.gamma   -> stages.{0}.blocks.{1}.res_scale1.scale
    stages.#.#.shortcut2.gamma   -> stages.{0}.blocks.{1}.res_scale2.scale
    stages.#.#.*                 -> stages.{0}.blocks.{1}.{*}
    norm.*                       -> head.norm.{*}
    head.*                       -> head.fc.{*}
""")
PVT_V2_TIMM = _rules("""
    stem.conv.*                  -> patch_embed.proj.{*}
    stem.norm.*                  -> patch_embed.norm.{*}
    downsamples.#.patches.conv.* -> stages.{+}.downsample.proj.{*}
    downsamples.#.patches.norm.* -> stages.{+}.downsample.norm.{*}
    stages.#.#.mixer.shrink.*    -> stages.{0}.blocks.{1}.attn.sr.{*}
    stages.#.#.mixer.*           -> stages.{0}.blocks.{1}.attn.{*}
    stages.#.#.*                 -> stages.{0}.blocks.{1}.{*}
    stage_norms.#.*              -> stages.{0}.norm.{*}
    norm.*                       -> stages.3.norm.{*}
    head.*                       -> head.{*}
""")
NFNET_TIMM = _rules("""
    stem.#.*                    -> stem.conv{+}.{*}
    stages.#.#.conv3.*          -> stages.{0}.{1}.conv2b.{*}
    stages.#.#.conv4.*          -> stages.{0}.{1}.conv3.{*}
    stages.#.#.shortcut.*       -> stages.{0}.{1}.downsample.conv.{*}
    stages.#.#.squeeze_excite.* -> stages.{0}.{1}.attn_last.{*}
    stages.#.#.skip_gain        -> stages.{0}.{1}.skipinit_gain
    stages.#.#.*                -> stages.{0}.{1}.{*}
    final.*                     -> final_conv.{*}
    head.*                      -> head.fc.{*}
""")
BIT_TIMM = _rules("""
    stem.weight           -> stem.conv.weight
    stages.#.#.shortcut.* -> stages.{0}.blocks.{1}.downsample.conv.{*}
    stages.#.#.*          -> stages.{0}.blocks.{1}.{*}
    norm.*                -> norm.{*}
    head.*                -> head.fc.{*}
""")
VIT_HF = _rules(
    """
    stem.conv.*             -> embeddings.patch_embeddings.projection.{*}
    stages.0.#.mixer.qkv.*  -> encoder.layer.{0}.attention.attention.query.{*} """
    """+ encoder.layer.{0}.attention.attention.key.{*} + encoder.layer.{0}.attention.attention.value.{*}
    stages.0.#.mixer.proj.* -> encoder.layer.{0}.attention.output.dense.{*}
    stages.0.#.norm1.*      -> encoder.layer.{0}.layernorm_before.{*}
    stages.0.#.norm2.*      -> encoder.layer.{0}.layernorm_after.{*}
    stages.0.#.mlp.fc1.*    -> encoder.layer.{0}.intermediate.dense.{*}
    stages.0.#.mlp.fc2.*    -> encoder.layer.{0}.output.dense.{*}
    norm.*                  -> layernorm.{*}
    head_distilled.*        -> distillation_classifier.{*}
    head.*                  -> classifier.{*}
"""
)
POOLFORMER_HF = _rules("""
    stem.conv.*                  -> encoder.patch_embeddings.0.projection.{*}
    downsamples.#.patches.conv.* -> encoder.patch_embeddings.{+}.projection.{*}
    stages.#.#.norm1.*           -> encoder.block.{0}.{1}.before_norm.{*}
    stages.#.#.norm2.*           -> encoder.block.{0}.{1}.after_norm.{*}
    stages.#.#.mlp.fc1.*         -> encoder.block.{0}.{1}.output.conv1.{*}
    stages.#.#.mlp.fc2.*         -> encoder.block.{0}.{1}.output.conv2.{*}
    stages.#.#.scale1.gamma      -> encoder.block.{0}.{1}.layer_scale_1
    stages.#.#.scale2.gamma      -> encoder.block.{0}.{1}.layer_scale_2
    norm.*                       -> norm.{*}
    head.*                       -> classifier.{*}
""")
PVT_HF = _rules(
    """
    stem.conv.*                  -> encoder.patch_embeddings.0.projection.{*}
    stem.norm.*                  -> encoder.patch_embeddings.0.layer_norm.{*}
    downsamples.#.patches.conv.* -> encoder.patch_embeddings.{+}.projection.{*}
    downsamples.#.patches.norm.* -> encoder.patch_embeddings.{+}.layer_norm.{*}
    stages.#.#.mixer.q.*         -> encoder.block.{0}.{1}.attention.self.query.{*}
    stages.#.#.mixer.kv.*        -> encoder.block.{0}.{1}.attention.self.key.{*} """
    """+ encoder.block.{0}.{1}.attention.self.value.{*}
    stages.#.#.mixer.shrink.*    -> encoder.block.{0}.{1}.attention.self.sequence_reduction.{*}
    stages.#.#.mixer.norm.*      -> encoder.block.{0}.{1}.attention.self.layer_norm.{*}
    stages.#.#.mixer.proj.*      -> encoder.block.{0}.{1}.attention.output.dense.{*}
    stages.#.#.norm1.*           -> encoder.block.{0}.{1}.layer_norm_1.{*}
    stages.#.#.norm2.*           -> encoder.block.{0}.{1}.layer_norm_2.{*}
    stages.#.#.mlp.fc1.*         -> encoder.block.{0}.{1}.mlp.dense1.{*}
    stages.#.#.mlp.fc2.*         -> encoder.block.{0}.{1}.mlp.dense2.{*}
    norm.*                       -> encoder.layer_norm.{*}
    head.*                       -> classifier.{*}
"""
)

LAYOUTS: dict[str, dict[str, Rules]] = {
    "timm": {
        **dict.fromkeys(("vit", "mae", "deit"), VIT_TIMM),
        **dict.fromkeys(("poolformer", "poolformerv2", "identityformer", "convformer", "caformer"), METAFORMER_TIMM),
        "mixer": MIXER_TIMM,
        "resmlp": RESMLP_TIMM,
        "gmlp": GMLP_TIMM,
        "pvt_v2": PVT_V2_TIMM,
        "nfnet": NFNET_TIMM,
        "bit": BIT_TIMM,
    },
    "huggingface": {
        **dict.fromkeys(("vit", "mae", "deit"), VIT_HF),
        "poolformer": POOLFORMER_HF,
        "pvt": PVT_HF,
    },
}
# The position table and the prefix tokens of the last stage: they are sums of two of theirs, so no rule fits.
PREFIXES = {"timm": ("cls_token", "dist_token"), "huggingface": ("cls_token", "distillation_token")}
# Hugging Face models sit behind one of these; transformers 5 shows other names than its files have.
HF_ROOT = re.compile(r"^(vit|deit|poolformer|pvt)\.")
HF_FILE_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"(layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    (r"^cls_classifier\.", "classifier."),
)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pth`/`.bin` file that holds tensors alone."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weight file {path}")
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
    return dict(state)


def load_weights(
    model: Backbone, state: Mapping[str, Tensor], layout: str, *, head: bool = True, resize_mode: str = "bicubic"
) -> None:
    """Copy weights of timm's or Hugging Face's model of the same architecture into `model`.

    `layout` is "timm" or "huggingface". Position tables of another image size are resized ("bicubic" or "bilinear").
    With `head=False` the classifier keeps its own weights. Raises ModelError with the lists of missing, unexpected
    and mis-shaped tensors when the weights are of another architecture; `model` is then unchanged.
    """
    theirs = {_file_name(name, layout): tensor for name, tensor in state.items()}
    ours = dict(model.state_dict())
    names = names_in(model, layout)
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "mis-shaped": []}
    loaded: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, parts in names.items():
        used.update(parts)
        if name.startswith("head") and not head:
            continue
        if any(part not in theirs for part in parts):
            problems["missing"] += [part for part in parts if part not in theirs]
            continue
        value = theirs[parts[0]] if len(parts) == 1 else torch.cat([theirs[part] for part in parts])
        _fit(ours[name], value, name, loaded, problems)
    for stage, table, prefixes in _token_names(model, layout):
        used.update((table, *prefixes))
        absent = [part for part in (table, *prefixes) if part not in theirs]
        problems["missing"] += absent
        if not absent:
            _read_tokens(model, stage, theirs[table], [theirs[part] for part in prefixes], loaded, resize_mode)
    problems["unexpected"] = [name for name in theirs if name not in used]
    if any(problems.values()):
        text = "; ".join(f"{len(found)} {kind}: {_shortened(found)}" for kind, found in problems.items() if found)
        raise ModelError(f"these weights are not of {model.preset}: {text}")
    model.load_state_dict({**ours, **loaded})


def to_layout(model: Backbone, layout: str) -> dict[str, Tensor]:
    """The weights of `model` under the names and shapes of timm's or Hugging Face's files.

    Linear maps stay matrices: where the other side stores a 1x1 convolution, use `shaped_like`.
    """
    state = model.state_dict()
    out: dict[str, Tensor] = {}
    for name, parts in names_in(model, layout).items():
        tensors = state[name].chunk(len(parts)) if len(parts) > 1 else (state[name],)
        out.update(zip(parts, tensors, strict=True))
    for stage, table, prefixes in _token_names(model, layout):
        positions = state[f"positions.{stage}"]
        if prefixes:
            tokens = state["prefix"]
            # Their class token gets a position too; ours is the sum of both, so theirs is zero.
            positions = torch.cat([torch.zeros_like(tokens), positions], dim=1)
            out.update(zip(prefixes, tokens.split(1, dim=1), strict=True))
        out[table] = positions
    return out


def shaped_like(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each tensor in the shape of `target`'s of that name, where they differ by axes of length one."""
    return {
        name: tensor.reshape(target[name].shape)
        if name in target and _same_but_for_ones(tensor, target[name])
        else tensor
        for name, tensor in state.items()
    }


def names_in(model: Backbone, layout: str) -> dict[str, tuple[str, ...]]:
    """Their name, or names, for each of our tensors, except positions and prefix tokens."""
    if layout not in LAYOUTS:
        raise ModelError(f"`layout` is one of {', '.join(LAYOUTS)}, not {layout!r}")
    if model.family not in LAYOUTS[layout]:
        known = ", ".join(LAYOUTS[layout])
        raise ModelError(f"{layout} has no weights of the family {model.family!r}; it has {known}")
    return {
        name: _translate(name, LAYOUTS[layout][model.family])
        for name in model.state_dict()
        if not name.startswith("positions.") and name != "prefix"
    }


def _translate(name: str, rules: Rules) -> tuple[str, ...]:
    for pattern, templates in rules:
        match = re.fullmatch(pattern, name)
        if match:
            numbers = [group for group in match.groups() if group.isdigit()]
            rest = next((group for group in match.groups() if not group.isdigit()), "")
            following = str(int(numbers[0]) + 1) if numbers else ""
            return tuple(
                template.replace("{*}", rest).replace("{+}", following).format(*numbers) for template in templates
            )
    raise ModelError(f"this layout has no name for {name}")


def _token_names(model: Backbone, layout: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """For every stage with positions: its index, their table, and their prefix tokens that join there."""
    if not isinstance(model, MetaFormer) or model.config.positions == "none":
        return []
    prefixes = PREFIXES[layout][: model.config.prefix_tokens]
    if layout == "timm":
        return [(0, "pos_embed", prefixes)]
    if model.family != "pvt":
        return [(0, "embeddings.position_embeddings", tuple(f"embeddings.{name}" for name in prefixes))]
    root, last = "encoder.patch_embeddings", len(model.stages) - 1
    return [
        (k, f"{root}.{k}.position_embeddings", tuple(f"{root}.{k}.{name}" for name in prefixes if k == last))
        for k in range(last + 1)
    ]


def _read_tokens(
    model: Backbone, stage: int, table: Tensor, prefixes: list[Tensor], loaded: dict[str, Tensor], mode: str
) -> None:
    assert isinstance(model, MetaFormer)
    count = len(prefixes)
    if count:
        loaded["prefix"] = torch.cat(prefixes, dim=1) + table[:, :count]
    cells, side = table[:, count:], math.isqrt(table.shape[1] - count)
    new = model.grids[stage]
    if cells.shape[1] != new[0] * new[1]:
        if side * side != cells.shape[1]:
            raise ModelError(f"a position table of {cells.shape[1]} cells is not square: resize it before loading")
        cells = resize(cells, (side, side), new, mode)
    loaded[f"positions.{stage}"] = cells


def _fit(ours: Tensor, value: Tensor, name: str, loaded: dict[str, Tensor], problems: dict[str, list[str]]) -> None:
    if _same_but_for_ones(ours, value):
        loaded[name] = value.reshape(ours.shape)
    else:
        problems["mis-shaped"].append(f"{name} {tuple(value.shape)} for {tuple(ours.shape)}")


def _same_but_for_ones(one: Tensor, two: Tensor) -> bool:
    return [n for n in one.shape if n > 1] == [n for n in two.shape if n > 1]


def _file_name(name: str, layout: str) -> str:
    if layout == "huggingface":
        name = HF_ROOT.sub("", name)
        for pattern, replacement in HF_FILE_NAMES:
            name = re.sub(pattern, replacement, name)
    return name


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
