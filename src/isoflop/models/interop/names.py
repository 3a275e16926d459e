"""timm's names for our parameters, by family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.metaformer import MetaFormer

# Names that authors' releases have: MAE, PoolFormer, the MetaFormer baselines; each as timm calls the same tensors.


MAE_DECODER = re.compile(r"(decoder_|mask_token)")


def is_poolformer(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the PoolFormer release (arXiv 2111.11418)."""
    return "network.0.0.mlp.fc1.weight" in names


def is_baseline(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the MetaFormer baselines' release (arXiv 2210.13452)."""
    return "downsample_layers.0.conv.weight" in names


def without_decoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder of a masked autoencoder, whose names are timm's, and the names of what was only for pretraining."""
    left_out = [name for name in state if MAE_DECODER.match(name)]
    return {name: tensor for name, tensor in state.items() if not MAE_DECODER.match(name)}, left_out


def from_poolformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`network` holds stages, what leads from one to the next, and before some stages their positions."""
    places: dict[str, str] = {}
    stage = 0
    for number in sorted({int(match[1]) for match in map(re.compile(r"network\.(\d+)\.").match, state) if match}):
        if f"network.{number}.proj.weight" in state:
            stage += 1
            places[str(number)] = f"stages.{stage}.downsample."
        else:
            is_table = f"network.{number}.pos_embed" in state
            places[str(number)] = f"stages.{stage}." + ("" if is_table else "blocks.")

    def place(match: re.Match[str]) -> str:
        return places[match[1]]

    out = {}
    for name, tensor in state.items():
        new = re.sub(r"^network\.(\d+)\.", place, name)
        new = re.sub(r"\.downsample\.proj\.", ".downsample.conv.", new)
        new = re.sub(r"^patch_embed\.proj\.", "stem.conv.", new)
        new = re.sub(r"\.layer_scale_(\d)$", r".layer_scale\1.scale", new)
        table = new.endswith(".pos_embed")  # (1, width, rows, columns)
        out[_with_head(new)] = tensor.flatten(2).transpose(1, 2) if table else tensor
    return out


def from_baseline(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Downsampling stands apart from the stages, with its norm in front, but for the stem's."""
    out = {}
    for name, tensor in state.items():
        new = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        new = re.sub(r"^downsample_layers\.0\.", "stem.", new)
        new = re.sub(r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample.", new)
        new = re.sub(r"\.(pre|post)_norm\.", ".norm.", new)
        out[_with_head(new)] = tensor
    return out


def _with_head(name: str) -> str:
    return re.sub(r"^norm\.", "head.norm.", re.sub(r"^head\.", "head.fc.", name))


# A layout is a list of rules that turn each of our names into theirs; reading and writing walk the same list.
#
# Where they keep query, key and value apart, a rule gives three names, whose rows we keep in one matrix.


Rules = list[tuple[str, tuple[str, ...]]]


def rules(text: str) -> Rules:
    """Lines of `pattern -> name [+ name …]`, first match wins.

    In a pattern, # stands for a number and * for the rest; in a name, {0} and {1} are the numbers, {+} is the first of
    them plus one, and {*} the rest.
    """
    found = []
    for line in text.strip().splitlines():
        pattern, names = line.split("->")
        regex = re.escape(pattern.strip()).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
        found.append((regex, tuple(name.strip() for name in names.split(" + "))))
    return found


def translate(name: str, rules: Rules) -> tuple[str, ...]:
    """Their name, or names, for one of ours; ModelError where no rule fits."""
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


VIT = rules("""
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
MIXER = rules("""
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
RESMLP = rules("""
    stages.0.#.norm1.weight -> blocks.{0}.norm1.alpha
    stages.0.#.norm1.bias   -> blocks.{0}.norm1.beta
    stages.0.#.norm2.weight -> blocks.{0}.norm2.alpha
    stages.0.#.norm2.bias   -> blocks.{0}.norm2.beta
    norm.weight             -> norm.alpha
    norm.bias               -> norm.beta
""") + MIXER  # fmt: skip
GMLP = rules("""
    stages.0.#.norm1.*      -> blocks.{0}.norm.{*}
    stages.0.#.mixer.norm.* -> blocks.{0}.mlp_channels.gate.norm.{*}
    stages.0.#.mixer.gate.* -> blocks.{0}.mlp_channels.gate.proj.{*}
    stages.0.#.mixer.*      -> blocks.{0}.mlp_channels.{*}
""") + MIXER  # fmt: skip
METAFORMER = rules("""
    stem.*                       -> stem.{*}
    downsamples.#.patches.conv.* -> stages.{+}.downsample.conv.{*}
    downsamples.#.norm.*         -> stages.{+}.downsample.norm.{*}
    stages.#.#.mixer.weight      -> stages.{0}.blocks.{1}.token_mixer.random_matrix
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
PVT_V2 = rules("""
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
NFNET = rules("""
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
BIT = rules("""
    stem.weight           -> stem.conv.weight
    stages.#.#.shortcut.* -> stages.{0}.blocks.{1}.downsample.conv.{*}
    stages.#.#.*          -> stages.{0}.blocks.{1}.{*}
    norm.*                -> norm.{*}
    head.*                -> head.fc.{*}
""")

# What timm's code of a family has otherwise than the authors', by which the presets go; the names are the same. Weights
# under timm's names are computed as timm computes them.
TIMMS_OWN: dict[str, dict[str, Any]] = {
    # The last norm is of the mean of the map, and not of the map.
    "poolformer": {"pool_first": True, "last_norm": "layer", "last_norm_eps": 1e-6},
    "convformer": {"head_eps": 1e-6},
    "caformer": {"head_eps": 1e-6},
    "nfnet": {"weight_eps": 1e-5, "activation": "gelu", "scale_by_keep": True},
    "bit": {"weight_eps": 1e-8},
}

TIMM: dict[str, Rules] = {
    **dict.fromkeys(("vit", "mae", "deit"), VIT),
    **dict.fromkeys(
        ("poolformer", "poolformerv2", "identityformer", "randformer", "convformer", "caformer"), METAFORMER
    ),
    "mixer": MIXER,
    "resmlp": RESMLP,
    "gmlp": GMLP,
    "pvt_v2": PVT_V2,
    "nfnet": NFNET,
    "bit": BIT,
}


# How the files of Hugging Face's models name what we have, by family.


HUGGINGFACE_VIT = rules(
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
POOLFORMER = rules("""
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
PVT = rules(
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
HUGGINGFACE_PVT_V2 = rules(
    """
    stem.conv.*                  -> encoder.layers.0.patch_embedding.proj.{*}
    stem.norm.*                  -> encoder.layers.0.patch_embedding.layer_norm.{*}
    downsamples.#.patches.conv.* -> encoder.layers.{+}.patch_embedding.proj.{*}
    downsamples.#.patches.norm.* -> encoder.layers.{+}.patch_embedding.layer_norm.{*}
    stages.#.#.mixer.q.*         -> encoder.layers.{0}.blocks.{1}.attention.query.{*}
    stages.#.#.mixer.kv.*        -> encoder.layers.{0}.blocks.{1}.attention.key.{*} """
    """+ encoder.layers.{0}.blocks.{1}.attention.value.{*}
    stages.#.#.mixer.shrink.*    -> encoder.layers.{0}.blocks.{1}.attention.spatial_reduction.{*}
    stages.#.#.mixer.norm.*      -> encoder.layers.{0}.blocks.{1}.attention.layer_norm.{*}
    stages.#.#.mixer.proj.*      -> encoder.layers.{0}.blocks.{1}.attention.proj.{*}
    stages.#.#.norm1.*           -> encoder.layers.{0}.blocks.{1}.layer_norm_1.{*}
    stages.#.#.norm2.*           -> encoder.layers.{0}.blocks.{1}.layer_norm_2.{*}
    stages.#.#.mlp.fc1.*         -> encoder.layers.{0}.blocks.{1}.mlp.dense1.{*}
    stages.#.#.mlp.dwconv.*      -> encoder.layers.{0}.blocks.{1}.mlp.dwconv.dwconv.{*}
    stages.#.#.mlp.fc2.*         -> encoder.layers.{0}.blocks.{1}.mlp.dense2.{*}
    stage_norms.#.*              -> encoder.layers.{0}.layer_norm.{*}
    norm.*                       -> encoder.layers.3.layer_norm.{*}
    head.*                       -> classifier.{*}
"""
)
HUGGINGFACE_BIT = rules("""
    stem.*                -> embedder.convolution.{*}
    stages.#.#.shortcut.* -> encoder.stages.{0}.layers.{1}.downsample.conv.{*}
    stages.#.#.*          -> encoder.stages.{0}.layers.{1}.{*}
    norm.*                -> norm.{*}
    head.*                -> classifier.1.{*}
""")

HUGGINGFACE: dict[str, Rules] = {
    **dict.fromkeys(("vit", "mae", "deit"), HUGGINGFACE_VIT),
    "poolformer": POOLFORMER,
    "pvt": PVT,
    "pvt_v2": HUGGINGFACE_PVT_V2,
    "bit": HUGGINGFACE_BIT,
}

# Hugging Face models sit behind one of these; transformers 5 shows other names than its files have.
ROOT = re.compile(r"^(vit|deit|poolformer|pvt|pvt_v2|bit)\.")
FILE_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"(layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    (r"^cls_classifier\.", "classifier."),
)


def file_name(name: str) -> str:
    """The name in their files of a tensor that may be named as in a model in memory."""
    name = ROOT.sub("", name)
    for pattern, replacement in FILE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


# ViTs of big_vision and of AugReg (vit_jax): `.npz` archives of Flax's arrays.
#
# Both have the same names up to the counters of their modules. Kernels are (in, out), those of attention keep heads
# apart, convolutions are (rows, columns, in, out); in `Transformer/encoderblock/` the arrays of all blocks are stacked.


BLOCK = "Transformer/encoderblock_{0}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
MAP = "MAPHead_0"
FLAX_VIT = rules(f"""
    stem.conv.*            -> embedding/{{*}}
    stages.0.#.norm1.*     -> {BLOCK}/LayerNorm_0/{{*}}
    stages.0.#.mixer.qkv.* -> {ATTENTION}/query/{{*}} + {ATTENTION}/key/{{*}} + {ATTENTION}/value/{{*}}
    stages.0.#.mixer.proj.* -> {ATTENTION}/out/{{*}}
    stages.0.#.norm2.*     -> {BLOCK}/LayerNorm_1/{{*}}
    stages.0.#.mlp.fc1.*   -> {BLOCK}/MlpBlock_0/Dense_0/{{*}}
    stages.0.#.mlp.fc2.*   -> {BLOCK}/MlpBlock_0/Dense_1/{{*}}
    norm.*                 -> Transformer/encoder_norm/{{*}}
    pool.probe             -> {MAP}/probe
    pool.q.*               -> {MAP}/MultiHeadDotProductAttention_0/query/{{*}}
    pool.kv.*              -> {MAP}/MultiHeadDotProductAttention_0/key/{{*}} + {MAP}/MultiHeadDotProductAttention_0/value/{{*}}
    pool.proj.*            -> {MAP}/MultiHeadDotProductAttention_0/out/{{*}}
    pool.norm.*            -> {MAP}/LayerNorm_0/{{*}}
    pool.mlp.fc1.*         -> {MAP}/MlpBlock_0/Dense_0/{{*}}
    pool.mlp.fc2.*         -> {MAP}/MlpBlock_0/Dense_1/{{*}}
    head.fc1.*             -> pre_logits/{{*}}
    head.fc2.*             -> head/{{*}}
    head.*                 -> head/{{*}}
""")  # noqa: E501
FLAX: dict[str, Rules] = dict.fromkeys(("vit", "mae", "deit"), FLAX_VIT)

# Older or other counters and places of the same arrays.
RENAMED = (
    (r"^(opt/target/|params/)(img/)?", ""),
    (r"/posembed_input/pos_embedding$", "/pos_embedding"),
    (r"^Transformer/pos_embedding$", "pos_embedding"),
    (r"^(Transformer/encoderblock\w*/)MultiHeadDotProductAttention_\d/", r"\1MultiHeadDotProductAttention_0/"),
    (r"^(Transformer/encoderblock\w*/)MlpBlock_\d/", r"\1MlpBlock_0/"),
    (r"^(Transformer/encoderblock\w*/)LayerNorm_2/", r"\1LayerNorm_1/"),
    (r"^(probe|MlpBlock_0/|MultiHeadDotProductAttention_0/|LayerNorm_0/)", r"MAPHead_0/\1"),
    (r"/(kernel|scale)$", "/weight"),
)


def from_flax(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays under one set of names, `kernel` and `scale` called `weight`, with PyTorch's order of axes."""
    out: dict[str, Tensor] = {}
    for given, tensor in state.items():
        name = given
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if name.startswith("Transformer/encoderblock/"):
            for index, part in enumerate(tensor):
                own = name.replace("encoderblock", f"encoderblock_{index}", 1)
                out[own] = _turned(own, part)
        else:
            out[name] = _turned(name, tensor)
    return out


def heads_of(state: Mapping[str, Tensor]) -> int | None:
    """Attention heads, which only the arrays as they are stored tell."""
    for name, tensor in state.items():
        if name.endswith("/query/bias"):
            return int(tensor.shape[-2])
    return None


def _turned(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if not name.endswith("/weight"):
        return tensor.reshape(-1) if name.endswith("/bias") else tensor
    if name == "embedding/weight":
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.ndim == 3:  # (in, heads, width of a head), or (heads, width of a head, out)
        tensor = tensor.flatten(0, 1) if "/out/" in name else tensor.flatten(1)
    return tensor.t().contiguous() if tensor.ndim == 2 else tensor


# Which layouts there are, and what they call the tensors of a model of ours.


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
