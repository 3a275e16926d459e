"""The report of a masked study shows what was made of held-out images over time."""

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from isoflop.config import RunConfig, parse
from isoflop.report import write_report
from isoflop.report.inspection.pictures import progress_sheet, reconstruction_pictures
from isoflop.runs.reconstructions import read_reconstructions
from isoflop.train import train

MASKED = {
    "model": {"name": "vit_w12d2p8"},
    "steps": 8,
    "batch_size": 8,
    "tensorboard": False,
    "objective": {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2},
    "data": {"source": "fractals?classes=5", "heldout": 16},
    "evaluation": {"every": 4},
}


def test_the_report_shows_the_reconstructions_of_masked_runs(tmp_path: Path) -> None:
    train(parse(MASKED, RunConfig), tmp_path / "runs" / "masked")
    row = {"run_id": "masked", "role": "final", "model": "vit_w12d2p8", "budget": 1e6, "train_flops": 1e6}
    labelled = {**row, "run_id": "never-masked"}
    (picture,) = reconstruction_pictures(tmp_path, [labelled, row])
    page = write_report([], {}, {}, tmp_path / "report.html", [picture]).read_text()
    (shown,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))))
    assert np.array_equal(pixels, progress_sheet(read_reconstructions(tmp_path / "runs" / "masked")))
    assert "vit_w12d2p8 at 1e+06 FLOPs" in page
    assert "Reconstructions" not in write_report([], {}, {}, tmp_path / "plain.html").read_text()
