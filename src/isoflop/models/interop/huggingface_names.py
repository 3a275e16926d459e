"""How the files of Hugging Face's models name what we have, by family."""

import re

from isoflop.models.interop.rules import Rules, rules

VIT = rules(
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
PVT_V2 = rules(
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
BIT = rules("""
    stem.*                -> embedder.convolution.{*}
    stages.#.#.shortcut.* -> encoder.stages.{0}.layers.{1}.downsample.conv.{*}
    stages.#.#.*          -> encoder.stages.{0}.layers.{1}.{*}
    norm.*                -> norm.{*}
    head.*                -> classifier.1.{*}
""")

HUGGINGFACE: dict[str, Rules] = {
    **dict.fromkeys(("vit", "mae", "deit"), VIT),
    "poolformer": POOLFORMER,
    "pvt": PVT,
    "pvt_v2": PVT_V2,
    "bit": BIT,
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
