"""A folder of folders as it lies there: its classes, and the files of each. No file is opened."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.commands.filenames import shown
from app.errors import TrainingError

_NAMED = 10  # of what is listed in a message


@dataclass(frozen=True, slots=True)
class Listing:
    """``files`` of each class, in the order of its names; ``strays`` lie beside the class folders."""

    folder: Path
    files: dict[str, tuple[Path, ...]]
    strays: int

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.files)


def read(folder: Path) -> Listing:
    """List what is there, but for hidden files and folders. Raises TrainingError where these are no classes."""
    try:
        children = _children(folder)
        classes = [child for child in children if child.is_dir()]
        strays = len(children) - len(classes)
        if not classes:
            lying = f"; the {strays} files in it have no class" if strays else ""
            raise TrainingError(f"{shown(folder)} holds no folders: it needs one for each class{lying}")
        for child in classes:
            _check_name(child)
        return Listing(folder, {child.name: _files(child) for child in classes}, strays)
    except OSError as error:
        raise TrainingError(f"{shown(Path(error.filename))} cannot be read: {error.strerror}") from error


def named(names: Iterable[str], separator: str = ", ") -> str:
    """The first of them, and how many more there are."""
    names = list(names)
    more = [f"and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
    return separator.join(names[:_NAMED] + more)


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))


def _check_name(folder: Path) -> None:
    name = folder.name
    if name != shown(Path(name)) or name != name.strip():
        raise TrainingError(f"the folder {shown(folder)!r} cannot be a class: its name is no label that can be printed")


def _files(folder: Path) -> tuple[Path, ...]:
    children = _children(folder)
    nested = [child for child in children if child.is_dir()]
    if nested:
        instead = (
            "" if len(nested) < len(children) else f"; if these are the classes, train from {shown(folder)} itself"
        )
        raise TrainingError(
            f"{shown(folder)} is the folder of a class and holds folders itself"
            f" ({named(shown(Path(child.name)) for child in nested)}){instead}"
        )
    return tuple(children)
