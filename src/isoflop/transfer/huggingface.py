"""Hugging Face's `config.json` in our words: which preset, and what of it is different."""

from __future__ import annotations

from typing import Any

from isoflop.errors import CheckpointError

Options = dict[str, Any]


def huggingface_model(config: dict[str, Any], where: str) -> tuple[str, Options, int]:
    """Preset, overrides and input channels of the model that a Hugging Face `config` describes.

    Raises CheckpointError for a kind of model that has no counterpart here.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(f"{where}: no counterpart of Hugging Face's {kind!r}; there is {', '.join(_KINDS)}")
    usual = "relu" if kind == "bit" else "gelu"
    if config.get("hidden_act", usual) != usual:
        raise CheckpointError(f"{where}: a {kind} with {config['hidden_act']!r} has no counterpart; {usual} has")
    try:
        preset, options = _KINDS[kind](config)
        return preset, options, int(config.get("num_channels", 3))
    except KeyError as error:
        raise CheckpointError(f"{where}: config.json has no {error}") from error
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{where}: config.json does not describe a {kind}: {error}") from error


def _plain(preset: str, config: dict[str, Any]) -> tuple[str, Options]:
    return preset, {
        "depths": (config["num_hidden_layers"],),
        "widths": (config["hidden_size"],),
        "heads": (config["num_attention_heads"],),
        "mlp_widths": (config["intermediate_size"],),
        "stem_kernel": config["patch_size"],
        "stem_stride": config["patch_size"],
        "norm_eps": config["layer_norm_eps"],
    }


def _vit(config: dict[str, Any]) -> tuple[str, Options]:
    return _plain("vit_b16_token", config)


def _mae(config: dict[str, Any]) -> tuple[str, Options]:
    return _plain("mae_b16", config)


def _deit(config: dict[str, Any]) -> tuple[str, Options]:
    return _plain("deit_b16_distilled", config)


def _poolformer(config: dict[str, Any]) -> tuple[str, Options]:
    widths = tuple(config["hidden_sizes"])
    return "poolformer_s12", {
        "depths": tuple(config["depths"]),
        "widths": widths,
        "mlp_widths": tuple(int(width * config["mlp_ratio"]) for width in widths),
        "mixers": ("pooling",) * len(widths),
        "heads": (1,) * len(widths),
        "pool_size": config["pool_size"],
        "stem_kernel": config["patch_sizes"][0],
        "stem_stride": config["strides"][0],
        "stem_padding": config["padding"][0],
        "layer_scale": config["layer_scale_init_value"] if config["use_layer_scale"] else None,
    }


def _pvt(config: dict[str, Any]) -> tuple[str, Options]:
    widths = tuple(config["hidden_sizes"])
    return "pvt_ti", {
        "depths": tuple(config["depths"]),
        "widths": widths,
        "heads": tuple(config["num_attention_heads"]),
        "mlp_widths": tuple(width * ratio for width, ratio in zip(widths, config["mlp_ratios"], strict=True)),
        "reductions": tuple(config["sequence_reduction_ratios"]),
        "norm_eps": config["layer_norm_eps"],  # of the blocks; those between stages have 1e-5 here, 1e-6 there
    }


def _pvt_v2(config: dict[str, Any]) -> tuple[str, Options]:
    if config.get("linear_attention"):
        raise CheckpointError("a pvt_v2 with linear attention has no counterpart")
    _, options = _pvt({**config, "sequence_reduction_ratios": config["sr_ratios"]})
    return "pvt_v2_b0", options


def _bit(config: dict[str, Any]) -> tuple[str, Options]:
    if config.get("layer_type") != "preactivation" or config.get("global_padding") is not None:
        raise CheckpointError("a bit that is not of the paper's architecture has no counterpart")
    return "bit_r50x1", {
        "depths": tuple(config["depths"]),
        "factor": config["width_factor"],
        "weight_eps": 1e-8,
    }


_KINDS = {
    "vit": _vit,
    "vit_mae": _mae,
    "deit": _deit,
    "poolformer": _poolformer,
    "pvt": _pvt,
    "pvt_v2": _pvt_v2,
    "bit": _bit,
}
