"""Power losses, played: what a disk may hold after one, by the letter of what was synced.

`Disk` watches a folder while this process works in it. What `fsync` has been asked for is durable: the content of a
file, the names in a folder. Of everything else, a power loss keeps what it likes: of the changes to names any first
part, of unsynced content nothing, a part, or zeros in its place; a name may come before the content. What libraries
write by themselves (safetensors, Arrow) is found by looking, and is unsynced until somebody syncs it.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Names = dict[str, int | None]
"""of paths below the folder: the number of the file there, or None for a folder"""


@dataclass(frozen=True)
class Change:
    """A change to names: `name` appears as `file`, is `renamed` to another, or is `gone`."""

    name: str
    file: int | None = None
    renamed: str = ""
    is_gone: bool = False

    def touches(self, folder: str) -> bool:
        return folder in (os.path.dirname(self.name), os.path.dirname(self.renamed or self.name))

    def apply(self, names: Names) -> None:
        if self.is_gone or self.renamed:
            moved = {
                name: file for name, file in names.items() if name == self.name or name.startswith(f"{self.name}/")
            }
            for name in moved:
                del names[name]
            if self.renamed:
                names |= {self.renamed + name[len(self.name) :]: file for name, file in moved.items()}
        else:
            names[self.name] = self.file


@dataclass
class Cut:
    """What is known at one moment: names and contents that are durable, and those that programs see."""

    durable: Names
    pending: list[Change]
    synced: dict[int, bytes]
    seen: dict[int, bytes]

    def restore(self, folder: Path, chance: random.Random) -> None:
        """Leaves in `folder`, which is new, what a power loss at this moment might leave."""
        folder.mkdir(parents=True)
        names = dict(self.durable)
        for change in self.pending[: chance.choice((0, chance.randint(0, len(self.pending)), len(self.pending)))]:
            change.apply(names)
        for name, file in sorted(names.items()):
            parent = os.path.dirname(name)
            if not (folder / parent).is_dir():  # which is lost, with all that lies in it
                continue
            if file is None:
                (folder / name).mkdir(exist_ok=True)
            else:
                (folder / name).write_bytes(self._left(file, chance))

    def _left(self, file: int, chance: random.Random) -> bytes:
        synced = self.synced.get(file, b"")
        seen = self.seen.get(file, synced)
        kept = synced if seen.startswith(synced) else b""  # what was appended since, or written over
        more = seen[len(kept) :]
        length = chance.randint(0, len(more))
        return chance.choice(
            (synced, kept + more[:length], kept + bytes(length), kept + more[:length] + bytes(len(more) - length))
        )


@dataclass
class Disk:
    """Watches `folder`, which is empty yet. `cuts` are the moments before the operations whose numbers are in `at`."""

    folder: Path
    at: set[int] = field(default_factory=set)
    note: Callable[[], Any] = lambda: None  # what a cut is to remember beside
    operations: int = 0
    cuts: list[tuple[Cut, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._durable: Names = {}
        self._pending: list[Change] = []
        self._names: Names = {}
        self._synced: dict[int, bytes] = {}
        self._numbers: dict[int, int] = {}  # of inodes that are there
        self._fresh = 0

    def _look(self) -> None:
        """Takes in what has appeared or gone by itself."""
        found: Names = {}
        inodes: dict[int, int] = {}
        for root, folders, files in os.walk(self.folder):
            for name in folders + files:
                path = os.path.join(root, name)
                short = os.path.relpath(path, self.folder)
                try:
                    inode = os.lstat(path).st_ino
                except FileNotFoundError:
                    continue
                if name in folders:
                    found[short] = None
                    continue
                known = self._names.get(short)
                if inode not in self._numbers or (known is not None and self._numbers[inode] != known):
                    self._fresh += 1
                    self._numbers[inode] = self._fresh
                found[short] = inodes[inode] = self._numbers[inode]
        self._numbers = inodes
        for name in [name for name in self._names if name not in found]:
            if os.path.dirname(name) in ("", *found):
                self._pending.append(Change(name, is_gone=True))
        for name, file in found.items():
            if name not in self._names or self._names[name] != file:
                self._pending.append(Change(name, file))
        self._names = found

    def _before(self) -> None:
        self._look()
        if self.operations in self.at:
            seen = {}
            for name, file in self._names.items():
                if file is not None:
                    try:
                        seen[file] = (self.folder / name).read_bytes()
                    except FileNotFoundError:
                        continue
            self.cuts.append((Cut(dict(self._durable), list(self._pending), dict(self._synced), seen), self.note()))
        self.operations += 1

    def _short(self, path: Any, handle: int | None = None) -> str | None:
        """`path` as a name below the folder; None for what lies elsewhere."""
        whole = os.fsdecode(path)
        if handle is not None:
            whole = os.path.join(os.readlink(f"/proc/self/fd/{handle}"), whole)
        whole = os.path.abspath(whole)
        root = str(self.folder)
        return whole[len(root) + 1 :] if whole == root or whole.startswith(root + os.sep) else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Meanwhile this process's changes below the folder are noted."""
        plain = {
            name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir")
        }

        def fsync(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            name = self._short(path)
            with self._lock:
                if name is not None:
                    self._before()
                plain["fsync"](number)
                if name is None:
                    return
                if os.path.isdir(path):
                    later = []
                    for change in self._pending:
                        if change.touches(name):
                            change.apply(self._durable)
                        else:
                            later.append(change)
                    self._pending = later
                elif (file := self._names.get(name)) is not None:
                    self._synced[file] = Path(path).read_bytes()

        def moving(which: str) -> Callable[..., None]:
            def move(source: Any, target: Any, **more: Any) -> None:
                ours, theirs = self._short(source), self._short(target)
                if ours is None or theirs is None:
                    plain[which](source, target, **more)
                    return
                with self._lock:
                    self._before()
                    plain[which](source, target, **more)
                    change = Change(ours, renamed=theirs)
                    self._pending.append(change)
                    change.apply(self._names)

            return move

        def changing(which: str) -> Callable[..., None]:
            def change(path: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> None:
                place = {} if dir_fd is None else {"dir_fd": dir_fd}
                if self._short(path, dir_fd) is None:
                    plain[which](path, *rest, **place, **more)
                    return
                with self._lock:
                    self._before()
                    plain[which](path, *rest, **place, **more)
                    self._look()

            return change

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            for name in ("rename", "replace"):
                patch.setattr(os, name, moving(name))
            for name in ("mkdir", "unlink", "remove", "rmdir"):
                patch.setattr(os, name, changing(name))
            for name in ("mkdir", "unlink", "rmdir"):  # as `shutil` asks before it uses them with `dir_fd`
                os.supports_dir_fd.add(getattr(os, name))
            yield
            with self._lock:
                self._before()
