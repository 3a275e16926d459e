"""The exceptions that isoflop raises on purpose: each message is one line that says what, where and what to do."""

import json
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches


def did_you_mean(
    word: str, known: Iterable[str], cutoff: float = 0.7, written: Callable[[str], str] = lambda known: known
) -> str:
    """` - did you mean `x`?` for the known word that is nearest, as it is `written`; nothing where none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" - did you mean `{written(near[0])}`?" if near else ""


def printable(text: str, kept: str = "") -> str:
    """`text` with everything escaped that is not a character of one line, except those in `kept`.

    Names of classes, files and columns come from strangers: an escape sequence in one would move a terminal's cursor or
    set its title, a line break would forge a line, a mark of direction turns round what stands beside it.
    """

    def escaped(found: re.Match[str]) -> str:
        c = found[0]
        return c if c.isprintable() or c in kept else c.encode("unicode_escape", "surrogatepass").decode()

    return text if text.isprintable() else re.sub(r"[^ -~]", escaped, text)


def escaped_json(text: str) -> str:
    """JSON that says the same as `text` and is printable, line breaks between its values aside."""
    return re.sub(r"[^\n -~]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


class IsoflopError(Exception):
    """Base of every error that isoflop raises on purpose; the command line prints it in one line and exits 2."""


class ConfigError(IsoflopError):
    """A configuration that cannot be: unknown key, wrong type, impossible value."""


class ModelError(IsoflopError):
    """A backbone that cannot be built, or weights that do not fit it; `option` names what of the model cannot be."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class DataError(IsoflopError):
    """Data that is missing, damaged, or not what was promised."""


class CheckpointError(IsoflopError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class LawError(IsoflopError):
    """A table from which no law can be fitted."""


class StudyError(IsoflopError):
    """A study that cannot be planned, run or answered."""


class DataNotice(UserWarning):
    """What of a data set is not used, or was guessed: one line, said once by whatever opens it."""
