"""The class folders of a training set and their files. Class names are checked; images are not decoded."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from app.commands.filenames import left_out, printable, shorten
from app.commands.files import reason
from app.errors import TrainingError
from app.imagenet.labels import normalized
from app.images.files import Skipped, find_images, listing


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """The image ``files`` of each class, in the order of the class names.

    ``strays`` counts files next to the class folders. ``skipped`` is what was left out in all folders.
    """

    folder: Path
    files: dict[str, tuple[Path, ...]]
    strays: int
    skipped: Skipped

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.files)


def read(folder: Path) -> ClassFolders:
    """List the class folders. Folders whose names are equal in Unicode's form NFC are one class.

    Raises TrainingError for another layout.
    """
    try:
        found = listing(folder)
    except OSError as error:
        raise TrainingError(f"{printable(folder)} cannot be read: {reason(error)}") from error
    skipped, strays = found.skipped, len(found.files)
    classes = sorted(found.folders + found.links)
    if not classes:
        missing = [f"{printable(folder)} has no class folders: create one for each class"]
        if strays:
            missing.append(f"its {strays} files have no class")
        raise TrainingError("; ".join(missing + left_out(skipped)))
    files = defaultdict[str, tuple[Path, ...]](tuple)
    for label, child in [(_label(child), child) for child in classes]:
        files[label] += _images(child, skipped)
    return ClassFolders(folder, dict(sorted(files.items())), strays, skipped)


def _label(folder: Path) -> str:
    name = folder.name
    if name != printable(name) or name != name.strip():
        raise TrainingError(
            f"the name of the folder {printable(folder)!r} cannot be a label: rename it, without control characters"
            " and without spaces at the ends"
        )
    return normalized(name)


def _images(folder: Path, skipped: Skipped) -> tuple[Path, ...]:
    """The images of a class. Folders that links in it lead to belong to the class; other folders may be a mistake."""
    try:
        found = listing(folder)
        if found.folders:
            nested = shorten(printable(child.name) for child in found.folders)
            mixed = found.files or found.links
            instead = "" if mixed else f"; if these are the classes, train from {printable(folder)}"
            raise TrainingError(f"the class folder {printable(folder)} contains folders ({nested}){instead}")
        images = find_images(folder)
    except OSError as error:
        skipped.unreadable[folder] = reason(error)
        return ()
    skipped.add(images.skipped)
    return images.paths
