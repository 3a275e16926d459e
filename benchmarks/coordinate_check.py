"""The coordinate check of μP: how far activations move in four steps, against the width, with and without it.

    python benchmarks/coordinate_check.py [--picture docs/images/coordinate_check.png]

Each point is the mean |change| of a layer's output on a fixed batch (`coordinates.py`), the mean of three
seeds; the number behind a line is its slope in log-log. μP is right if they are flat (arXiv 2203.03466, appendix D.1).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from coordinates import coordinate_changes

from isoflop.config import RunConfig, parse

WIDTHS = (16, 32, 64, 128, 256)
BASE, STEPS, SEEDS, RATE = 16, 4, (0, 1, 2), 0.01
MODELS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "PoolFormer": {
        "mixers": ["pooling"],
        "norm": "group",
        "norm_eps": 1e-5,
        "init": "trunc_normal",
        "positions": "none",
    },
}


def config(width: int, mup: int | None, seed: int, **model: Any) -> RunConfig:
    """A run of a network of depth 2 over 8x8 patches."""
    shape = {"name": "vit_w16d2p8", "widths": [width], "mlp_widths": [4 * width], "heads": [width // 16]}
    return parse(
        {
            "model": shape | model,
            "steps": STEPS,
            "batch_size": 32,
            "seed": seed,
            "optim": {"learning_rate": RATE, "mup": mup or "none", "clip": "none"},
            "data": {"source": "fractals?classes=20", "heldout": 32},
        },
        RunConfig,
    )


def measure(mup: int | None, **model: Any) -> dict[str, list[float]]:
    """Layer → mean change at each width."""
    found: dict[str, list[float]] = {}
    for width in WIDTHS:
        changes = [coordinate_changes(config(width, mup, seed, **model)) for seed in SEEDS]
        for name in changes[0]:
            found.setdefault(name, []).append(float(np.mean([change[name] for change in changes])))
    return found


def slope(values: list[float]) -> float:
    return float(np.polyfit(np.log(WIDTHS), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path)
    picture = parser.parse_args().picture
    found = {(name, mup): measure(mup, **model) for name, model in MODELS.items() for mup in (None, BASE)}
    print(f"| network | layer | {' | '.join(f'w{width}' for width in WIDTHS)} | slope |")
    print("|---|---|" + "---|" * (len(WIDTHS) + 1))
    for (name, mup), layers in found.items():
        for layer, values in layers.items():
            told = " | ".join(f"{value:.3g}" for value in values)
            print(f"| {name}{', μP' if mup else ''} | {layer} | {told} | {slope(values):+.2f} |")
    if picture:
        draw(found, picture)


def draw(found: dict[tuple[str, int | None], dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3.4 * len(found), 3.4), sharey=True)
    for axis, ((name, mup), layers) in zip(axes, found.items(), strict=True):
        for layer, values in layers.items():
            axis.plot(WIDTHS, values, marker="o", label=f"{layer} {slope(values):+.2f}")
        axis.set(title=f"{name}, {'μP' if mup else 'standard'}", xscale="log", yscale="log", xlabel="width")
        axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    axes[0].set_ylabel(f"mean |change| after {STEPS} steps")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
