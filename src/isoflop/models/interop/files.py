"""Weight files, read without running any code that is in them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from isoflop.errors import ModelError


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
