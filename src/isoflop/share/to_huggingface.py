"""A folder that `transformers.AutoModelForImageClassification.from_pretrained` loads.

It uses the architecture of transformers if there is one, else timm's, which transformers wraps.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isoflop.data import open_split
from isoflop.data.transforms import crop_share
from isoflop.errors import ConfigError, ModelError
from isoflop.models import Backbone
from isoflop.models.bit import BiT, BiTConfig
from isoflop.models.interop import shaped_like, to_layout
from isoflop.models.interop.names import in_files
from isoflop.models.metaformer import MetaFormer
from isoflop.models.saved import KEY
from isoflop.objectives.masked import Masked, mae_state
from isoflop.share.subject import IMAGES, Subject, check, difference
from isoflop.share.to_timm import timm_model, write_timm
from isoflop.train.loop import load_objective

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def write_huggingface(folder: Path, subject: Subject, licence: str | None) -> float:
    """Writes configuration, weights and preprocessing; returns the largest relative difference of the outputs."""
    transformers = _transformers()
    if subject.masked:
        return _write_mae(folder, subject)
    if not subject.classifies:
        raise ModelError("there is no trained classifier, which Hugging Face needs: use `--to timm` for the features")
    native = native_config(subject.model)
    if native is None:
        try:
            timm_model(subject.model)
        except ModelError as error:
            raise ModelError(f"neither transformers nor timm has {subject.model.preset}: {error}") from error
        write_timm(folder, subject, licence)
    else:
        _write_native(folder, subject, *native)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    transformers.AutoImageProcessor.from_pretrained(folder)
    images = subject.images(IMAGES)
    with torch.inference_mode():
        found = difference(loaded(images).logits, subject.outputs(images))
    return check(found, f"transformers' {type(loaded).__name__}")


def _transformers() -> Any:
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError("export to Hugging Face needs transformers: pip install 'isoflop[export]'") from error
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def native_config(model: Backbone) -> tuple[str, dict[str, Any]] | None:
    """transformers' class for `model` and its configuration; None where it has none that computes the same."""
    for fits, describe in _NATIVE:
        if fits(model):
            name, config = describe(model)
            return name, {**config, "num_channels": model.in_channels}
    return None


def _write_native(folder: Path, subject: Subject, kind: str, config: dict[str, Any]) -> None:
    transformers = _transformers()
    names = subject.description.class_names or tuple(f"class {k}" for k in range(subject.description.num_classes))
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
    if kind == "Pvt":  # whose number of classes has a default of its own
        labels["num_labels"] = len(names)
    made = getattr(transformers, f"{kind}Config")(**config, **labels)
    peer = getattr(transformers, f"{kind}ForImageClassification{'WithTeacher' if kind == 'DeiT' else ''}")(made)
    written = to_layout(subject.model, "huggingface")
    expected = peer.state_dict()
    renamed = {name: written[in_files(name, "huggingface")] for name in expected}
    peer.load_state_dict(shaped_like(renamed, expected))
    _save(folder, peer, subject)
    _write_processor(folder, subject)


