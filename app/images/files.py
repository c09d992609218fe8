"""Image files in folders. Hidden files and folders are ignored."""

import os
from collections.abc import Iterable, Iterator
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


class ImageFiles(NamedTuple):
    """Image files in alphabetical order, and the number of ``others``: files that are not images."""

    paths: tuple[Path, ...]
    others: int


def find_images(folder: Path) -> ImageFiles:
    """The image files in a folder and its subfolders. Raises OSError if a folder cannot be read."""
    return only_images(sorted(_files(folder)))


def only_images(files: Iterable[Path]) -> ImageFiles:
    """The image files among ``files``, in their order. The suffix shows an image file, or else the first bytes."""
    listed = list(files)
    paths = tuple(path for path in listed if _is_image(path))
    return ImageFiles(paths, len(listed) - len(paths))


def visible(folder: Path) -> list[Path]:
    """The files and folders in a folder that are not hidden, in alphabetical order. Raises OSError."""
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        if not path.is_file():  # opening a pipe may block for ever
            return False
        with path.open("rb") as file:
            return sniff(file.read(_HEAD)) is not None
    except OSError:
        return False
