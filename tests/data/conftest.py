"""What all tests of the data share: a cache of their own, and small data sets in the usual layouts."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.data.pictures import encoded, picture


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches go to a folder of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three classes of 20 PNGs of 40×30 px for training, 5 each for the test."""
    seed = 0
    for split, count in (("train", 20), ("test", 5)):
        for name in ("cat", "dog", "owl"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k:02d}.png").write_bytes(encoded(picture(seed), "PNG"))
                seed += 1
    return tmp_path / "images"


@pytest.fixture
def make_tar() -> Callable[[Path, list[tuple[str, bytes]]], Path]:
    """Writes a tar file with these members."""

    def make(path: Path, members: list[tuple[str, bytes]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return make
