"""LeJEPA: does its held-out loss follow the accuracy of its features? A ladder of sizes and lengths with one λ.

python benchmarks/lejepa.py results/lejepa --data parquet:imagenet64_100

A run that is there is not trained again. The accuracy is that of ridge regression on features of 10,000 training
images, on the test split. The table has Spearman's rank correlation of the loss with it, over all runs.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from isoflop.config import RunConfig, parse
from isoflop.data import Source, open_source
from isoflop.models import Backbone
from isoflop.train import read_journal, train
from isoflop.train.device import normalize
from isoflop.train.probe import ridge_scores
from isoflop.transfer import open_backbone

LADDER = (
    *(("resnet9_w8p2", steps) for steps in (60, 200, 600)),
    *(("resnet9_w16p2", steps) for steps in (50, 150, 400)),
    ("resnet9_w24p2", 100),
)
RIDGE_IMAGES = 10_000


def config(data: str, model: str, steps: int) -> RunConfig:
    """One run of the ladder; all differ only in size and length."""
    return parse(
        {
            "model": {"name": model},
            "steps": steps,
            "batch_size": 128,
            "precision": "float32",
            "tensorboard": False,
            "data": {"source": data, "image_size": 32, "heldout": 2048},
            "objective": {"name": "lejepa", "views": 2, "projector_width": 256},
            "optim": {"learning_rate": 0.002},
            "schedule": {"warmup": 20},
        },
        RunConfig,
    )


@torch.no_grad()
def features(model: Backbone, source: Source, images: Tensor) -> Tensor:
    """Pooled features of `images`, in evaluation mode."""
    device = torch.device("cpu")
    return torch.cat([model.eval().features(normalize(part, source, device)) for part in images.split(500)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--data", default="parquet:imagenet64_100")
    asked = parser.parse_args()
    source, test = (open_source(asked.data, split=split, image_size=32) for split in ("train", "test"))
    known, labels = source.read(np.sort(source.order.locate(np.arange(RIDGE_IMAGES), 0)[1]))
    others, truth = test.read(np.arange(len(test)))
    rows = []
    print("| model | steps | held-out loss | invariance | SIGReg | RankMe | online probe | ridge, 10,000 images |")
    print("|---|---|---|---|---|---|---|---|")
    for model, steps in LADDER:
        run = asked.results / f"{model}-{steps}"
        train(config(asked.data, model, steps), run)
        end = read_journal(run)[-1]
        backbone = open_backbone(str(run)).model
        scores = ridge_scores(features(backbone, source, known), labels, features(backbone, source, others), 100)
        accuracy = (scores.argmax(dim=1) == truth).double().mean().item()
        rows.append((end["heldout_loss"], accuracy, end["probe_accuracy"], end["rankme"]))
        print(
            f"| {model} | {steps} | {end['heldout_loss']:.4f} | {end['heldout_invariance']:.4f} "
            f"| {end['heldout_sigreg']:.3f} | {end['rankme']:.1f} | {100 * end['probe_accuracy']:.1f} "
            f"| {100 * accuracy:.1f} |",
            flush=True,
        )
    loss, ridge, online, rank = zip(*rows, strict=True)
    for name, values in (("ridge", ridge), ("online probe", online), ("RankMe", rank)):
        print(f"Spearman's correlation of -loss and {name}: {spearmanr(-np.array(loss), values).statistic:.2f}")


if __name__ == "__main__":
    main()
