"""What somebody may have meant who named a file that is not there."""

from difflib import get_close_matches
from pathlib import Path


def nearest_path(path: Path) -> str:
    """` - did you mean ...?`: `path` with its first part that is not there replaced by the nearest name beside it.

    Nothing where no name is near, or where the corrected path is not there either.
    """
    wrong = path
    while not wrong.parent.exists():
        wrong = wrong.parent
    try:
        names = [other.name for other in wrong.parent.iterdir()]
    except OSError:
        return ""
    for name in get_close_matches(wrong.name, names, n=3, cutoff=0.6):
        corrected = wrong.parent / name / path.relative_to(wrong)
        if corrected.exists():
            return f" - did you mean `{corrected}`?"
    return ""
