"""Folders of pictures: what lies in them, what their sub-folders stand for, and what is passed over.

Nothing is opened here; that is the business of `sources` and `decode`.
"""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from headstart.data.sources import FolderSource
from headstart.errors import DataError, listing, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes that make a file a picture, in small or capital letters; the same as torchvision's."""

_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")
_NOTES = (".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".log")
"""Suffixes of files that nobody takes for a picture."""

_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_PART_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
_ENDINGS = listing(EXTENSIONS)
_LAYOUT = "a folder with one sub-folder of pictures for each class, such as ants/1.jpg and bees/2.jpg"


def find_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Find the pictures below a folder, however deep.

    Hidden files and folders are passed over. Links are followed wherever they lead, except back up; a picture that can
    be reached on several ways counts once. A link to nothing is a picture here, so that opening it tells.

    Returns:
        The files with a picture's suffix, and all others; both sorted.

    Raises:
        DataError: the folder, or one below it, cannot be read. Check its permissions.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = _real(here)
        if real in seen:
            continue
        seen.add(real)
        folders, files = _contents(here)
        waiting.extend(folders)
        for path, target in files.items():
            if path.suffix.lower() not in EXTENSIONS:
                others.append(path)
            elif target not in seen:
                seen.add(target)
                pictures.append(path)
    return sorted(pictures), sorted(others)


def _real(path: Path) -> Path:
    """Follow all links; unlike `Path.resolve`, also one that leads to itself (which stays as it is)."""
    return Path(os.path.realpath(path))


def _contents(folder: Path) -> tuple[list[Path], dict[Path, Path]]:
    """List what is visible in a folder: its sub-folders, and its files with the real files they stand for."""
    folders: list[Path] = []
    files: dict[Path, Path] = {}
    real = _real(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name.lower() in _CLUTTER:
                    continue
                path = Path(entry.path)
                target = _real(path) if entry.is_symlink() else real / entry.name
                if not (path.is_dir() if entry.is_symlink() else entry.is_dir()):
                    files[path] = target
                elif not real.is_relative_to(target):  # else it leads back up, round and round
                    folders.append(path)
    except OSError as error:
        raise DataError(
            f"the folder {str(folder)!r}: {error.strerror}",
            "a folder that can be read",
            "Check its permissions, or take it out of the pictures.",
        ) from error
    return folders, files


def tell_passed_over(files: Iterable[Path], folders: Sequence[str] = ()) -> None:
    """Print which files are no pictures, and which folders no part, though somebody may have taken them for some.

    Args:
        files: found beside pictures; those that are plainly something else, such as a .txt or a .csv, are not told.
        folders: the names of those beside a train folder, or what else is to be said of them.

    Example:
        >>> tell_passed_over([Path("ants/1.gif"), Path("ants/2.heic"), Path("labels.csv")], ["dev"])
        passed over 2 files that are no pictures we read: 1.gif, 2.heic
        passed over 1 folder beside train: dev
    """
    foreign = [repr(path.name)[1:-1] for path in files if path.suffix.lower() not in _NOTES]
    if foreign:
        one = len(foreign) == 1
        kind = "1 file that is no picture" if one else f"{len(foreign)} files that are no pictures"
        print(f"passed over {kind} we read: {listing(foreign, most=3)}")  # noqa: T201 - else nobody would know
    if folders:
        kind = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
        print(f"passed over {kind} beside train: {listing(repr(name)[1:-1] for name in folders)}")  # noqa: T201 - likewise


class Parts(NamedTuple):
    """What a folder holds: pictures to train on and, where there are any, to validate and to test on.

    `beside` are the names of the folders that are none of these.
    """

    train: FolderSource
    val: FolderSource | None
    test: FolderSource | None
    beside: tuple[str, ...]


def scan_parts(root: Path) -> Parts:
    """Find the train, val and test pictures in a folder.

    Args:
        root: holds `train/` and perhaps `val/`, `valid/` or `validation/`, and `test/`, each with one sub-folder per
            class; or, without `train/`, the folders of the classes themselves, which then are all train.

    Returns:
        The parts, labelled by train's classes. Without a val folder, test is also val. A test folder without classes
        has no labels to compare with and does not count.

    Raises:
        DataError: two folders could be the same part, or folders are named like parts and none is called train; else
            see `scan_classes`.
    """
    _demand_folder(root)
    folders, _ = _contents(root)
    found = _found_parts(root, folders)
    if "train" not in found:
        return Parts(scan_classes(root), None, None, ())
    train = scan_classes(found["train"], taken_as="train")
    val, test = (found.get(name) for name in ("val", "test"))
    flat = test is not None and not _contents(test)[0]
    tested = None if test is None or flat else scan_known_classes(test, train.classes)
    beside = [folder.name for folder in folders if folder not in found.values()]
    beside += [f"{test.name} (no class folders in it)"] if test is not None and flat else []
    if val is None and tested is not None:
        print("val is the test part, since there is no val folder: do not choose by one and report the other")  # noqa: T201
    known = tested if val is None else scan_known_classes(val, train.classes)
    return Parts(train, known, tested, tuple(sorted(beside)))


def _found_parts(root: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """Find the parts by their names, in small or capital letters, and refuse what could be meant otherwise."""
    found: dict[str, Path] = {}
    for part, names in _PARTS.items():
        named = [folder for folder in folders if folder.name.lower() in names]
        if len(named) > 1:
            several = " and ".join(repr(folder.name) for folder in named)
            raise DataError(
                f"{str(root)!r} with {several}, each of which could be {part}",
                "one folder for each part: train/, and perhaps val/ (or valid/, or validation/) and test/",
                "Move the pictures into one of these folders, class by class, or take the others away.",
            )
        if named:
            found[part] = named[0]
    alike = [folder for folder in folders if folder.name.lower() in _PART_NAMES]
    if "train" in found or not (found or len(alike) > 1):
        return found
    if len(alike) == len(folders) or any(_contents(folder)[0] for folder in alike):
        raise DataError(
            f"{str(root)!r} with {listing(repr(folder.name) for folder in alike)} and no 'train'",
            "a folder train/ with one sub-folder of pictures per class; val/ and test/ may stand beside it",
            "Name the folder of the training pictures 'train'. If these are classes, put the folders of all classes "
            "into a folder train/.",
        )
    return {}  # classes of such a name beside others, such as 'valid' and 'invalid'


def scan_classes(root: Path, taken_as: str = "") -> FolderSource:
    """Take each sub-folder as a class, sorted by name, and find its pictures.

    Args:
        root: holds one sub-folder per class.
        taken_as: the part that the folder was taken as because of its name, if it was, for messages.

    Raises:
        DataError: the folder is missing or a file, has fewer than two classes, or a class without a picture.
    """
    _demand_folder(root)
    folders, files = _contents(root)
    place = f"{str(root)!r}, taken as the {taken_as} part," if taken_as else repr(str(root))
    if len(folders) < 2:
        raise _too_few(place, folders, sum(path.suffix.lower() in EXTENSIONS for path in files), taken_as)
    source = _labelled(enumerate(folders), tuple(folder.name for folder in folders))
    filled = set(source.labels)
    if empty := [name for label, name in enumerate(source.classes) if label not in filled]:
        raise DataError(
            f"{place} with no picture in {listing(map(repr, empty))}",
            f"at least one picture in each class folder, ending in {_ENDINGS}",
            "Add pictures, or delete the folders that are no classes.",
        )
    return source


def scan_known_classes(root: Path, classes: tuple[str, ...]) -> FolderSource:
    """Find the pictures of classes that are known from training; any of them may be missing or empty here.

    Args:
        root: holds one sub-folder per class.
        classes: names in the order of their numbers.

    Raises:
        DataError: the folder is missing or a file, holds a class that is not known, or no picture at all.
    """
    _demand_folder(root)
    numbers = {folder: _number(folder.name, classes) for folder in _contents(root)[0]}
    if strangers := [folder.name for folder, number in numbers.items() if number is None]:
        raise DataError(
            f"{str(root)!r} with {listing(map(repr, strangers))}, no class of the training pictures",
            f"only folders of these classes: {listing(classes)}",
            f"{nearest(strangers[0], classes)}Rename or delete the folders, or train on such pictures too.",
        )
    source = _labelled([(number, folder) for folder, number in numbers.items() if number is not None], classes)
    if not source.paths:
        raise DataError(
            f"no picture in any class folder of {str(root)!r}",
            f"{_LAYOUT}, ending in {_ENDINGS}",
            "Sort pictures into folders named as the classes, or delete the folder.",
        )
    return source


def _labelled(folders: Iterable[tuple[int, Path]], classes: tuple[str, ...]) -> FolderSource:
    """Join the pictures of folders that come with the numbers of their classes."""
    paths: list[Path] = []
    labels: list[int] = []
    passed_over: list[Path] = []
    for number, folder in folders:
        pictures, others = find_pictures(folder)
        paths += pictures
        labels += [number] * len(pictures)
        passed_over += others
    return FolderSource(tuple(paths), tuple(labels), classes, tuple(passed_over))


def _number(name: str, classes: tuple[str, ...]) -> int | None:
    """Find a class by its name, if it is one; an é may be one sign or an e with an accent, as on a Mac."""
    if name in classes:
        return classes.index(name)
    written = unicodedata.normalize("NFC", name)
    return next((n for n, known in enumerate(classes) if unicodedata.normalize("NFC", known) == written), None)


def _demand_folder(root: Path) -> None:
    """Raise unless `root` is a folder; name the one that was probably meant."""
    place = root.absolute()
    if place.is_dir():
        return
    missing = next((part for part in [*reversed(place.parents), place] if not part.exists()), place)
    beside = [folder.name for folder in _contents(missing.parent)[0]] if missing.parent.is_dir() else []
    raise DataError(
        f"{str(place)!r}, which {'is a file' if place.exists() else 'does not exist'}",
        _LAYOUT,
        f"{nearest(missing.name, beside)}Check the path, or unpack the archive first.",
    )


def _too_few(place: str, folders: Sequence[Path], pictures: int, taken_as: str) -> DataError:
    """Say that the sub-folders cannot be classes, and what may have been meant."""
    inside = f"only the folder {folders[0].name!r}" if folders else "no folder"
    deeper = f"If the classes are further down, pass {str(folders[0])!r}. " if folders else ""
    itself = f" If {taken_as} is a class, put the folders of all classes into one, as in {taken_as}/{taken_as}."
    return DataError(
        f"{place} with {inside} and {pictures} pictures in it",
        f"two classes or more: {_LAYOUT}",
        f"{deeper}Sort the pictures into folders; if a table tells the labels, use ImageData.from_datasets."
        + (itself if taken_as else ""),
    )
