"""Which images there are and which class each shows: a folder of folders, or a CSV."""

import csv
import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.commands.evaluate.metrics import Ints
from app.errors import EvaluationError
from app.imagenet.labels import Label

_SHOWN = 10
_NEAR = 3
_TELLING = 3  # letters
_LONG = 60
_HEADER = ("file", "label")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files, in order, and what each is called in ``source``; ``notes`` say what was left out."""

    source: Path
    files: tuple[Path, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Samples:
    """Image files and their class ids ``truth`` [n]; ``notes`` say what was left out or had two meanings."""

    source: Path
    files: tuple[Path, ...]
    truth: Ints
    notes: tuple[str, ...] = ()


class Classes(NamedTuple):
    """Class ids by name, and what had two meanings."""

    ids: dict[str, int]
    notes: tuple[str, ...]


def read(path: Path, labels: Sequence[Label]) -> Samples:
    """``understand`` what is found at ``path``. Raises EvaluationError."""
    return understand(listing(path), labels)


def listing(path: Path) -> Listing:
    """A folder of folders (the layout of torchvision's ImageFolder), or a CSV with the header ``file,label``.

    Files in a CSV are relative to it. Hidden files are left out. Raises EvaluationError.
    """
    if path.is_dir():
        return _folders(path)
    if path.is_file():
        return _table(path)
    raise EvaluationError(f"there is neither a folder nor a CSV {path}")


def understand(found: Listing, labels: Sequence[Label]) -> Samples:
    """Names become class ids, or EvaluationError lists those that no class has.

    A name is a label (also in other case, or with underscores for spaces) or a wnid. Where none is either, all are
    class indices.
    """
    classes = _classes(set(found.names), labels)
    if unknown := sorted(set(found.names) - classes.ids.keys()):
        raise EvaluationError(_unknown(unknown, labels, found.source))
    truth = np.array([classes.ids[name] for name in found.names], dtype=np.int64)
    return Samples(found.source, found.files, truth, (*found.notes, *classes.notes))


def _folders(root: Path) -> Listing:
    files: list[Path] = []
    names: list[str] = []
    try:
        children = sorted(child for child in root.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise EvaluationError(f"{root} cannot be read: {error.strerror}") from error
    folders = [child for child in children if child.is_dir()]
    for folder in folders:
        found = sorted(_files(folder))
        files += found
        names += [folder.name] * len(found)
    if not files:
        raise EvaluationError(
            f"{root} holds no folders with images: each class needs one, named by its wnid, label or index;"
            " or give a CSV with the header file,label"
        )
    beside = len(children) > len(folders)
    notes = ("files beside the class folders have no class and are left out",) if beside else ()
    return Listing(root, tuple(files), tuple(names), notes)


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _table(path: Path) -> Listing:
    files: list[Path] = []
    names: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if not set(_HEADER) <= set(rows.fieldnames or ()):
                found = ",".join(rows.fieldnames or ())[:_LONG]
                raise EvaluationError(f"{path} needs the header file,label in its first line, which is: {found!r}")
            for row in rows:
                if not (row["file"] and (row["label"] or "").strip()) or "\0" in row["file"]:
                    raise EvaluationError(f"{path}, line {rows.line_num}: a file and a label, please")
                files.append(path.parent / row["file"])
                names.append(row["label"].strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path} is no CSV in UTF-8, and is to be saved as one: {error}") from error
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error
    if not files:
        raise EvaluationError(f"{path} lists no files")
    again = sum(times > 1 for times in Counter(files).values())
    notes = (f"listed more than once, and counted as often: {again:,} of the files",) if again else ()
    return Listing(path, tuple(files), tuple(names), notes)


def _classes(names: Iterable[str], labels: Sequence[Label]) -> Classes:
    exact = {label.wnid: i for i, label in enumerate(labels) if label.wnid}
    exact |= {label.label: i for i, label in enumerate(labels)}
    folded = _folded(labels)
    found = {name: exact.get(name, folded.get(_fold(name))) for name in names}
    ids = {name: i for name, i in found.items() if i is not None}
    if not ids:
        return Classes({name: int(name) for name in found if _is_index(name, len(labels))}, ())
    indices = sorted(name for name, i in ids.items() if _is_index(name, len(labels)) and int(name) != i)
    return Classes(ids, (f"{', '.join(indices[:_SHOWN])}: taken as labels, not as class indices",) if indices else ())


def _is_index(name: str, classes: int) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 10 and int(name) < classes


def _fold(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _folded(labels: Sequence[Label]) -> dict[str, int]:
    """Labels in lower case where that means one class: a Cardigan is a dog, a cardigan is none."""
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
    for name in names[:_SHOWN]:
        near = [known[key] for key in _near(_fold(name), known)]
        lines.append(f"  {name}" + (f" (near: {', '.join(near)})" if near else ""))
    more = [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    what = "one name" if len(names) == 1 else f"{len(names)} names"
    return "\n".join([f"{source} has {what} that no class of the model has:", *lines, *more])


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Names that hold this one, else such as it may be a slip of."""
    holding = [one for one in known if len(name) >= _TELLING and name in one]
    return (sorted(holding, key=len) or difflib.get_close_matches(name, known, _NEAR))[:_NEAR]
