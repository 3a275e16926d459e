"""VTAB-1k: a thousand images a task, means of groups; and classifiers as they are, where several classes are right."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from isoflop.config import TransferConfig
from isoflop.errors import DataError
from isoflop.models import create_model
from isoflop.transfer import Pretrained, open_backbone, transfer
from isoflop.transfer.vtab import GROUPS, TASKS, means, sources, vtab


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 255 - shade, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def hugging_face(folder: Path, classes: int, train: int, test: int = 40) -> None:
    folder.mkdir(parents=True)
    feature = {
        "info": {"features": {"label": {"names": [f"class {c}" for c in range(classes)], "_type": "ClassLabel"}}}
    }
    for part, count in (("train", train), ("test", test)):
        labels = [k % classes for k in range(count)]
        images = [{"bytes": png(20 * label + k % 7), "path": None} for k, label in enumerate(labels)]
        table = pa.table({"image": images, "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")


@pytest.fixture
def backbone() -> Pretrained:
    model = create_model("vit_w8d1p8", num_classes=3, image_size=16, in_channels=3, seed=0)
    return Pretrained(model, "tiny", "vit_w8d1p8")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))


def test_there_are_nineteen_tasks_in_three_groups() -> None:
    assert [sum(task.group == group for task in TASKS) for group in GROUPS] == [7, 4, 8]


def test_tasks_that_are_there_are_run_and_averaged_by_group(tmp_path: Path, backbone: Pretrained) -> None:
    root = tmp_path / "vtab"
    hugging_face(root / "svhn", 10, 1000)
    hugging_face(root / "patch_camelyon", 2, 1200)
    for part in ("train", "test"):
        for c in range(4):
            (root / "kitti_distance" / part / str(c)).mkdir(parents=True)
            for k in range(250 if part == "train" else 5):
                (root / "kitti_distance" / part / str(c) / f"{k}.png").write_bytes(png(40 * c))
    config = TransferConfig(
        dataset=f"vtab:{root}",
        protocols=("ridge", "finetune_vtab"),
        seeds=(0,),
        learning_rates=(0.1, 0.01),
        run={"steps": 2, "batch_size": 8, "schedule": {"warmup": 0}},
    )
    rows = vtab(backbone, config, folder=tmp_path / "out")
    assert [row["dataset"] for row in rows[:6:2]] == ["VTAB svhn", "VTAB patch_camelyon", "VTAB kitti_distance"]
    assert [row["dataset"] for row in rows[6:10]] == [
        "VTAB mean, natural, 1 of 7 tasks",
        "VTAB mean, specialised, 1 of 4 tasks",
        "VTAB mean, structured, 1 of 8 tasks",
        "VTAB mean, all, 3 of 19 tasks",
    ]
    assert rows[9]["accuracy_mean"] == pytest.approx(np.mean([row["accuracy_mean"] for row in rows[:6:2]]))
    runs = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out").rglob("identity.json")}
    samples = {name: run["samples"] for name, run in runs.items()}
    assert samples == {"rate-0.1": 800, "rate-0.01": 800, "all": 1000}  # chosen on 200, trained on all


def test_the_mean_of_tasks_is_surer_than_a_task() -> None:
    row = {"name": "x", "protocol": "ridge", "shots": 0, "seeds": 1, "level": 0.95, "interval": [0.4, 0.6]}
    rows = [{**row, "dataset": f"VTAB {task.name}", "accuracy_mean": 0.5} for task in TASKS]
    assert means(rows)[-1]["interval"] == pytest.approx([0.5 - 0.1 / 19**0.5, 0.5 + 0.1 / 19**0.5])


@pytest.mark.parametrize(
    ("classes", "train", "message"),
    [(9, 1000, "9 classes, where VTAB has 10"), (10, 900, "900 training images, where VTAB-1k has 1000")],
)
def test_a_task_that_is_not_vtabs_is_refused(
    tmp_path: Path, backbone: Pretrained, classes: int, train: int, message: str
) -> None:
    hugging_face(tmp_path / "vtab" / "svhn", classes, train)
    with pytest.raises(DataError, match=message):
        vtab(backbone, TransferConfig(dataset=f"vtab:{tmp_path / 'vtab'}", protocols=("ridge",)))


def test_folders_without_a_task_are_refused_and_names_on_the_hub_are_filled_in(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task there; expected subfolders named caltech101"):
        sources(f"vtab:{tmp_path}")
    with pytest.raises(DataError, match="no such folder"):
        sources("vtab:/nowhere")
    assert {task.name: uri for task, uri in sources("vtab:hf:org/{task}")}["dtd"] == "hf:org/dtd"


def test_tasks_as_the_hub_stores_them_in_tar_files_are_read(tmp_path: Path, backbone: Pretrained) -> None:
    """`train/0.tar` and `test/0.tar` of `.png` and `.cls` pairs, as in clip-benchmark/wds_vtab-svhn."""
    for part, count in (("train", 1000), ("test", 20)):
        (tmp_path / "svhn" / part).mkdir(parents=True)
        with tarfile.open(tmp_path / "svhn" / part / "0.tar", "w") as tar:
            for k in range(count):
                for name, data in ((f"s{k:07d}.png", png(20 * (k % 10))), (f"s{k:07d}.cls", str(k % 10).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    rows = vtab(backbone, TransferConfig(dataset=f"vtab:{tmp_path}", protocols=("ridge",)))
    assert rows[0]["dataset"] == "VTAB svhn"
    assert rows[0]["test_images"] == 20
    assert rows[0]["accuracy_mean"] > 0.3  # of ten classes


def test_a_classifier_is_judged_as_it_is_where_any_of_several_classes_is_right(tmp_path: Path) -> None:
    for k in range(1, 5):
        (tmp_path / "val").mkdir(exist_ok=True)
        Image.new("RGB", (80, 80), (60 * k, 0, 0)).save(tmp_path / "val" / f"ILSVRC2012_val_{k:08d}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps([list(range(1000)), [], list(range(1000)), []]))
    model = open_backbone("timm:resnet18", image_size=96, random_weights=True)
    (row,) = transfer(model, TransferConfig(dataset=f"imagenet_real:{tmp_path}", protocols=("head",)))
    assert (row["accuracy_mean"], row["test_images"], row["protocol"]) == (1.0, 2, "head")
    tiny = Pretrained(create_model("vit_w8d1p8", num_classes=3, image_size=96, seed=0), "tiny", "vit_w8d1p8")
    with pytest.raises(DataError, match="has 1000 classes, the classifier of tiny 3"):
        transfer(tiny, TransferConfig(dataset=f"imagenet_real:{tmp_path}", protocols=("head",)))
