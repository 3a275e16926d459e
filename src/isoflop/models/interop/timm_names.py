"""How timm names what we have, by family."""

from typing import Any

from isoflop.models.interop.rules import Rules, rules

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
