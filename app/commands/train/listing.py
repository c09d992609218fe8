"""The class folders of a training set and their files. Class names are checked; images are not decoded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.commands.filenames import printable
from app.errors import TrainingError
from app.images.files import ImageFiles, only_images, visible

_MOST_NAMES = 10  # in one message


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """The image ``files`` of each class, in the order of the class names.

    ``strays`` counts files next to the class folders, ``others`` files in them that are not images.
    """

    folder: Path
    files: dict[str, tuple[Path, ...]]
    strays: int
    others: int

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.files)


def read(folder: Path) -> ClassFolders:
    """List the class folders. Hidden files and folders are ignored. Raises TrainingError for another layout."""
    try:
        children = visible(folder)
        classes = [child for child in children if child.is_dir()]
        strays = len(children) - len(classes)
        if not classes:
            unused = f"; its {strays} files have no class" if strays else ""
            raise TrainingError(f"{printable(folder)} has no class folders: create one for each class{unused}")
        for child in classes:
            _check_name(child)
        found = {child.name: _images(child) for child in classes}
        files = {name: images.paths for name, images in found.items()}
        return ClassFolders(folder, files, strays, sum(images.others for images in found.values()))
    except OSError as error:
        raise TrainingError(f"{printable(Path(error.filename))} cannot be read: {error.strerror}") from error


def shorten(names: Iterable[str], separator: str = ", ") -> str:
    """The first names, and the number of the others."""
    names = list(names)
    more = [f"and {len(names) - _MOST_NAMES:,} more"] if len(names) > _MOST_NAMES else []
    return separator.join(names[:_MOST_NAMES] + more)


def _check_name(folder: Path) -> None:
    name = folder.name
    if name != printable(Path(name)) or name != name.strip():
        raise TrainingError(
            f"the name of the folder {printable(folder)!r} cannot be a label: rename it, without control characters"
            " and without spaces at the ends"
        )


def _images(folder: Path) -> ImageFiles:
    children = visible(folder)
    nested = [child for child in children if child.is_dir()]
    if nested:
        instead = "" if len(nested) < len(children) else f"; if these are the classes, train from {printable(folder)}"
        raise TrainingError(
            f"the class folder {printable(folder)} contains folders"
            f" ({shorten(printable(Path(child.name)) for child in nested)}){instead}"
        )
    return only_images(children)
