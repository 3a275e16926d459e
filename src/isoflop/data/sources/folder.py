"""`folder:PATH`: one subfolder per class; or `train/` and `test/` (or `val/`), each with one subfolder per class.

A folder with images and no subfolders is unlabelled data. Images are recognised by suffix, other files by their first
bytes. Hidden files and files of operating systems are ignored.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.config.load import nearest_path
from isoflop.data.decode import SIGNATURE, SUFFIXES
from isoflop.data.records import (
    TEST_NAMES,
    Labels,
    Note,
    Part,
    fingerprint_images,
    folded,
    no_labels,
    notes_on_names,
    read_image_file,
)
from isoflop.errors import DataError

IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)

_TRAIN_NAMES = ("train", "training")  # in any case
_OTHER_NAMES = (*TEST_NAMES, "testing", "valid")
_OF_SYSTEMS = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"__pycache__", "thumbs.db", "desktop.ini"}
)
_MOST_NAMES = 100  # of a kind that is left out

_HIDDEN, _NO_IMAGE, _EMPTY = "hidden or system files and folders", "files that are no images", "folders without images"
_UNREADABLE, _IRREGULAR, _LINK = "files that cannot be read", "pipes, sockets or devices", "links to folders"
_BESIDE_PARTS, _BESIDE_CLASSES = "files and folders beside the parts", "images beside the class folders"


class FolderRecords:
    """Image files, labelled by the folder in which they lie."""

    shard_sizes: NDArray[np.int64] | None = None

    def __init__(self, path: Path, part: Part) -> None:
        self.uri = f"folder:{path}"
        if not path.is_dir():
            raise DataError(f"{self.uri}: no such folder{nearest_path(path)}")
        left = _LeftOut(path)
        trained, root = _roots(path, part, left)
        names = _classes(trained, left)
        here = names if root == trained else _classes(root, left)  # a class may have no test image
        if unknown := set(here) - set(names):
            raise DataError(f"folder:{root}: class `{min(unknown)}` has no training images{_alike(unknown, names)}")
        files = [_images_below(root, name, left) if name in here else [] for name in names]
        beside = _scan(root, left)[1]
        if any(files):
            self.labels: Labels = np.repeat(np.arange(len(names)), [len(found) for found in files])
            left.add(_BESIDE_CLASSES, *(str(root / name) for name in beside))
            _remark_on_nested(names, files, left)
        else:
            names, files = [], [beside]
            self.labels = no_labels(len(beside))
        images = [name for found in files for name in found]
        self.notes = (*left.notes(), *notes_on_names(names))
        if not images:
            why = "".join(f"; {note.line(3)}" for note in self.notes)
            raise DataError(f"folder:{root}: no images; expected one subfolder per class with image files inside{why}")
        self.class_names = tuple(names)
        self._root = str(root)
        self._names = np.asarray([os.fsencode(name) for name in images])  # one block: no list for workers to copy
        self.fingerprint = fingerprint_images(images, root)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        return read_image_file(self.name(index))

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return os.path.join(self._root, os.fsdecode(self._names[index]))


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, as a run finds them, sorted."""
    return [folder / name for name in _images_below(folder, "", _LeftOut(folder))]


