"""A hundred steps of every family give the losses that are stored here, to the rounding of another machine.

A change of them is a change of what is learned: of an initialisation, a model, an augmentation, an optimizer. When it
is meant, `python tests/train/test_golden.py` stores the new ones, and the change log says why.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from isoflop.config import RunConfig, parse
from isoflop.data import batches, open_split
from isoflop.models import create_model
from isoflop.objectives import Supervised
from isoflop.train.layout import arrange
from isoflop.train.optim.build import rate_factor
from isoflop.train.ranks import Ranks
from isoflop.train.step import Step

STORED = Path(__file__).with_name("golden.json")
STEPS = 100
STAGES: dict[str, Any] = {
    "depths": (1, 1),
    "widths": (8, 16),
    "heads": (1, 2),
    "mlp_widths": (16, 32),
    "drop_path": 0.1,
}
ISOTROPIC: dict[str, Any] = {
    "depths": (2,), "widths": (16,), "heads": (2,), "mlp_widths": (32,), "stem_kernel": 8, "stem_stride": 8,
    "drop_path": 0.1,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_w12d2p8", {"drop_path": 0.1}),
    "deit": ("deit_ti16_distilled", ISOTROPIC),
    "mixer": ("mixer_s32", {**ISOTROPIC, "mixer_widths": (16,)}),
    "resmlp": ("resmlp_s12", ISOTROPIC),
    "gmlp": ("gmlp_ti16", {**ISOTROPIC, "mixer_widths": (32,)}),
    "fnet": ("fnet_s16", ISOTROPIC),
    "poolformer": ("poolformer_w8d2p8", {"drop_path": 0.1}),
    "identityformer": ("identityformer_s12", {**STAGES, "mixers": ("identity",) * 2, "res_scale": (None, 1.0)}),
    "randformer": ("randformer_s12", {**STAGES, "mixers": ("identity", "random"), "res_scale": (None, 1.0)}),
    "poolformerv2": ("poolformerv2_s12", {**STAGES, "mixers": ("pooling",) * 2, "res_scale": (None, 1.0)}),
    "convformer": ("convformer_s18", {**STAGES, "mixers": ("separable_conv",) * 2, "res_scale": (None, 1.0)}),
    "caformer": ("caformer_s18", {**STAGES, "mixers": ("separable_conv", "attention"), "res_scale": (None, 1.0)}),
    "pvt": ("pvt_ti", {**STAGES, "mixers": ("reduced_attention",) * 2, "reductions": (4, 1)}),
    "pvt_v2": ("pvt_v2_b0", {**STAGES, "mixers": ("reduced_attention",) * 2, "reductions": (4, 1)}),
    "swin_mixer": ("swin_mixer_t_d24", {**STAGES, "mixers": ("window_mlp",) * 2, "window": 2}),
    "nfnet": ("nfnet_w8d2", {"drop_path": 0.1, "dropout": 0.1}),
    "bit": ("bit_r50x1", {"depths": (1,)}),
    "resnet": ("resnet_w8d8p2", {}),
}
OPTIM = {
    "nfnet": {"name": "sgd", "learning_rate": 0.1, "agc": 0.01, "weight_decay": 2e-5},
    "resnet": {"name": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4},  # at 0.1 rounding decides step 30
}


def losses(family: str) -> list[float]:
    """The training losses of every tenth of 100 steps."""
    name, overrides = MODELS[family]
    values = {
        "model": {"name": name},
        "steps": STEPS,
        "precision": "float32",
        "batch_size": 4 if family == "bit" else 16,
        "data": {"source": "fractals?classes=10&images=500", "augment": "crop_flip"},
        "optim": OPTIM.get(family, {"learning_rate": 1e-3}),
        "schedule": {"warmup": 10},
    }
    config = parse(values, RunConfig)
    source = open_split(config.data, "train")
    model = create_model(
        name, num_classes=source.num_classes, image_size=32, in_channels=source.channels, seed=1, **overrides
    )
    ranks = Ranks(torch.device("cpu"))
    step = Step(arrange(Supervised(model, label_smoothing=0.1), config, ranks), source, config, ranks)
    step.objective.train()
    feed = batches(
        source, seed=0, batch_size=config.batch_size, start_step=0, stop_step=STEPS, augment=config.data.augment
    )
    found = [
        step(batch, config.optim.learning_rate * rate_factor(config.schedule, batch.step, STEPS)).loss for batch in feed
    ]
    return [round(loss, 6) for loss in found[::10]]


@pytest.mark.parametrize("family", MODELS)
def test_a_hundred_steps_give_the_stored_losses(family: str) -> None:
    stored = json.loads(STORED.read_text())[family]
    assert losses(family) == pytest.approx(stored, abs=2e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(MODELS)
    known = json.loads(STORED.read_text()) if STORED.exists() else {}
    known |= {family: losses(family) for family in chosen}
    lines = [f"{json.dumps(family)}: {json.dumps(known[family])}" for family in MODELS if family in known]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
