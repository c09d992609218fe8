"""Image files in folders: the one place that reads folders of images.

Links to folders are followed. Hidden files and folders are ignored. Everything else that is left out is recorded.
"""

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from app.images.formats import sniff

_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "dib", "tif", "tiff"),
        *("avif", "heic", "heif", "hif"),
    )
)
_HEAD = 512  # bytes that show the format
_SYSTEM = frozenset(
    (
        *("__macosx", ".ds_store", ".appledouble", ".appledb", ".apdisk", ".localized", "icon\r"),  # macOS
        *(".spotlight-v100", ".trashes", ".fseventsd", ".documentrevisions-v100", ".temporaryitems"),
        *("network trash folder", "temporary items"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "system volume information"),
        *("@eadir", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@recently-snapshot", ".@__thumb"),  # QNAP
        *("lost+found", ".directory", ".thumbnails"),  # Linux
    )
)
_SYSTEM_PREFIXES = ("._", ".Trash-")  # macOS on other file systems, Linux


@dataclass(slots=True)
class Skipped:
    """What is left out of folders.

    ``others`` counts files that are not images, ``loops`` links to a folder that contains them, and ``repeated``
    folders that were read already. ``system`` counts files and folders of operating systems by name. ``broken`` are
    links that lead nowhere. ``unreadable`` has the reason for each folder and file that cannot be read.
    """

    others: int = 0
    loops: int = 0
    repeated: int = 0
    system: Counter[str] = field(default_factory=Counter)
    broken: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def add(self, more: "Skipped") -> None:
        """Add what is left out of another folder."""
        self.others += more.others
        self.loops += more.loops
        self.repeated += more.repeated
        self.system += more.system
        self.broken += more.broken
        self.unreadable |= more.unreadable


class ImageFiles(NamedTuple):
    """Image files in alphabetical order, and what was left out."""

    paths: tuple[Path, ...]
    skipped: Skipped


@dataclass(slots=True)
class Listing:
    """The content of one folder in alphabetical order: ``links`` are those to folders."""

    folders: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)


def find_images(folder: Path) -> ImageFiles:
    """The image files in a folder and its subfolders. Raises OSError if the folder itself cannot be read.

    Each subfolder is read once, and through a link only if it is not in the tree itself.
    """
    skipped = Skipped()
    files = sorted(_files(folder, skipped))
    return ImageFiles(tuple(path for path in files if _is_image(path, skipped)), skipped)


def listing(folder: Path) -> Listing:
    """The content of a folder, without what is hidden or an operating system's. Raises OSError."""
    found = Listing()
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if name := _system_name(entry.name):
                found.skipped.system[name] += 1
            elif not entry.name.startswith("."):
                _add(found, entry, folder / entry.name)
    return found


def _add(found: Listing, entry: os.DirEntry[str], path: Path) -> None:
    try:
        if not entry.is_symlink():
            (found.folders if entry.is_dir() else found.files).append(path)
        elif entry.is_dir():
            if _leads_up(path):
                found.skipped.loops += 1
            else:
                found.links.append(path)
        elif path.exists() or _named_as_image(path):
            found.files.append(path)
        else:
            found.skipped.broken.append(path)
    except OSError as error:
        found.skipped.unreadable[path] = _reason(error)


def _files(folder: Path, skipped: Skipped) -> Iterator[Path]:
    """Reads the folders of the tree first, then those that links lead to."""
    todo = deque([folder])
    read = set[tuple[int, int]]()
    while todo:
        parent = todo.popleft()
        try:
            status = parent.stat()
            identity = status.st_dev, status.st_ino
            if identity in read:
                skipped.repeated += 1
                continue
            read.add(identity)
            found = listing(parent)
        except OSError as error:
            if parent is folder:
                raise
            skipped.unreadable[parent] = _reason(error)
            continue
        skipped.add(found.skipped)
        todo.extendleft(found.folders)
        todo.extend(found.links)
        yield from found.files


def _system_name(name: str) -> str | None:
    """The name of an operating system's file or folder, or what such names have in common; else None."""
    for prefix in _SYSTEM_PREFIXES:
        if name.startswith(prefix):
            return f"{prefix}*"
    return name if name.lower() in _SYSTEM else None


def _leads_up(link: Path) -> bool:
    """Whether a link leads to a folder that contains it, by its path or in truth: following it would not end."""
    target = link.stat()
    around = (*Path(os.path.abspath(link)).parents, *link.parent.resolve().parents)
    return any(os.path.samestat(target, parent.stat()) for parent in around)


def _is_image(path: Path, skipped: Skipped) -> bool:
    """Whether the suffix or else the first bytes show an image. Other files are recorded."""
    if _named_as_image(path):
        return True
    try:
        if path.is_file():  # opening a pipe may block for ever
            with path.open("rb") as file:
                if sniff(file.read(_HEAD)) is not None:
                    return True
    except OSError as error:
        skipped.unreadable[path] = _reason(error)
        return False
    skipped.others += 1
    return False


def _named_as_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