class _LeftOut:
    """What lies in a data set and is not used, by reason, and what was guessed."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._names: dict[str, dict[str, None]] = {}
        self._guesses: dict[str, None] = {}

    def add(self, what: str, *paths: str) -> None:
        """Leaves out what lies at `paths`; seen again, it counts once."""
        self._names.setdefault(what, {}).update(dict.fromkeys(os.path.relpath(path, self._root) for path in paths))

    def guess(self, text: str) -> None:
        """Something that a person should know was guessed."""
        self._guesses[text] = None

    def notes(self) -> tuple[Note, ...]:
        """Both, for `Records.notes`."""
        found = [Note(what, tuple(sorted(names)[:_MOST_NAMES]), len(names)) for what, names in self._names.items()]
        return tuple(note for note in found if note.total) + tuple(map(Note, self._guesses))


def _roots(path: Path, part: Part, left: _LeftOut) -> tuple[Path, Path]:
    """The folder of the training images and that of `part`: the same where the data are not divided.

    `train` is a part where class folders with images are in it, and a class where images are; with nothing but such
    folders around, it is a part without labels.
    """
    folders = _scan(path, left)[0]
    known = {name.lower(): name for name in reversed(folders)}
    train = next((path / known[name] for name in _TRAIN_NAMES if name in known), None)
    tests = [path / known[name] for name in _OTHER_NAMES if name in known and _holds_image(path / known[name])]
    others = [f for f in folders if path / f not in (train, *tests) and _holds_image(path / f)]
    if train and _has_classes(train):
        if others and not tests:
            raise DataError(
                f"folder:{path}: is `{train.name}` the training part or a class like `{others[0]}`? Name "
                f"folder:{train} for the part; or move `{others[0]}` away, or into it"
            )
    elif not train or others or not _holds_image(train):
        if part == "train":
            for name in [f.name for f in (train, *tests) if f is not None and _holds_image(f)]:
                left.guess(f"`{name}` is used as a class: there is no `train` next to it with class folders")
            return path, path
        if tests and not others and not (train and _holds_image(train)) and _has_classes(tests[0]):
            return tests[0], tests[0]
        raise DataError(
            f"folder:{path}: no test part; expected subfolders train and {', '.join(TEST_NAMES)}", missing_part=True
        )
    else:
        left.guess(f"`{train.name}` is taken for a part, not for a class: images are in it, and no class folders")
    if part == "test" and not tests:
        raise DataError(
            f"folder:{path}: no test part; expected a subfolder named {', '.join(TEST_NAMES)}", missing_part=True
        )
    left.add(_BESIDE_PARTS, *(str(path / name) for name in others), *map(str, tests[1:]))
    left.add(_BESIDE_PARTS, *(str(path / name) for name in _scan(path, left)[1]))
    return train, train if part == "train" else tests[0]


def _classes(root: Path, left: _LeftOut) -> list[str]:
    """The subfolders with images, sorted."""
    names = []
    for name in _scan(root, left)[0]:
        above = os.path.join(os.path.realpath(root), "")
        if (root / name).is_symlink() and above.startswith(os.path.join(os.path.realpath(root / name), "")):
            left.add(_LINK, str(root / name))
        elif _holds_image(root / name):
            names.append(name)
        else:
            left.add(_EMPTY, str(root / name))
            _images_below(root, name, left)
    return names


def _has_classes(folder: Path) -> bool:
    return any(_holds_image(folder / name) for name in _scan(folder, _LeftOut(folder))[0])


def _holds_image(folder: Path) -> bool:
    """Whether there is an image in `folder` or below it."""
    folders, images = _scan(folder, _LeftOut(folder))
    return bool(images) or any(_holds_image(folder / name) for name in folders if not (folder / name).is_symlink())


def _images_below(root: Path, name: str, left: _LeftOut) -> list[str]:
    """The images in a subfolder of `root` and in those below it, sorted; links to folders are not followed."""
    folders, images = _scan(root / name, left)
    found = [os.path.join(name, image) for image in images]
    for folder in folders:
        if (root / name / folder).is_symlink():
            left.add(_LINK, str(root / name / folder))
        else:
            found += _images_below(root, os.path.join(name, folder), left)
    return sorted(found)


def _scan(folder: Path, left: _LeftOut) -> tuple[list[str], list[str]]:
    """The subfolders of a folder and its images, each sorted by name."""
    folders, images = [], []
    for entry in os.scandir(folder):
        is_image = os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
        if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
            left.add(_HIDDEN, entry.path)
        elif _is(entry, "dir"):
            folders.append(entry.name)
        elif _is(entry, "file"):
            what = None if is_image else _why_no_image(entry.path)
            if what is None:
                images.append(entry.name)
            else:
                left.add(what, entry.path)
        elif entry.is_symlink() and is_image:  # leads nowhere: found damaged when it is read
            images.append(entry.name)
        else:
            left.add(_UNREADABLE if entry.is_symlink() else _IRREGULAR, entry.path)
    return sorted(folders), sorted(images)


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:  # a link to itself
        return False


def _why_no_image(path: str) -> str | None:
    """Why a file of another suffix is none, by its first bytes; None if it is one."""
    try:
        with open(path, "rb") as file:
            return None if SIGNATURE.match(file.read(16)) else _NO_IMAGE
    except OSError:
        return _UNREADABLE


def _remark_on_nested(names: list[str], files: list[list[str]], left: _LeftOut) -> None:
    nested = [found[0] for found in files if found and found[0].count(os.sep) > 1]
    if nested:
        top, inner = nested[0].split(os.sep)[:2]
        left.guess(
            f"{len(nested)} of {len(names)} classes hold folders of images, `{top}/{inner}` among them: all images "
            f"below `{top}` are of the class `{top}`"
        )


def _alike(unknown: set[str], names: list[str]) -> str:
    alike = {folded(name): name for name in names}
    like = alike.get(folded(min(unknown)))
    return f", but there is `{like}`: give both folders the same name" if like else ""
