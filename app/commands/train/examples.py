"""Files -> the images to learn from: the same bytes once, the unreadable ones left out, enough for each class."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.commands.evaluate.table import count
from app.commands.filenames import shown
from app.commands.train.listing import Listing, named
from app.errors import TrainingError

FOLDS = 5
"""Of the cross-validation: each class needs an image in every one."""

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Example:
    """An image file, its class as a position in the labels, and the SHA-256 of its bytes."""

    path: Path
    class_id: int
    digest: bytes


@dataclass(slots=True)
class Examples:
    """``unreadable`` says of files that are left out why; ``warnings`` are for the user, a sentence each."""

    classes: tuple[str, ...]
    found: list[Example] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, unreadable: dict[Path, str]) -> None:
        """Go on without these."""
        self.unreadable |= unreadable
        self.found = [example for example in self.found if example.path not in unreadable]

    def without(self, digests: Collection[bytes]) -> int:
        """Go on without files of these bytes; how many there were."""
        before = len(self.found)
        self.found = [example for example in self.found if example.digest not in digests]
        return before - len(self.found)


def read(listing: Listing, classes: Sequence[str], advance: Advance) -> Examples:
    """Read every file once for its digest. Raises TrainingError for folders that are none of ``classes``."""
    unknown = [name for name in listing.classes if name not in classes]
    if unknown:
        raise TrainingError(f"{shown(listing.folder)} has classes that are not trained: {named(unknown)}")
    examples = Examples(tuple(classes))
    if listing.strays:
        examples.warnings.append(f"left out, of no class: {count(listing.strays, 'file')} in {shown(listing.folder)}")
    for name, files in listing.files.items():
        for path in files:
            try:
                examples.found.append(Example(path, examples.classes.index(name), _digest(path)))
            except OSError as error:
                examples.unreadable[path] = error.strerror or str(error)
            advance()
    _once(examples)
    return examples


def check(examples: Examples, held_out: bool) -> None:
    """Raise TrainingError unless each class has enough images to learn from, and one more where some are held out."""
    if len(examples.classes) < 2:
        raise TrainingError(f"there is one class, {examples.classes[0]}: to tell classes apart takes two or more")
    counts = Counter(example.class_id for example in examples.found)
    lost = Counter(path.parent.name for path in examples.unreadable)
    least = FOLDS + held_out
    few = [(name, counts[i]) for i, name in enumerate(examples.classes) if counts[i] < least]
    if few:
        told = named(_told(name, count, lost[name]) for name, count in few)
        why = f"{FOLDS} to choose the regularisation by cross-validation{', 1 to be held out' if held_out else ''}"
        first = _unreadable_words(examples)
        raise TrainingError("; ".join([f"each class needs {least} images ({why}); {told}{first}", *examples.warnings]))


def unreadable(examples: Examples) -> str | None:
    """What to say of the files that are left out."""
    if not examples.unreadable:
        return None
    reasons = (f"{shown(path)} ({why})" for path, why in sorted(examples.unreadable.items()))
    return f"left out, not to be read: {count(len(examples.unreadable), 'file')}: {named(reasons)}"


def _told(name: str, count: int, lost: int) -> str:
    return f"{name} has {count or 'none'}" + (f" and {lost} that cannot be read" if lost else "")


def _unreadable_words(examples: Examples) -> str:
    for path, why in sorted(examples.unreadable.items()):
        return f"; {shown(path)}: {why}"
    return ""


def _digest(path: Path) -> bytes:
    if not path.is_file():
        raise OSError("it is no file" if path.exists() else "there is no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _once(examples: Examples) -> None:
    """The same bytes count once in a class, and not at all in two: what they show is not known."""
    of = defaultdict[bytes, list[Example]](list)
    for example in examples.found:
        of[example.digest].append(example)
    torn = [same for same in of.values() if len({example.class_id for example in same}) > 1]
    if torn:
        pairs = (" = ".join(shown(example.path) for example in same) for same in torn)
        examples.warnings.append(f"left out, the same bytes in several classes: {named(pairs, '; ')}")
    kept = [same[0] for same in of.values() if len({example.class_id for example in same}) == 1]
    again = len(examples.found) - len(kept) - sum(map(len, torn))
    if again:
        examples.warnings.append(f"counted once: {count(again, 'file')} with the bytes of another one of the class")
    examples.found = kept