def _save(folder: Path, peer: Any, subject: Subject) -> None:
    peer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config[KEY] = subject.description.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _write_processor(folder: Path, subject: Subject) -> None:
    height, width = subject.description.image_size
    shown = round(height / crop_share(height))
    found: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shown},
        "resample": RESAMPLE[subject.description.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": subject.description.moments is not None,
    }
    if subject.description.moments:
        found["image_mean"], found["image_std"] = map(list, subject.description.moments)
    (folder / "preprocessor_config.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _write_mae(folder: Path, subject: Subject) -> float:
    """A masked autoencoder of a plain ViT with a class token, as ViTMAEForPreTraining, decoder and all."""
    transformers = _transformers()
    model = subject.model
    if not (_is_vit(model, distilled=False) and subject.masked and subject.run and subject.config):
        raise ModelError(
            f"transformers' masked autoencoder is a ViT with a class token, which {model.preset} is not: use "
            "`--to timm` for its features"
        )
    assert isinstance(model, MetaFormer)
    objective = load_objective(subject.run, open_split(subject.config.data, "train", may_fetch=False)).eval()
    assert isinstance(objective, Masked)
    decoder = subject.masked
    config = transformers.ViTMAEConfig(
        **_vit(model)[1],
        num_channels=model.in_channels,
        decoder_num_attention_heads=decoder.decoder_heads,
        decoder_hidden_size=decoder.decoder_width,
        decoder_num_hidden_layers=decoder.decoder_depth,
        decoder_intermediate_size=4 * decoder.decoder_width,
        mask_ratio=_mask_ratio(objective.visible, objective.grid[0] * objective.grid[1]),
        norm_pix_loss=decoder.normalise,
    )
    peer = transformers.ViTMAEForPreTraining(config)
    expected = peer.state_dict()
    peer.load_state_dict(shaped_like(mae_state(objective, expected), expected))
    _save(folder, peer, subject)
    _write_processor(folder, subject)
    loaded = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    images = subject.images(IMAGES)
    noise = torch.rand(IMAGES, objective.grid[0] * objective.grid[1], generator=torch.Generator().manual_seed(1))
    order = noise.argsort(dim=1)
    with torch.inference_mode():
        theirs = loaded(images, noise=noise).logits
        hidden = order[:, objective.visible :]
        theirs = theirs.gather(1, hidden[..., None].expand(-1, -1, theirs.shape[-1]))
        return check(difference(theirs, objective.predict(images, order)), "transformers' ViTMAEForPreTraining")


def _mask_ratio(visible: int, patches: int) -> float:
    """The share of hidden patches from which transformers comes to as many visible ones."""
    ratio = 1 - visible / patches
    return ratio if int(patches * (1 - ratio)) == visible else 1 - (visible + 0.5) / patches


def _is_vit(model: Backbone, *, distilled: bool) -> bool:
    if not isinstance(model, MetaFormer) or model.family not in ("vit", "mae", "deit"):
        return False
    config = model.config
    plain = not config.qk_norm and config.layer_scale is None and config.activation == "gelu" and config.qkv_bias
    return plain and config.pool == "token" and config.distilled is distilled


def _is_poolformer(model: Backbone) -> bool:
    if not isinstance(model, MetaFormer) or model.family != "poolformer":
        return False
    config = model.config
    same = (set(config.mixers), config.norm, config.norm_eps, config.activation) == ({"pooling"}, "group", 1e-5, "gelu")
    ratios = {hidden / width for hidden, width in zip(config.mlp_widths, config.widths, strict=True)}
    return same and not config.pool_first and config.residual and config.channel_mlp and len(ratios) == 1


def _vit(model: Backbone) -> tuple[str, dict[str, Any]]:
    assert isinstance(model, MetaFormer)
    config = model.config
    return "DeiT" if config.distilled else "ViT", {
        "image_size": model.image_size[0] if len(set(model.image_size)) == 1 else list(model.image_size),
        "patch_size": config.stem_stride,
        "hidden_size": config.widths[0],
        "num_hidden_layers": config.depths[0],
        "num_attention_heads": config.heads[0],
        "intermediate_size": config.mlp_widths[0],
        "layer_norm_eps": config.norm_eps,
    }


def _poolformer(model: Backbone) -> tuple[str, dict[str, Any]]:
    assert isinstance(model, MetaFormer)
    config, stages = model.config, len(model.config.depths)
    return "PoolFormer", {
        "num_encoder_blocks": stages,
        "depths": list(config.depths),
        "hidden_sizes": list(config.widths),
        "patch_sizes": [config.stem_kernel, *[config.down_kernel] * (stages - 1)],
        "strides": [config.stem_stride, *[2] * (stages - 1)],
        "padding": [config.stem_padding, *[config.down_padding] * (stages - 1)],
        "mlp_ratio": config.mlp_widths[0] / config.widths[0],
        "pool_size": config.pool_size,
        "use_layer_scale": config.layer_scale is not None,
        "layer_scale_init_value": config.layer_scale or 1e-5,
    }


def _pvt(model: Backbone) -> tuple[str, dict[str, Any]]:
    assert isinstance(model, MetaFormer)
    config = model.config
    reductions = "sr_ratios" if model.family == "pvt_v2" else "sequence_reduction_ratios"
    return "PvtV2" if model.family == "pvt_v2" else "Pvt", {
        "image_size": model.image_size[0],
        "depths": list(config.depths),
        "hidden_sizes": list(config.widths),
        "num_attention_heads": list(config.heads),
        "mlp_ratios": [hidden // width for hidden, width in zip(config.mlp_widths, config.widths, strict=True)],
        reductions: list(config.reductions or ()),
        "layer_norm_eps": config.norm_eps,
    }


def _is_hugging_face_s(config: BiTConfig) -> bool:
    return config.factor == 1 and config.norm == "group"


def _bit(model: Backbone) -> tuple[str, dict[str, Any]]:
    assert isinstance(model, BiT)
    return "Bit", {
        "depths": list(model.config.depths),
        "width_factor": model.config.factor,
        "embedding_size": 64 * model.config.factor,
    }


_NATIVE: tuple[tuple[Callable[[Backbone], bool], Callable[[Backbone], tuple[str, dict[str, Any]]]], ...] = (
    (lambda model: _is_vit(model, distilled=False) or _is_vit(model, distilled=True), _vit),
    (_is_poolformer, _poolformer),
    (lambda model: model.family == "pvt", _pvt),
    # One eps for all norms: PVT v2 with the authors' two goes through timm, which has both.
    (lambda model: isinstance(model, MetaFormer) and model.family == "pvt_v2" and model.config.norm_eps == 1e-5, _pvt),
    (lambda model: model.family == "bit" and isinstance(model, BiT) and _is_hugging_face_s(model.config), _bit),
)
