"""Tables of results that ship with isoflop, each with its source: for tests, benchmarks and examples."""

import csv
from importlib.resources import files

from isoflop.errors import LawError

SOURCES: dict[str, str] = {
    "learning_curves_vision": "36 few-shot learning curves of 6 models, arXiv 2209.06640, CC BY 4.0; error against "
    "examples seen, `training` = 1 marks the part that is fitted",
    "scaling_vit_fewshot": "arXiv 2106.04560, appendix G: 5- and 10-shot ImageNet accuracy in %, steps at batch 4096",
    "scaling_vit_finetune": "arXiv 2106.04560, appendix F: ImageNet accuracy in % after fine-tuning, "
    "steps at batch 4096",
    "nfnet_jft4b_digitised": "arXiv 2310.16764, figure 1, digitised: ImageNet top-1 error in % after fine-tuning "
    "against TPU-v4 core-hours; as digitised, the four points called F7+ repeat four of F7, and the run of 110,000 "
    "core-hours is missing",
    "fractal_grid": "isoflop's own: ViT and pooling models on generated fractals, one CPU core, AdamW",
}
"""Name → where the numbers come from and what their columns mean."""

VIT_GFLOPS: dict[str, float] = {
    "s/28": 0.7, "s/16": 2.2, "S/32": 2.3, "Ti/16": 2.5, "B/32": 8.7, "S/16": 9.2, "B/28": 11.3, "B/16": 35.1,
    "L/16": 122.9, "g/14": 533.1, "G/14": 965.3,
}  # fmt: skip
"""GFLOPs (2 × MACs) of a forward pass at 224 px, arXiv 2106.04560, table 2; training an image costs three of them."""


def load_table(name: str) -> dict[str, list[str]]:
    """The columns of a bundled table as text, in file order.

    Raises:
        LawError: no such table.
    """
    if name not in SOURCES:
        raise LawError(f"there is no bundled table `{name}`; there are {', '.join(sorted(SOURCES))}")
    rows = list(csv.DictReader((files("isoflop.laws") / "tables" / f"{name}.csv").read_text("utf-8").splitlines()))
    return {column: [row[column] for row in rows] for column in rows[0]}
