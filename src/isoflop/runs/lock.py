"""One writer per directory, while its process is alive.

The lock is `flock` on the file `.lock`: the operating system releases it when the process ends. Forked processes (data
workers) close their copy at once, so that they do not hold the lock. The file names the holder, and is touched every
few seconds. This heartbeat decides where `flock` has no effect: between hosts or containers whose storage does not
share locks, and on storage without locks (NFS without lockd), where an exclusively created file, `.lock.exclusive`, is
the lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shlex
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from isoflop.errors import CheckpointError, IsoflopError
from isoflop.runs.files import make_folder, private_path, read_json

BEAT_SECONDS = 5.0  # between two signs of life in the lock file
PATIENCE_SECONDS = 30.0  # without one, after which a writer that cannot be asked is taken for dead
ABANDONED_SECONDS = 6 * 3600.0  # after which unfinished files of a writer that cannot be asked are removed
HELD = (errno.EWOULDBLOCK, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Writer:
    """A process, as others can tell it from all others. Its PID means something within `boot` (of the kernel) and
    `namespace`; `began` is when it began, in ticks since the boot, which tells it from a later one of its number."""

    pid: int
    host: str
    boot: str
    namespace: str
    began: int
    since: str = ""
    command: str = ""

    def __str__(self) -> str:
        command = f" ({self.command})" if self.command else ""
        return f"process {self.pid} on {self.host}{command}, since {self.since}"

    def lives(self) -> bool | None:
        """Whether it is alive; None where that cannot be known from here (another host, another container)."""
        if (self.boot, self.namespace) != (_boot(), _namespace()):
            return None
        began = _began(self.pid)
        return began == self.began if began else None

    @property
    def tag(self) -> str:
        """What names it in the names of its unfinished files."""
        return f"{self.boot}-{self.namespace}-{self.pid}-{self.began}"


def this_process() -> Writer:
    """The process that asks."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Writer(pid, os.uname().nodename, _boot(), _namespace(), max(_began(pid), 0), since, command)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return "".join(filter(str.isalnum, os.uname().nodename))


@cache
def _namespace() -> str:
    try:
        return "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        return "0"


def _began(pid: int) -> int:
    """When process `pid` began; -1 if it is not there, 0 where no more can be known than that it is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except OSError:
        pass
    return 0


@contextmanager
def sole_writer(directory: Path, error: type[IsoflopError]) -> Iterator[None]:
    """Holds `directory` for this process; `error` when another holds it, and which, or when it cannot be written.

    A killed writer never leaves the lock behind. Where its last sign of life cannot be told from that of a living one
    (another host), this waits for up to half a minute for the next.
    """
    try:
        make_folder(directory)
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as reason:
        raise error(f"{directory}: cannot write here: {reason.strerror}; choose another output folder") from reason
    _open_locks.add(handle)
    with ExitStack() as held:
        held.callback(_close, handle)
        beaten = [handle]
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            if reason.errno in HELD:
                raise error(_refusal(directory, _holder(directory / ".lock"))) from reason
            if reason.errno not in NO_LOCKS:
                raise error(f"{directory / '.lock'}: cannot lock: {reason.strerror}") from reason
            _warn_once(directory, reason)
            beaten.append(held.enter_context(_exclusive_file(directory, error)))
        else:
            # On one kernel the lock decides; the storage of two may not share it.
            holder = _holder(directory / ".lock")
            if holder and holder.boot != _boot() and _beats(directory / ".lock", holder):
                raise error(_refusal(directory, holder))
        _sign(handle)
        held.callback(_clear, handle)
        held.enter_context(_heartbeat(beaten))
        yield


_open_locks: set[int] = set()
_warned: set[Path] = set()


def _close_in_child() -> None:
    """A lock belongs to all processes that have the file open: a forked one would hold it after its parent's death."""
    for handle in _open_locks:
        with suppress(OSError):
            os.close(handle)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _close(handle: int) -> None:
    if handle in _open_locks:
        _open_locks.discard(handle)
        os.close(handle)


def _sign(handle: int) -> None:
    with suppress(OSError):  # a full disk: the lock holds all the same, only its holder's name is not told
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(this_process())).encode() + b"\n", 0)


