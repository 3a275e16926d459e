"""Sizes are read before what has them, and a pointer to a file is called one wherever a file is read."""

import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isoflop.config import load_any
from isoflop.data.dense import CocoRecords
from isoflop.data.inspection import check
from isoflop.errors import CheckpointError, ConfigError, IsoflopError, ModelError
from isoflop.laws.columns import read_columns
from isoflop.models.interop import read_tensors, read_weights
from isoflop.models.saved import KEY
from isoflop.share import import_weights
from isoflop.transfer import load_backbone, open_backbone
from tests.share.models import saved

# As `git lfs` leaves it where the content was not fetched (a published ViT's weights).
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:48b932390d4d8293aa7d531d788a8da8e23ac6e759f628a3a70b8aebd77896f1\nsize 343288572\n"
)
MANY = 3_000_000_000  # bytes, that nothing may take


@pytest.fixture(autouse=True)
def _takes_little_memory() -> Any:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def packed_zeros(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for k in range(2):
            archive.writestr(f"{k}.npy", header((1 << 23,)) + bytes(1 << 25))


def claimed_shape(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embedding/kernel.npy", header((MANY,)) + bytes(1000))


def claimed_place(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embedding/kernel.npy", header((MANY,)) + bytes(1000))
    content = path.read_bytes()  # the directory of the archive says so, too
    small, large = struct.pack("<LL", *(len(header((MANY,))) + 1000,) * 2), struct.pack("<LL", MANY, MANY)
    path.write_bytes(content.replace(small, large))


def packed_storage(path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content * (20 if "/data/" in name else 1))


def without_strides(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(MANY)}, path)


def on_no_device(path: Path) -> None:
    torch.save({"a": torch.empty(MANY, device="meta")}, path)


def sparse(path: Path) -> None:
    torch.save({"a": torch.sparse_coo_tensor([[0]], [1.0], (MANY,))}, path)


def of_old_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(MANY)}, path, _use_new_zipfile_serialization=False)


def claimed_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", MANY) + b"{}")


def claimed_tensor(path: Path) -> None:
    told = json.dumps({"a": {"dtype": "F32", "shape": [MANY], "data_offsets": [0, 4 * MANY]}}).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + bytes(64))


BOMBS: tuple[tuple[Callable[[Path], None], str, str], ...] = (
    (packed_zeros, "npz", r"MB on the disk would be 67 MB in memory: these are no weights"),
    (claimed_shape, "npz", "the array `embedding/kernel.npy` is larger than its place in the archive"),
    (claimed_place, "npz", r"would be 3,000 MB in memory|not readable as weights"),
    (packed_storage, "pth", r"would be 84 MB in memory"),
    (without_strides, "pth", "would be 12,000 MB in memory"),
    (on_no_device, "pth", "sparse tensors, or some without values|not readable as weights"),
    (sparse, "pth", "sparse tensors, or some without values|holds more than tensors"),
    (of_old_torch, "pth", "would be 12,000 MB in memory"),
    (claimed_header, "safetensors", "not readable as weights"),
    (claimed_tensor, "safetensors", "not readable as weights"),
)


@pytest.mark.parametrize(("make", "suffix", "message"), BOMBS, ids=[make.__name__ for make, _, _ in BOMBS])
def test_a_small_file_stays_small(make: Callable[[Path], None], suffix: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    make(path)
    assert path.stat().st_size < 10_000_000
    with pytest.raises(ModelError, match=message) as refused:
        read_weights(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(IsoflopError):
        import_weights(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_zeros_are_weights(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros((1000, 1000), np.float32))
    assert read_weights(tmp_path / "w.npz")["a"].shape == (1000, 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (10**9,)}, "`depths` = .*: no model is as large"),
        ({"depths": (600,)}, "`depths` = .*: no model is as deep"),
        ({"widths": (10**7,)}, "`widths` = .*: no model is as large"),
        ({"widths": (1 << 20,), "heads": (1,), "mlp_widths": (1 << 20,)}, r"describes [\d,]{15,} parameters"),
    ],
)
def test_a_description_of_a_giant_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path / "m", "vit_ti16", 32, depths=(1,))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config[KEY]["model"].update(options)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, ModelError), match=message):
        open_backbone(tmp_path / "m")


def folder_of(tmp_path: Path) -> Path:
    saved(tmp_path / "m", "vit_ti16", 32, depths=(1,))
    return tmp_path / "m"


def images(tmp_path: Path) -> Any:
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "a" / "x.png").write_bytes(POINTER)
    return [damage.reason for damage in check(f"folder:{tmp_path / 'd'}").broken]


def coco(tmp_path: Path) -> Any:
    (tmp_path / "images").mkdir()
    (tmp_path / "train.json").write_bytes(POINTER)
    return CocoRecords(tmp_path, "train")


def weights(tmp_path: Path) -> Any:
    (folder_of(tmp_path) / "model.safetensors").write_bytes(POINTER)
    return open_backbone(tmp_path / "m")


def config_of_a_model(tmp_path: Path) -> Any:
    (folder_of(tmp_path) / "config.json").write_bytes(POINTER)
    return open_backbone(tmp_path / "m")


def config_of_a_run(tmp_path: Path) -> Any:
    (folder_of(tmp_path) / "config.json").write_bytes(POINTER)
    return load_backbone(tmp_path / "m")


def of(suffix: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def reads(tmp_path: Path) -> Any:
        path = tmp_path / f"file.{suffix}"
        path.write_bytes(POINTER)
        return read(path)

    return reads


READERS: dict[str, Callable[[Path], Any]] = {
    **{f"weights.{suffix}": of(suffix, read_weights) for suffix in ("pth", "npz", "safetensors", "bin")},
    "tensors": of("safetensors", read_tensors),
    "parquet": of("parquet", lambda path: check(f"parquet:{path}")),
    "tar": of("tar", lambda path: [damage.reason for damage in check(f"shards:{path}").broken]),
    "table": of("csv", lambda path: check(f"table:{path}")),
    "results": of("csv", lambda path: read_columns(path)),
    "toml": of("toml", load_any),
    "images": images,
    "coco": coco,
    "a model's weights": weights,
    "a model's config": config_of_a_model,
    "a run's config": config_of_a_run,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_git_lfs_pointer_is_called_one(kind: str, tmp_path: Path) -> None:
    try:
        told = str(READERS[kind](tmp_path))
    except IsoflopError as error:
        told = str(error)
    assert "a Git LFS pointer, not the file itself: run `git lfs pull`" in told
    assert "\n" not in told


def test_a_configuration_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "run.toml").open("wb") as file:
        file.truncate(MANY)
    with pytest.raises(ConfigError, match="2,861 MiB: that is no configuration"):
        load_any(tmp_path / "run.toml")


def test_hostile_pickles_are_still_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_weights(tmp_path / "w.pth")
