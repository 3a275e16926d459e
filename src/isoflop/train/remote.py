"""Copies of checkpoints on storage without rename: object stores, through fsspec.

A copy is valid if it has a `manifest.json`, which is written last, after the journal in `attempts/`. The journal is
restored if the directory of the run has none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]

from isoflop.errors import CheckpointError, ConfigError
from isoflop.runs.files import make_folder, replacing
from isoflop.train.checkpoints import checkpoint_path, retired, saved_steps

MANIFEST = "manifest.json"


class Remote:
    """The checkpoints of a run at `address` (`s3://bucket/run`). Raises ConfigError if fsspec cannot reach it."""

    def __init__(self, address: str) -> None:
        try:
            files, self._root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"checkpoint.folder = {address}: {error}") from error
        self._files: Any = files
        self._address = address
        self._sent: dict[Path, int] = {}  # bytes of each file of the journal that are there
        self._files.use_listings_cache = False

    def exists(self) -> bool:
        """Whether there is anything of the run. CheckpointError when the storage fails."""
        with self._told():
            return bool(self._files.exists(self._root))

    def steps(self) -> list[int]:
        """The steps of the copies that count, newest first."""
        found = [str(path).split("/")[-2] for path in self._files.glob(f"{self._root}/step-*/{MANIFEST}")]
        return sorted((int(name[5:]) for name in found if re.fullmatch(r"step-[0-9]{12,}", name)), reverse=True)

    def upload(self, path: Path, directory: Path, keep: int, every: int | None, best: int | None) -> None:
        """Copies the checkpoint at `path` and the journal in `directory`, and removes what `retired` says.
        CheckpointError when the storage fails."""
        target = f"{self._root}/{path.name}"
        with self._told():
            for file in sorted((directory / "attempts").glob("*/*.jsonl")):
                size = file.stat().st_size
                if self._sent.get(file) != size:
                    place = f"{self._root}/{file.relative_to(directory)}"
                    self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
                    self._files.put_file(str(file), place)
                    self._sent[file] = size
            self._files.makedirs(target, exist_ok=True)
            for file in sorted(path.iterdir(), key=lambda file: file.name == MANIFEST):
                self._files.put_file(str(file), f"{target}/{file.name}")
            for step in retired(self.steps(), keep, every, best):
                old = f"{self._root}/{checkpoint_path(Path(), step).name}"
                self._files.rm(f"{old}/{MANIFEST}")  # first, so that it no longer counts
                self._files.rm(old, recursive=True)

    def discount(self, name: str) -> None:
        """Has the copy of checkpoint `name` no longer count: it is of no use. CheckpointError when the storage
        fails."""
        with self._told():
            if self._files.exists(f"{self._root}/{name}/{MANIFEST}"):
                self._files.rm(f"{self._root}/{name}/{MANIFEST}")

    def download(self, folder: Path, directory: Path) -> None:
        """Brings the newest copies that `folder` does not have, so that it holds at least as much; and the journal,
        where `directory` has none. CheckpointError when the storage fails."""
        here = saved_steps(folder)
        with self._told():
            if not (directory / "attempts").exists():
                for file in self._files.glob(f"{self._root}/attempts/*/*.jsonl"):
                    attempt, name = str(file).split("/")[-2:]
                    if attempt.isdigit():
                        make_folder(directory / "attempts" / attempt)
                        with replacing(directory / "attempts" / attempt / Path(name).name) as partial:
                            self._files.get_file(file, str(partial))
            for step in self.steps():
                if step not in here:
                    self._bring(checkpoint_path(folder, step))

    def _bring(self, target: Path) -> None:
        partial = target.with_name(f".{target.name}.download")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file in self._files.ls(f"{self._root}/{target.name}", detail=False):
            self._files.get_file(file, str(partial / Path(file).name))
        partial.rename(target)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the storage's own library, which are of any kind, as ours."""
        try:
            yield
        except Exception as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"checkpoint.folder = {self._address}: the storage failed: {told}") from error
