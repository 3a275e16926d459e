"""The parity table of docs/sharing.md: every family exported to every format, as `isoflop export` measures it.

    python benchmarks/parity.py [FAMILY ...]

Weights are random, with every vector moved off its start, so that no parameter is without effect.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import IsoflopError
from isoflop.models import create_model
from isoflop.models.saved import describe_model, save_model
from isoflop.share import FORMATS, export

ONE = {"depths": (1, 1, 1, 1)}
# A model of each family, cut in depth where it adds only time: preset, pixels, options.
MODELS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("vit_w24d2p8", 32, {}),
    ("vit_ti16_token", 32, {"depths": (2,)}),
    ("vit_ti16_map", 32, {"depths": (2,)}),
    ("mae_b16", 32, {"depths": (1,)}),
    ("deit_ti16", 32, {"depths": (2,)}),
    ("deit_ti16_distilled", 32, {"depths": (2,)}),
    ("mixer_s32", 32, {}),
    ("resmlp_s12", 32, {}),
    ("gmlp_ti16", 32, {}),
    ("fnet_s16", 32, {"depths": (2,)}),
    ("poolformer_w8d2p8", 32, {}),
    ("poolformer_s12", 64, {}),
    ("poolformer_s24", 64, {"pool_first": True, "last_norm": "layer", "last_norm_eps": 1e-6}),
    ("poolformerv2_s12", 64, {}),
    ("identityformer_s12", 64, {}),
    ("randformer_s12", 64, {}),
    ("convformer_s18", 64, {}),
    ("caformer_s18", 64, {}),
    ("pvt_ti", 64, {}),
    ("pvt_v2_b0", 64, {}),
    ("swin_mixer_t_d24", 64, ONE),
    ("nfnet_w8d2", 32, {}),
    ("nfnet_f0", 64, {"depths": (1, 1, 2, 1), "widths": (32, 64, 96, 128), "final_width": 256, "group_width": 16,
                      "stem_widths": (8, 16, 32, 64), "activation": "gelu"}),
    ("bit_r50x1", 64, {}),
)  # fmt: skip


def sample(preset: str, size: int, options: dict[str, Any], folder: Path) -> Path:
    """A folder of weights of that model, for ten classes."""
    model = create_model(preset, image_size=size, num_classes=10, seed=0, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator)
            if parameter.ndim <= 1 or parameter.shape[:2] == (1, 1):
                parameter.add_(0.3 * noise + 0.1)
            elif not parameter.any():
                parameter.add_(0.04 * (noise - 0.5))
    folder.mkdir()
    moments = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_model(folder, model.state_dict(), describe_model(model, options, moments=moments))
    return folder


def main(wanted: list[str]) -> None:
    """Prints a row of Markdown for each model."""
    print("| model | timm | Hugging Face | ONNX Runtime | safetensors |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for preset, size, options in MODELS:
            if wanted and not any(word in preset for word in wanted):
                continue
            folder, cells, reasons = sample(preset, size, options, Path(place) / preset), [], []
            for format in FORMATS:
                try:
                    cells.append(f"{export(str(folder), format, Path(place) / f'{preset}-{format}').difference:.1e}")
                except IsoflopError as error:
                    cells.append("no")
                    reasons.append(f"{preset} {format}: {error}")
            print(f"| `{preset}` | {' | '.join(cells)} |", flush=True)
            print("\n".join(reasons), end="\n" if reasons else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
