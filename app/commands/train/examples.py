"""Files -> training images: without duplicates and unreadable files, and enough for each class."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.commands.evaluate.table import count
from app.commands.filenames import left_out, printable, shorten
from app.commands.files import check_regular, reason
from app.commands.train.listing import ClassFolders
from app.errors import TrainingError

FOLDS = 5
"""Folds of the cross-validation. Each class needs an image in every fold."""

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Example:
    """An image file, its class as a position in the labels, and the SHA-256 of its bytes."""

    path: Path
    class_id: int
    digest: bytes


@dataclass(slots=True)
class TrainingSet:
    """The images ``found`` for these classes. ``warnings`` are sentences.

    ``unreadable`` has the reasons by file, and ``lost`` the number of such files by class.
    """

    classes: tuple[str, ...]
    found: list[Example] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, unreadable: dict[Path, str]) -> None:
        """Remove these files, with their reasons."""
        self.unreadable |= unreadable
        self.lost.update(example.class_id for example in self.found if example.path in unreadable)
        self.found = [example for example in self.found if example.path not in unreadable]

    def remove(self, digests: Collection[bytes]) -> int:
        """Remove the images with these digests. Returns how many there were."""
        before = len(self.found)
        self.found = [example for example in self.found if example.digest not in digests]
        return before - len(self.found)


def read(listing: ClassFolders, classes: Sequence[str], advance: Advance) -> TrainingSet:
    """Read every file once, for its digest. Raises TrainingError if a folder is not one of ``classes``."""
    unknown = [name for name in listing.classes if name not in classes]
    if unknown:
        raise TrainingError(
            f"{printable(listing.folder)} has classes that the training folder does not have: {shorten(unknown)}"
        )
    examples = TrainingSet(tuple(classes))
    if listing.strays:
        examples.warnings.append(
            f"ignored {count(listing.strays, 'file')} without a class in {printable(listing.folder)}"
        )
    examples.warnings += left_out(listing.skipped)
    for name, files in listing.files.items():
        class_id = examples.classes.index(name)
        for path in files:
            try:
                examples.found.append(Example(path, class_id, _digest(path)))
            except OSError as error:
                examples.unreadable[path] = reason(error)
                examples.lost[class_id] += 1
            advance()
    _remove_duplicates(examples)
    return examples


def check(examples: TrainingSet, held_out: bool) -> None:
    """Raise TrainingError unless each class has enough images, and one more if some are held out."""
    if len(examples.classes) < 2:
        raise TrainingError(f"there is only one class, {examples.classes[0]}: training needs two or more")
    counts = Counter(example.class_id for example in examples.found)
    least = FOLDS + held_out
    few = [i for i in range(len(examples.classes)) if counts[i] < least]
    if few:
        counted = shorten(_class_count(examples.classes[i], counts[i], examples.lost[i]) for i in few)
        why = f"{FOLDS} to choose the regularisation by cross-validation{', 1 to hold out' if held_out else ''}"
        first = _first_unreadable(examples)
        raise TrainingError(
            "; ".join([f"each class needs {least} images ({why}); {counted}{first}", *examples.warnings])
        )


def unreadable(examples: TrainingSet) -> str | None:
    """A sentence about the files that cannot be read, or None."""
    if not examples.unreadable:
        return None
    reasons = (f"{printable(path)} ({why})" for path, why in sorted(examples.unreadable.items()))
    return f"ignored {count(len(examples.unreadable), 'unreadable file')}: {shorten(reasons)}"


def _class_count(name: str, count: int, lost: int) -> str:
    return f"{name} has {count or 'none'}" + (f" and {lost} that cannot be read" if lost else "")


def _first_unreadable(examples: TrainingSet) -> str:
    for path, why in sorted(examples.unreadable.items()):
        return f"; {printable(path)}: {why}"
    return ""


def _digest(path: Path) -> bytes:
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _remove_duplicates(examples: TrainingSet) -> None:
    """Keep one of several equal files in a class, and none in several classes, because their class is unknown."""
    of = defaultdict[bytes, list[Example]](list)
    for example in examples.found:
        of[example.digest].append(example)
    ambiguous = [same for same in of.values() if len({example.class_id for example in same}) > 1]
    if ambiguous:
        pairs = (" = ".join(printable(example.path) for example in same) for same in ambiguous)
        examples.warnings.append(f"ignored images that are in several classes: {shorten(pairs, '; ')}")
    kept = [same[0] for same in of.values() if len({example.class_id for example in same}) == 1]
    again = len(examples.found) - len(kept) - sum(map(len, ambiguous))
    if again:
        examples.warnings.append(f"ignored {count(again, 'duplicate')} of images in the same class")
    examples.found = kept
