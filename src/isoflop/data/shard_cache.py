"""Remote shards kept on the local disk, as many as a limit allows; the least recently used go first."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

from isoflop.data.keyed import derive_key
from isoflop.errors import DataError


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns whatever goes wrong on the way to remote storage into one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each kind of storage raises its own
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{url}: cannot be reached ({type(error).__name__}: {reason})") from error


class ShardCache:
    """Local copies of remote files in `directory`, of at most `limit` bytes together (but always at least one file).

    Several processes may share it: files appear in one step, and one that is deleted stays readable where it is open.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit

    def fetch(self, url: str) -> Path:
        """The path of a local copy of `url`. Raises DataError if it cannot be fetched."""
        local = self.directory / f"{derive_key(url):016x}-{url.rsplit('/', 1)[-1]}"
        try:
            os.utime(local)
            return local
        except FileNotFoundError:
            pass
        with reaching(url):
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.directory, suffix=".part", delete=False) as file:
                temporary = file.name
            try:
                protocol_file_system, path = fsspec.core.url_to_fs(url)
                protocol_file_system.get_file(path, temporary)
                os.replace(temporary, local)
            except BaseException:
                os.unlink(temporary)
                raise
        self._evict(keep=local)
        return local

    def _evict(self, keep: Path) -> None:
        files = []
        for entry in os.scandir(self.directory):
            try:
                files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
            except FileNotFoundError:  # another process was faster
                continue
        used = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if used <= self.limit:
                return
            if path != str(keep) and not path.endswith(".part"):
                Path(path).unlink(missing_ok=True)
                used -= size
