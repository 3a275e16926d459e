"""Any timm model as a backbone, by the name `timm:NAME`.

timm's `create_model` has arguments that load and store files. An option may come from a `config.json` of other people,
so only those in `OPTIONS`, with their types, are passed to timm.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from isoflop.errors import ModelError, did_you_mean
from isoflop.models.backbone import Backbone

# What timm's model classes take of their own, by type: each may also be a list of such, or None.
_NUMBERS = """
    attn_drop_rate attn_head_dim_reduction attn_groups attn_mlp_ratio attn_pool_mlp_ratio attn_pool_num_heads attn_ratio
    base_dim base_dims base_width block_config block_reduce_first bn_eps bn_momentum bn_size bottle_ratio
    bottleneck_width_ratio cardinality channel_multiplier channels ch_div cls_attn_layers cls_ratio conv_ratio d2_scales
    deepen_factor depth depth_list depth_mult depth_token_only depths dim_mul dims down_kernel_size down_pad
    down_patch_size down_stride downsample_expand_ratios downsample_kernel_size downsample_padding downsample_ratio
    drop_block_rate drop_block_size drop_path_rate drop_rate embed_dim embed_dims eta expand_groups expand_ratio
    expansion_ratio extra_norm_period feature_dim ffn_ratio final_chs first_stride focal_levels focal_windows
    global_att_blocks global_attn_indexes global_block_counts global_pos_size group groups growth_rate growth_rates
    head_dim head_hidden_size head_init_bias head_init_scale head_mul head_widths heads hidden_sizes img_scale inc_sec
    init_channels init_values initial_chs inner_dim intermediate_size k_r k_sec kernel_size kernel_sizes kernels key_dim
    layer_scale layer_scale_init_value layer_scale_init_values layers layerscale_value levels local_conv_size
    local_up_to_layer locality_strength ls_init_value mask_unit_size mbconv_expand_ratio merge_size mix_block_ratio
    mlp_ratio mlp_ratio_token_only mlp_ratios msfa_indices msfa_output_resolution n_div neck_chans norm_eps num_blocks
    num_blocks_list num_features num_heads num_heads_inner num_heads_outer num_init_features num_kv_heads num_levels
    num_reg_tokens num_rnn_layers num_vit output_stride parallel_depth partial_dim patch_drop_rate patch_kernel
    patch_padding patch_size patch_sizes patch_stride pool_size pooling_kernel_size pooling_scale pos_drop_rate
    pos_embed_grid_size position_embedding_size pretrained_window_sizes proj_drop_rate q_pool q_stride qk_dim
    ref_feat_shape reg_tokens rel_pos_dim repmixer_kernel_size res_scale_init_values rope_grid_offset
    rope_jitter_coords rope_mrope_section rope_rescale_coords rope_shift_coords rope_temperature rope_theta scale
    se_ratio serial_depths sr_ratios ssd_expand stages state_dim stem_chs stem_expand_ratio stem_hidden_dim
    stem_kernel_size stem_size stem_stride stem_width stride strides swiglu_align_to transformer_depths
    transition_compression_ratio widen_factor width width_factor width_list width_mult widths window_ratio window_size
    window_sizes window_spec wss
"""
_SWITCHES = """
    abs_win_pos_embed always_partition attn attn_mlp attn_only_layer_scale aux_logits avg_down basic bidirectional
    channel_attention channel_attn_v2 class_token conv_bias conv_init conv_mlp cpe_act crop_scale distillation distilled
    downsample_block downsamples dynamic_img_pad dynamic_img_size extra_norm_stage fc_norm ffn final_norm fix_init
    fix_stem fused_conv fused_downsample head_bias head_norm head_norm_first input_3x3 is_downsample_block legacy linear
    lkc_use_act mask_unit_attn memory_efficient mlp_bias multi_conv nlhb no_embed_class
    normalize_modulator outlook_attention patch_norm pool_include_prefix pre_norm preact proj_bias qk_norm qkv_bias
    qkv_fused reparam replace_stem_pool rope_rotate_half scale_attn_inner scale_attn_norm scale_mlp scale_mlp_norm
    se_downsamples se_from_exp sep_pos_embed sequential_attn shared_rel_pos shortcut_root small small_kernels
    standardize stem_bias stem_mid_norm stem_norm stem_use_scale_branch strict_img_size swiglu_mlp tokens_norm
    transformer_drop_path use_abs_pos use_abs_pos_emb use_aux_head use_checkpoint use_clipped_linears use_conv
    use_expand_proj use_fc_norm use_grn use_lab use_layer_scale use_mix_token use_mlp_head use_msfa use_overlap_down
    use_pos_emb use_pos_embed use_post_norm use_post_norm_in_modulation use_post_transformer_norm
    use_pre_transformer_norm use_rel_pos use_rel_pos_bias use_rope use_rot_pos_emb use_shared_rel_pos_bias v2 vit_stem
    with_fc zero_init_last
