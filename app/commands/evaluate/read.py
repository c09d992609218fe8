"""The images and their true classes: from a folder of class folders, or from a CSV file."""

import csv
import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.commands.evaluate.metrics import Ints
from app.commands.filenames import left_out, printable, shorten
from app.commands.files import Finder, reason
from app.errors import EvaluationError
from app.imagenet.labels import Label, normalized
from app.images.files import find_images, listing

_MOST_NAMES = 10  # in one message
_SUGGESTIONS = 3
_LEAST_LETTERS = 3  # of a name that is searched for in labels
_LONG = 60
_HEADER = ("file", "label")


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """The files in order, and the class name of each as written in ``source``; ``notes`` say what was left out."""

    source: Path
    files: tuple[Path, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Samples:
    """Image files and their class ids ``truth`` [n]; ``notes`` list what was left out or was ambiguous."""

    source: Path
    files: tuple[Path, ...]
    truth: Ints
    notes: tuple[str, ...] = ()


class Classes(NamedTuple):
    """Class ids by name, and notes on ambiguous names."""

    ids: dict[str, int]
    notes: tuple[str, ...]


def read(path: Path, labels: Sequence[Label]) -> Samples:
    """``find`` the images at ``path`` and ``match`` their class names to ``labels``. Raises EvaluationError."""
    return match(find(path), labels)


def find(path: Path, *, once: bool = False) -> LabelledFiles:
    """The images of a folder of class folders (torchvision's ImageFolder layout), or of a CSV with a header file,label.

    Paths in a CSV are relative to it. ``once`` counts a file that a CSV lists more than once only once; it must then
    have the same label each time. Raises EvaluationError.
    """
    if path.is_dir():
        return _folders(path)
    if path.is_file():
        return _table(path, once)
    raise EvaluationError(f"no such folder or CSV file: {printable(path)}")


def match(found: LabelledFiles, labels: Sequence[Label]) -> Samples:
    """Convert class names to class ids. Raises EvaluationError with the names that match no class.

    A name is a label (in any case and Unicode form, with spaces or underscores) or a wnid. If no name is either, all
    names are class indices.
    """
    classes = _classes(set(found.names), labels)
    if unknown := sorted(set(found.names) - classes.ids.keys()):
        raise EvaluationError(_unknown(unknown, labels, found.source))
    truth = np.array([classes.ids[name] for name in found.names], dtype=np.int64)
    return Samples(found.source, found.files, truth, (*found.notes, *classes.notes))


def _folders(root: Path) -> LabelledFiles:
    files: list[Path] = []
    names: list[str] = []
    try:
        found = listing(root)
    except OSError as error:
        raise EvaluationError(f"{printable(root)} cannot be read: {error.strerror}") from error
    skipped = found.skipped
    for folder in sorted(found.folders + found.links):
        try:
            images = find_images(folder)
        except OSError as error:
            skipped.unreadable[folder] = reason(error)
            continue
        files += images.paths
        names += [folder.name] * len(images.paths)
        skipped.add(images.skipped)
    notes = left_out(skipped)
    if not files:
        missing = (
            f"{printable(root)} has no folders with images; create one folder per class, named by wnid, label or index,"
            " or give a CSV file with the header file,label"
        )
        raise EvaluationError("; ".join([missing, *notes]))
    if found.files:
        notes.insert(0, "files next to the class folders have no class and are ignored")
    return LabelledFiles(root, tuple(files), tuple(names), tuple(notes))


def _table(path: Path, once: bool) -> LabelledFiles:
    files: list[Path] = []
    names: list[str] = []
    finder = Finder()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if not set(_HEADER) <= set(rows.fieldnames or ()):
                found = ",".join(rows.fieldnames or ())[:_LONG]
                raise EvaluationError(f"{printable(path)}: the first line must be the header file,label, got {found!r}")
            for row in rows:
                if not (row["file"] and (row["label"] or "").strip()) or "\0" in row["file"]:
                    raise EvaluationError(f"{printable(path)}, line {rows.line_num}: needs a file and a label")
                files.append(finder.find(path.parent / row["file"]))
                names.append(row["label"].strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{printable(path)} is not a CSV file in UTF-8 ({error}); save it as one") from error
    except OSError as error:
        raise EvaluationError(f"{printable(path)} cannot be read: {error.strerror}") from error
    if not files:
        raise EvaluationError(f"{printable(path)} lists no files")
    again = sum(times > 1 for times in Counter(files).values())
    counted = "once" if once else "each time"
    notes = (f"{again:,} file{'s' * (again != 1)} listed more than once, counted {counted}",) if again else ()
    if once:
        labels = _labels(path, files, names)
        return LabelledFiles(path, tuple(labels), tuple(labels.values()), notes)
    return LabelledFiles(path, tuple(files), tuple(names), notes)


def _labels(path: Path, files: Sequence[Path], names: Sequence[str]) -> dict[Path, str]:
    """The label of each file that a table lists. Raises EvaluationError if a file has several."""
    labels: dict[Path, str] = {}
    for file, name in zip(files, names, strict=True):
        if (first := labels.setdefault(file, name)) != name:
            raise EvaluationError(
                f"{printable(path)} lists {printable(file)} with the labels {printable(first)} and {printable(name)};"
                " list it once"
            )
    return labels


def _classes(names: Iterable[str], labels: Sequence[Label]) -> Classes:
    exact = {label.wnid: i for i, label in enumerate(labels) if label.wnid}
    exact |= {normalized(label.label): i for i, label in enumerate(labels)}
    folded = _folded(labels)
    found = {name: exact.get(normalized(name), folded.get(_fold(name))) for name in names}
    ids = {name: i for name, i in found.items() if i is not None}
    if not ids:
        return Classes({name: int(name) for name in found if _is_index(name, len(labels))}, ())
    indices = sorted(name for name, i in ids.items() if _is_index(name, len(labels)) and int(name) != i)
    note = f"{shorten(indices)}: read as labels, not as class indices"
    return Classes(ids, (note,) if indices else ())


def _is_index(name: str, classes: int) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10 and int(name) < classes


def _fold(name: str) -> str:
    return " ".join(normalized(normalized(name).casefold()).replace("_", " ").split())


def _folded(labels: Sequence[Label]) -> dict[str, int]:
    """Labels in lower case, without those that then name two classes: a Cardigan is a dog, a cardigan is a garment."""
    found: dict[str, int] = {}
    twice: set[str] = set()
    for i, label in enumerate(labels):
        key = _fold(label.label)
        twice |= {key} & found.keys()
        found[key] = i
    return {key: i for key, i in found.items() if key not in twice}


def _unknown(names: Sequence[str], labels: Sequence[Label], source: Path) -> str:
    known = {label.wnid: label.wnid for label in labels if label.wnid}
    known |= {_fold(label.label): label.label for label in labels}
    lines = []
    for name in names[:_MOST_NAMES]:
        near = [known[key] for key in _near(_fold(name), known)]
        lines.append(f"  {printable(name)}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    more = [f"  and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    what = "one name that matches" if len(names) == 1 else f"{len(names)} names that match"
    return "\n".join([f"{printable(source)} has {what} no class of the model:", *lines, *more])


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Names that contain this one, or else names of a similar spelling."""
    holding = [one for one in known if len(name) >= _LEAST_LETTERS and name in one]
    return (sorted(holding, key=len) or difflib.get_close_matches(name, known, _SUGGESTIONS))[:_SUGGESTIONS]