def _clear(handle: int) -> None:
    if handle in _open_locks:
        with suppress(OSError):
            os.ftruncate(handle, 0)


def _holder(path: Path) -> Writer | None:
    """Who wrote its name into a lock file; None where nobody did, or not legibly."""
    kinds = {"pid": int, "began": int} | dict.fromkeys(("host", "boot", "namespace", "since", "command"), str)
    try:
        found = read_json(path, kinds)
    except CheckpointError:
        return None
    return Writer(**{name: found[name] for name in kinds})


def _refusal(directory: Path, holder: Writer | None) -> str:
    who = f": {holder}" if holder else ""
    return f"{directory}: another isoflop process is writing here{who}; wait for it or stop it"


def _beats(path: Path, holder: Writer) -> bool:
    """Whether a writer that cannot be asked gives a sign of life; after `PATIENCE_SECONDS` without one it is dead.

    Clocks of two hosts are never compared: it is a change that counts.
    """
    warnings.warn(
        f"{path.parent}: {holder} was writing here; waiting up to {PATIENCE_SECONDS:.0f} s to see whether it lives",
        stacklevel=4,
    )
    before = _mark(path)
    for _ in range(round(PATIENCE_SECONDS)):
        time.sleep(1.0)
        if (now := _mark(path)) != before:
            return now is not None and now[1] > 0
    return False


def _mark(path: Path) -> tuple[int, int] | None:
    """Changes with every sign of life."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # opened, since NFS may answer from memory otherwise
    except OSError:
        return None
    try:
        found = os.fstat(handle)
        return found.st_mtime_ns, found.st_size
    finally:
        os.close(handle)


@contextmanager
def _heartbeat(handles: list[int]) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            for handle in handles:
                with suppress(OSError):
                    os.utime(handle)

    thread = threading.Thread(target=beat, name="lock heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _exclusive_file(directory: Path, error: type[IsoflopError]) -> Iterator[int]:
    """Holds the file `.lock.exclusive`, which only one process can make; that of a dead one is moved away."""
    path = directory / ".lock.exclusive"
    for _ in range(2):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            break
        except FileExistsError:
            before = _mark(path)
            holder = _holder(path) or Writer(0, "an unknown host", "", "", 0)  # killed before it could sign
            alive = holder.lives()
            if alive or (alive is None and _beats(path, holder)):
                raise error(_refusal(directory, holder)) from None
            moved = private_path(path)
            with suppress(OSError):
                os.rename(path, moved)
                if alive is None and _mark(moved) != before:  # meanwhile another has taken it: not ours to move
                    os.rename(moved, path)
                else:
                    moved.unlink()
        except OSError as reason:
            raise error(f"{path}: cannot write here: {reason.strerror}") from reason
    else:
        raise error(_refusal(directory, _holder(path)))
    _open_locks.add(handle)
    try:
        _sign(handle)
        yield handle
    finally:
        if handle in _open_locks:
            _close(handle)
            with suppress(OSError):
                path.unlink()


def _warn_once(directory: Path, reason: OSError) -> None:
    if directory not in _warned:
        _warned.add(directory)
        warnings.warn(
            f"{directory}: this storage has no locks ({reason.strerror}); a file, .lock.exclusive, keeps others out",
            stacklevel=4,
        )


def unfinished_path(final: Path, tag: str = "") -> Path:
    """Where this process writes the folder that is to become `final`: a hidden name that says whose it is."""
    return final.with_name(f".{final.name}.{tag or this_process().tag}-{secrets.token_hex(3)}")


def remove_unfinished(folder: Path, prefix: str) -> None:
    """Removes what killed writers left of folders `.prefix…` in `folder`; that of a living writer is left alone, be it
    in another container or on another host."""
    for path in folder.glob(f".{prefix}*"):
        boot, *more = path.name.rpartition(".")[2].split("-")
        if len(more) == 4 and more[1].isdigit() and more[2].isdigit():
            alive = Writer(int(more[1]), "", boot, more[0], int(more[2])).lives()
        else:
            alive = None  # of an earlier version, or a download
        if alive is False or (alive is None and _is_abandoned(path)):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether nothing below `path` was written for hours."""
    try:
        newest = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    except OSError:
        return False
    return time.time() - newest > ABANDONED_SECONDS