"""
_TEXTS = """
    aa_layer act_layer attn_act_layer attn_layer attn_stage attn_type attn_types attn_upsample block_type down_op
    downsample dw_act_layer embed_norm_layer encoder_pool fc_act_layer feature_location global_pool head_fn
    local_mbconv_norm norm_layer norm_layer_cl pad_type pconv_fw_type pos_embed post_layers rel_pos_type
    rope_grid_indexing rope_type se_layer spatial_conv stem_type token_mixers types union version weight_init
"""
OPTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_NUMBERS.split(), (int, float)),
    **dict.fromkeys(_SWITCHES.split(), (bool,)),
    **dict.fromkeys(_TEXTS.split(), (str,)),
}
_TYPE_NAMES: dict[type, str] = {int: "numbers", bool: "true or false", str: "text"}


class TimmBackbone(Backbone):
    """timm's model of that name; `options` are those of `OPTIONS` that it has (`drop_path_rate=0.1`).

    With `pretrained`, it has timm's own weights, from its cache or the hub: only who runs the program may ask for them,
    never a file. Raises ModelError for a name or an option that timm does not have.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        image_size: tuple[int, int],
        in_channels: int,
        pretrained: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        for theirs, ours in (("in_chans", "in_channels"), ("img_size", "image_size")):
            if theirs in options:
                raise ModelError(f"timm:{name}: `{theirs}` is set by `{ours}`")
        if not timm.is_model(name):
            meant = did_you_mean(name, timm.list_models(), written="timm:{}".format)
            raise ModelError(f"timm has no model {name!r}{meant}")
        for option, value in options.items():
            _check_option(name, option, value)
        if not isinstance(pretrained, bool):
            raise ModelError(f"timm:{name}: `pretrained` is true or false, not {pretrained!r}")
        options = {"num_classes": num_classes, "in_chans": in_channels, "pretrained": pretrained, **options}
        self.model = _create(name, image_size, options)
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        self.num_features = self.model.head_hidden_size
        # Several of timm's maps may have one stride: the last of each is the finished one.
        stages = {info["reduction"]: (index, info["num_chs"]) for index, info in enumerate(self.model.feature_info)}
        self.feature_strides = tuple(stages)
        self.feature_widths = tuple(width for _, width in stages.values())
        self.feature_indices = [index for index, _ in stages.values()]
        self.head = nn.Identity()  # the classifier is timm's own, inside `model`

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return pooled

    def tokens(self, images: Tensor) -> Tensor:
        x: Tensor = self.model.forward_features(images)
        if x.ndim == 3:
            return x
        last = self.model.feature_info[-1]["num_chs"]
        return x.flatten(2).transpose(1, 2) if x.shape[1] == last else x.flatten(1, 2)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        if not hasattr(self.model, "forward_intermediates"):
            raise ModelError(f"{self.preset} does not hand out its feature maps")
        maps = self.model.forward_intermediates(
            images, indices=self.feature_indices, intermediates_only=True, output_fmt="NCHW"
        )
        return list(maps)

    def classifier(self) -> tuple[str, ...]:
        own = getattr(self.model, "pretrained_cfg", {}).get("classifier") or ()
        return tuple(f"model.{name}" for name in ((own,) if isinstance(own, str) else own))

    def layer_ids(self) -> dict[str, int]:
        ids = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        return {f"model.{name}": int(layer) for name, layer in ids.items()}


def _check_option(name: str, option: str, value: Any) -> None:
    if option not in OPTIONS:
        raise ModelError(f"timm:{name} takes no option `{option}`{did_you_mean(option, OPTIONS)}", option)
    kinds = OPTIONS[option]
    if not _is_of(value, kinds):
        raise ModelError(f"timm:{name}: `{option}` is {_TYPE_NAMES[kinds[0]]}, not {value!r}", option)


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_of(part, kinds) for part in value)
    return value is None or (isinstance(value, kinds) and isinstance(value, bool) == (kinds == (bool,)))


def _create(name: str, image_size: tuple[int, int], options: dict[str, Any]) -> Any:
    # Only models with positions or windows are built for a size; the others refuse to be told one.
    try:
        try:
            model = timm.create_model(name, img_size=image_size, **options)
        except TypeError:
            model = timm.create_model(name, **options)
    except OSError as error:  # of the hub, where weights are asked for
        raise ModelError(f"timm:{name}: no weights of timm's: {_line(error)}") from error
    except Exception as error:  # hundreds of classes, each with errors of its own for what it cannot be
        raise ModelError(f"timm cannot build {name} with these options: {_line(error)}") from error
    if 0 in (getattr(getattr(model, "patch_embed", None), "grid_size", None) or ()):
        raise ModelError(
            f"images of {image_size[0]}x{image_size[1]} pixels are too small for timm:{name}: no patch fits"
        )
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
