"""The exceptions of isoflop. Each message is one line: what is wrong, where, and what to do."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


def stand_in(head: bytes) -> str:
    """What a file is that begins with `head` and only stands for the one that is wanted; nothing for any other."""
    if head.startswith((b"version https://git-lfs", b"version http://git-media")):
        return "a Git LFS pointer, not the file itself: run `git lfs pull`"
    if head.startswith((b"/annex/objects/", b".git/annex/objects/")):
        return "a git-annex pointer, not the file itself: run `git annex get`"
    return ""


def did_you_mean(
    word: str, known: Iterable[str], cutoff: float = 0.7, written: Callable[[str], str] = lambda known: known
) -> str:
    """` - did you mean `x`?` for the known word that is nearest, as it is `written`; nothing where none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" - did you mean `{written(near[0])}`?" if near else ""


class IsoflopError(Exception):
    """Base of every error that isoflop raises on purpose; the command line prints it in one line and exits 2."""


@contextmanager
def said_of(what: str) -> Iterator[None]:
    """Puts `what` in front of the message of an error of ours."""
    try:
        yield
    except IsoflopError as error:
        error.args = (f"{what}: {error}", *error.args[1:])
        raise


class ConfigError(IsoflopError):
    """A configuration that cannot be: unknown key, wrong type, impossible value."""


class ModelError(IsoflopError):
    """A backbone that cannot be built, or weights that do not fit it; `option` names what of the model cannot be."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class DataError(IsoflopError):
    """Data that is missing, damaged, or not what was promised; `missing_part` where it has no such part."""

    def __init__(self, message: str, *, missing_part: bool = False) -> None:
        super().__init__(message)
        self.missing_part = missing_part


class CheckpointError(IsoflopError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class LawError(IsoflopError):
    """A table from which no law can be fitted."""


class Preempted(IsoflopError):
    """A study that was asked to stop, and has saved what it was training: started again, it goes on from there."""


class StudyError(IsoflopError):
    """A study that cannot be planned, run or answered."""


class MissingExtra(IsoflopError, ImportError):
    """What is called needs packages that only an extra of isoflop installs."""


class MachineNotice(UserWarning):
    """What a run or study asks of a machine that is slow at it: a study says it once, not once a run."""


class DataNotice(UserWarning):
    """What of a data set is not used, or was guessed: one line, said once by whatever opens it."""
