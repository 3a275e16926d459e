"""benchmarks/gpu.py runs to its end where there is no GPU, and no part of it can keep the others from running."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import PARTS, Row, markdown, run_part

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def photographs(folder: Path) -> Path:
    """Pieces of 32 px of scikit-learn's two photographs, as Parquet."""
    # Here, because the processes of parts import this module.
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True)
    for part, first in (("train", 0), ("test", 7)):
        images, labels = [], []
        for label, photo in enumerate(load_sample_images().images):
            for top in range(first, 360, 40):
                for left in range(first, 600, 60):
                    file = io.BytesIO()
                    Image.fromarray(photo[top : top + 32, left : left + 32]).save(file, "PNG")
                    images.append({"bytes": file.getvalue(), "path": None})
                    labels.append(label)
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{part}.parquet")
    return folder


@pytest.mark.long
def test_a_rehearsal_runs_every_part_to_its_end(tmp_path: Path) -> None:
    photographs(tmp_path / "images" / "photographs")
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path / "images"),
        "--out",
        str(out),
        "--rehearse",
        "--parts",
        *PARTS,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    parts = json.loads((out / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert {name: (part["status"], part["reason"]) for name, part in parts.items()} == dict.fromkeys(
        PARTS, ("done", "")
    )
    assert ended.returncode == 0
    assert all(part["rows"] for part in parts.values())
    table = (out / "gpu.md").read_text(encoding="utf-8")
    assert table in ended.stdout
    for name in ("vit_w4d1p8", "vit_s16_token", "mask tokens inside", "crop_flip"):
        assert name in table


def fails(args: argparse.Namespace) -> Iterator[Row]:
    print("before it failed")
    yield {"what": "the first row"}
    raise ValueError("of no use\nsecond line")


def hangs(args: argparse.Namespace) -> Iterator[Row]:
    yield {"what": "a row in time"}
    while True:
        time.sleep(3600)


def dies(args: argparse.Namespace) -> Iterator[Row]:
    yield {"what": "a row before"}
    os.abort()


def arguments(out: Path) -> argparse.Namespace:
    return argparse.Namespace(out=out, rehearse=False, device="cpu")


def test_a_part_that_fails_or_dies_leaves_its_rows_and_the_reason(tmp_path: Path) -> None:
    failed = run_part("fails", fails, 600, arguments(tmp_path))
    assert (failed["status"], failed["reason"]) == ("failed", "ValueError: of no use")
    assert failed["rows"] == [{"what": "the first row"}]
    assert "before it failed" in (tmp_path / "fails.log").read_text(encoding="utf-8")
    died = run_part("dies", dies, 600, arguments(tmp_path))
    assert (died["status"], died["reason"]) == ("failed", "exit status -6")
    assert died["rows"] == [{"what": "a row before"}]
    table = markdown({"rehearsal": False, "parts": {"fails": failed, "dies": died}})
    assert "## fails: failed" in table
    assert "ValueError: of no use" in table
    assert "| a row before |" in table


def test_a_part_that_hangs_is_killed_at_its_limit(tmp_path: Path) -> None:
    hung = run_part("hangs", hangs, 1, arguments(tmp_path))
    assert (hung["status"], hung["reason"]) == ("out of time", "killed at its limit of 1 s")


@pytest.mark.parametrize(("folder", "says"), [("none", "no such folder of images"), (".", "--rehearse runs on a CPU")])
def test_without_images_or_gpu_it_says_so_at_once(
    folder: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / folder), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
