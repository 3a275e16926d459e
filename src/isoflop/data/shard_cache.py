"""Remote shards kept on the local disk, as many as a limit allows; the least recently used go first."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec  # type: ignore[import-untyped]

from isoflop.data.cache import remove_abandoned
from isoflop.data.keyed import derive_key
from isoflop.errors import DataError
from isoflop.runs.files import replacing, sha256_of

_SIGNS = (  # as the file systems of fsspec call what changes with a file's content
    *("ETag", "etag", "e_tag", "generation", "VersionId", "version_id", "md5Hash", "content_md5", "Content-MD5"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "updated", "created", "ino"),
)


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

    def fetch(self, url: str, sign: str, sha256: str | None = None) -> Path:
        """The path of a local copy of `url` as it is while the storage says `sign` of it.

        Raises DataError if it cannot be fetched, or is not what `sha256` says.
        """
        local = self.directory / f"{derive_key(url, sign):016x}-{url.rsplit('/', 1)[-1]}"
        try:
            os.utime(local)
            return local
        except FileNotFoundError:
            pass
        with reaching(url):
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.directory)
            with replacing(local) as partial:
                protocol_file_system, path = fsspec.core.url_to_fs(url)
                protocol_file_system.get_file(path, str(partial))
                if sha256 not in (None, sha256_of(partial)):
                    raise DataError(f"{url}: not the shard that was indexed; make the index beside the shards again")
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
            if path != str(keep) and not os.path.basename(path).startswith("."):
                Path(path).unlink(missing_ok=True)
                used -= size


def remote_sign(url: str) -> tuple[int, str | None]:
    """The size of a remote file, and what its storage says that changes with its content; None if it says nothing."""
    with reaching(url):
        system, path = fsspec.core.url_to_fs(url)
        info = system.info(path)
    said = [f"{name} {info[name]}" for name in _SIGNS if info.get(name)]
    return int(info.get("size") or 0), ", ".join(said) or None
