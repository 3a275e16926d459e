"""Weights of Hugging Face's ViTMAEForPreTraining for our masked autoencoder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from isoflop.errors import ModelError
from isoflop.models.interop import load_weights, to_layout
from isoflop.models.interop.layouts import in_files
from isoflop.objectives.masked import Masked

# Their names, of which transformers 5 shows others than its files have, to ours. Query, key and value become one.
DECODER = (
    (r"^decoder_embed\.", "embed."),
    (r"^decoder_norm\.", "norm."),
    (r"^decoder_pred\.", "predict."),
    (r"^decoder_layers\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.attention\.output\.dense\.", ".mixer.proj."),
    (r"(\d)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".mixer.\1."),
    (r"\.attention\.q_proj\.", ".mixer.query."),
    (r"\.attention\.k_proj\.", ".mixer.key."),
    (r"\.attention\.v_proj\.", ".mixer.value."),
    (r"\.attention\.o_proj\.", ".mixer.proj."),
)


def load_huggingface_mae(objective: Masked, state: Mapping[str, Tensor]) -> None:
    """Copies the weights of a ViTMAEForPreTraining of the same shape into `objective`, encoder and decoder.

    Raises ModelError for weights of another shape.
    """
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("vit.")}
    load_weights(objective.backbone, encoder, "huggingface", head=False)
    decoder: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("decoder."):
            ours = name.removeprefix("decoder.")
            for pattern, replacement in DECODER:
                ours = re.sub(pattern, replacement, ours)
            decoder[ours] = tensor
    # The class token has no position in the decoder.
    decoder["positions"] = decoder.pop("decoder_pos_embed", torch.empty(1, 1, 0))[:, 1:]
    for name in [name for name in decoder if ".query." in name]:
        parts = [decoder.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        decoder[name.replace("query", "qkv")] = torch.cat(parts)
    try:
        objective.decoder.load_state_dict(decoder)
    except RuntimeError as error:
        raise ModelError(f"these weights are not of this decoder: {' '.join(str(error).split())}") from error


def mae_state(objective: Masked, names: Iterable[str]) -> dict[str, Tensor]:
    """The weights of `objective`, a plain ViT's, under those `names` of a ViTMAEForPreTraining of its shape."""
    encoder = to_layout(objective.backbone, "huggingface")
    decoder = dict(objective.decoder.state_dict())
    positions = decoder["positions"]
    out: dict[str, Tensor] = {}
    for name in names:
        if not name.startswith("decoder."):
            out[name] = encoder[in_files(name, "huggingface")]
            continue
        ours = name.removeprefix("decoder.")
        for pattern, replacement in DECODER:
            ours = re.sub(pattern, replacement, ours)
        part = re.search(r"\.(query|key|value)\.", ours)
        if ours == "decoder_pos_embed":
            out[name] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        elif part:
            whole = decoder[ours.replace(part[1], "qkv")]
            out[name] = whole.chunk(3)[("query", "key", "value").index(part[1])]
        else:
            out[name] = decoder[ours]
    return out
