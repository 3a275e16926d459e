"""The tables of docs/scaling.md: ViT-G/14 and NFNet-F7+ on many H100s, on paper.

python benchmarks/scaling.py        # prints them; a test holds the document to them
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from isoflop.config import load_run
from isoflop.train.device import ACCELERATORS
from isoflop.train.forecast import workload
from isoflop.train.scaling import (
    MATRIX_SHARE,
    DeviceLayout,
    Workload,
    checkpoint_bytes,
    communication,
    memory,
    reliability,
    step_time,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RUNS = {"ViT-G/14": "vit_g14_pretraining.toml", "NFNet-F7+": "nfnet_jft.toml"}
DEVICES = (8, 64, 512, 4096)
BATCH = 32_768  # the largest of the papers: eight images a device on 4,096
DEVICE_BATCH = 64  # images at a time
H100 = ACCELERATORS["h100"]


def tables(name: str) -> Iterator[str]:
    """The tables of one run as Markdown, in the order of the document."""
    config = load_run(RECIPES / RUNS[name], ["parallel.recompute=1"]).config
    assert config.data.num_classes
    work = workload(config, config.data.num_classes)
    yield _counts(name, work)
    yield _by_devices(work)
    yield _reliability(work)


def _counts(name: str, work: Workload) -> str:
    return _table(
        (name, ""),
        [
            ("parameters P", f"{work.parameters / 1e6:,.1f} M"),
            (
                "optimizer state",
                f"{work.state_bytes / 1e9:.2f} GB, {work.state_bytes / 4 / work.parameters:.3f} × weights",
            ),
            ("training FLOPs an image", f"{work.flops_per_image / 1e9:,.0f} G"),
            ("computed again an image", f"{work.recomputed_flops_per_image / 1e9:,.0f} G"),
            ("activations an image, every block computed again", f"{work.activation_bytes / 1e6:,.1f} MB"),
            ("largest part gathered at a time", f"{work.largest_block / 1e6:,.1f} M parameters"),
            ("checkpoint", f"{checkpoint_bytes(work) / 1e9:.2f} GB"),
        ],
    )


def _by_devices(work: Workload) -> str:
    rows = []
    for devices in DEVICES:
        for sharding in ("none", "full", "hybrid"):
            layout = DeviceLayout(devices, BATCH, sharding, DEVICE_BATCH)
            needs, sent = memory(work, layout), communication(work, layout, H100)
            step = step_time(work, layout, H100, MATRIX_SHARE)
            rows.append(
                (
                    f"{devices:,}",
                    sharding,
                    f"{(needs.weights + needs.gradients + needs.optimizer) / 1e9:.2f}",
                    f"{needs.total / 1e9:.1f}",
                    f"{layout.images_per_device:g}",
                    f"{sent.bytes / 1e9:.2f}",
                    f"{1e3 * sent.seconds:,.0f}",
                    f"{1e3 * step.compute:,.0f}",
                    f"{1e3 * step.total:,.0f}",
                    f"{BATCH / step.total:,.0f}",
                )
            )
    head = (
        "H100s", "sharding", "weights, gradients, state, GB", "memory, GB", "images a step", "sent a step, GB",
        "network, ms", "compute, ms", "step, ms", "images/s",
    )  # fmt: skip
    return _table(head, rows)


def _reliability(work: Workload) -> str:
    rows = []
    for devices in DEVICES:
        layout = DeviceLayout(devices, BATCH, "hybrid", DEVICE_BATCH)
        best, often = reliability(work, layout), reliability(work, layout, interval=600.0)
        rows.append(
            (
                f"{devices:,}",
                f"{best.seconds_between_failures / 3600:,.1f}",
                f"{1e3 * best.pause:,.0f}",
                f"{best.write:.1f}",
                f"{best.interval / 60:.1f}",
                f"{100 * best.goodput:.2f} %",
                f"{100 * often.goodput:.2f} %",
            )
        )
    head = (
        "H100s", "hours between failures", "pause, ms", "write, s", "best interval, min", "goodput", "every 10 min",
    )  # fmt: skip
    return _table(head, rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print("\n\n".join(table for name in RUNS for table in tables(name)))
