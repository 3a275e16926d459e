"""Text through the grammar of vision backbones: which token mixer tells best, at equal compute, what language this is?

    python examples/text.py                        # 1e11 training FLOPs a mixer: minutes on one core

A text is an image of one row whose pixels are bytes, and its stem is an embedding of tokens instead of patches: nothing
else of the model changes. The data come with the libraries that isoflop needs: pieces of 64 bytes of their own files,
whose classes are the languages that the files are written in. The last fifth of every file is held out.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop import create_model
from isoflop.config import RunConfig, parse
from isoflop.data import Source, batches
from isoflop.objectives import Supervised
from isoflop.train import rate_factor
from isoflop.train.device import Precision
from isoflop.train.evaluate import evaluate
from isoflop.train.ranks import Ranks
from isoflop.train.step import Step

# language: a package and where its files lie
LANGUAGES = {
    "Python": ("sklearn", "**/*.py"),
    "Cython": ("scipy", "**/*.pyx"),
    "Python stubs": ("numpy", "**/*.pyi"),
    "C++": ("torch", "include/c10/**/*.h"),
    "CUDA": ("torch", "include/ATen/**/*.cuh"),
    "CMake": ("torch", "share/cmake/**/*.cmake"),
    "YAML": ("torchgen", "packaged/**/*.yaml"),
}
PIECES = 4000  # of each language, a quarter as many held out
LENGTH = 64
TOKENS = 256  # bytes
MIXERS = ("attention", "pooling", "depthwise", "fourier", "identity")


class TokenStem(nn.Module):
    """Tokens (batch, 1, rows, columns), whole numbers as floats, to their vectors (batch, rows, columns, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.embedding(tokens[:, 0].round().long())
        return vectors


def text_model(mixer: str, *, num_classes: int, width: int = 32, depth: int = 2, seed: int = 0) -> nn.Module:
    """A MetaFormer of one stage over a row of tokens: learned positions, the mean of the tokens, a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = create_model(
            "vit_w32d4p8", num_classes=num_classes, image_size=(1, LENGTH), in_channels=1, seed=seed,
            depths=(depth,), widths=(width,), mlp_widths=(4 * width,), mixers=(mixer,), stem_kernel=1, stem_stride=1,
        )  # fmt: skip
        model.stem = TokenStem(width)
    return model


class Texts(Source):
    """Pieces of text as a source: bytes (N, LENGTH) and labels (N,). Its mean and deviation leave bytes as they are."""

    def __init__(self, pieces: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
        moments = (0.0,), (1 / 255,)
        shape: Any = {"image_size": LENGTH, "channels": 1}
        super().__init__("texts", len(pieces), fingerprint="", class_names=class_names, moments=moments, **shape)
        self.pieces, self.classes = pieces, labels

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(self.pieces[indices]).view(len(indices), 1, 1, LENGTH)
        return rows, torch.from_numpy(self.classes[indices])


def bundled(root: Path) -> tuple[Texts, Texts]:
    """Training and held-out pieces of the packages below `root`, the same number of every language that is there."""
    found: dict[str, list[NDArray[np.uint8]]] = {}
    for language, (package, pattern) in LANGUAGES.items():
        files = sorted((root / package).glob(pattern))
        data = [np.frombuffer(file.read_bytes(), dtype=np.uint8) for file in files]
        pieces = [d[: len(d) // LENGTH * LENGTH].reshape(-1, LENGTH) for d in data]
        if pieces:
            parts = [(p[: len(p) * 4 // 5], p[len(p) * 4 // 5 :]) for p in pieces]
            found[language] = [np.concatenate([part[which] for part in parts]) for which in (0, 1)]
    train, heldout = (
        _balanced([parts[which] for parts in found.values()], most, tuple(found))
        for which, most in ((0, PIECES), (1, PIECES // 4))
    )
    return train, heldout


def _balanced(pieces: list[NDArray[np.uint8]], most: int, names: tuple[str, ...]) -> Texts:
    count = min(most, *(len(own) for own in pieces))
    chosen = [own[np.linspace(0, len(own) - 1, count).astype(np.int64)] for own in pieces]
    return Texts(np.concatenate(chosen), np.repeat(np.arange(len(pieces)), count), names)


def train_flops(model: nn.Module) -> int:
    """Training FLOPs of one text: three forward passes. Looking up a vector costs none."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 1, 1, LENGTH))
    return 3 * counter.get_total_flops()


def trained(
    mixer: str, texts: tuple[Texts, Texts], *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> dict[str, float]:
    """Held-out loss and accuracy of one model after `steps` steps."""
    source, heldout = texts
    config = parse(
        {
            "model": {"name": mixer},
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
            "precision": "float32",
            "optim": {"learning_rate": learning_rate, "weight_decay": 0.01},
            "schedule": {"warmup": min(50, steps // 10), "cooldown": 0.5},
        },
        RunConfig,
    )
    model: Any = text_model(mixer, num_classes=source.num_classes, seed=seed)
    objective, ranks = Supervised(model), Ranks(torch.device("cpu"))
    step = Step(objective, source, config, ranks)
    made = batches(source, seed=seed, batch_size=batch_size, start_step=0, stop_step=steps)
    for number, batch in enumerate(made):
        step(batch, learning_rate * rate_factor(config.schedule, number, steps))
    return evaluate(objective, heldout, batch_size=256, ranks=ranks, precision=Precision())


def compare(
    texts: tuple[Texts, Texts], flops: float, *, batch_size: int, learning_rates: tuple[float, ...], seeds: int
) -> list[dict[str, Any]]:
    """A row per mixer, trained with `flops` each: steps, held-out loss and accuracy, mean and deviation over seeds.

    The learning rate of a mixer is the best one of seed 0, which the means leave out: they are of seeds 1, 2, ...
    """
    rows = []
    for mixer in MIXERS:
        model = text_model(mixer, num_classes=texts[0].num_classes)
        steps = max(1, round(flops / train_flops(model) / batch_size))
        how = {"steps": steps, "batch_size": batch_size}
        losses = {
            rate: trained(mixer, texts, **how, learning_rate=rate, seed=0)["heldout_loss"]
            for rate in (learning_rates if len(learning_rates) > 1 else ())
        }
        rate = min(losses, key=lambda tried: losses[tried], default=learning_rates[0])
        found = [trained(mixer, texts, **how, learning_rate=rate, seed=1 + k) for k in range(seeds)]
        accuracies = [row["heldout_accuracy"] for row in found]
        rows.append(
            {
                "mixer": mixer,
                "parameters": sum(p.numel() for p in model.parameters()),
                "train_flops_per_text": train_flops(model),
                "steps": steps,
                "learning_rate": rate,
                "loss": float(np.mean([row["heldout_loss"] for row in found])),
                "accuracy": float(np.mean(accuracies)),
                "accuracies": accuracies,
                "std": float(np.std(accuracies, ddof=1)) if seeds > 1 else None,
            }
        )
        spread = f" ± {rows[-1]['std']:.3f}" if rows[-1]["std"] is not None else ""
        told = f"loss {rows[-1]['loss']:.3f}, accuracy {rows[-1]['accuracy']:.3f}{spread}"
        print(f"{mixer:10} {steps:6} steps at rate {rate:g}  {told}", flush=True)
    return rows


def byte_counts_accuracy(texts: tuple[Texts, Texts]) -> float:
    """Held-out accuracy of logistic regression on how often each byte occurs: what can be told without any order."""
    counts = [np.stack([np.bincount(piece, minlength=TOKENS) for piece in part.pieces]) for part in texts]
    linear = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=1000))
    return float(linear.fit(counts[0], texts[0].classes).score(counts[1], texts[1].classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=1e11, help="training FLOPs of a mixer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file of the rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    texts = bundled(Path(sysconfig.get_paths()["purelib"]))
    print(f"{len(texts[0]):,} pieces to learn from, {len(texts[1]):,} held out, of {', '.join(texts[0].class_names)}")
    print(f"logistic regression on counts of bytes: accuracy {byte_counts_accuracy(texts):.3f}", flush=True)
    rows = compare(
        texts,
        given.flops,
        batch_size=given.batch_size,
        learning_rates=tuple(given.learning_rates),
        seeds=given.seeds,
    )
    if given.output:
        given.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
