"""Writes ``wordnet.csv``, the part of WordNet 3.0 above ImageNet's classes, and ``wordnet.LICENSE``.

    apt-get install wordnet-base
    python -m app.imagenet.wordnet [/usr/share/wordnet/data.noun]

The service reads the CSV and does not import this module. A wnid is ``n`` and the synset's offset in ``data.noun``,
whose format is wndb(5WN). Only hypernym pointers (``@``) are followed: none of these synsets is an instance (``@i``).
"""

import csv
import io
import sys
from pathlib import Path
from typing import NamedTuple

DATABASE = Path("/usr/share/wordnet/data.noun")
FOLDER = Path(__file__).parent
CLASSES, TREE, LICENSE = (FOLDER / name for name in ("imagenet1k.csv", "wordnet.csv", "wordnet.LICENSE"))


class SynsetRecord(NamedTuple):
    """One row of the table: the hypernyms' wnids, the first word with spaces instead of underscores, and the gloss."""

    wnid: str
    parents: tuple[str, ...]
    lemma: str
    gloss: str


def read(database: bytes, wnid: str) -> SynsetRecord:
    """Parse the synset at the offset of ``wnid``. Raises ValueError if there is none."""
    start = int(wnid[1:])
    line = database[start : database.index(b"\n", start)].decode()
    head, _, gloss = line.partition(" | ")
    offset, _, _, words, *fields = head.split()
    if f"n{offset}" != wnid:
        raise ValueError(f"no synset starts at {wnid}; the database is not WordNet 3.0")
    pointers = fields[2 * int(words, 16) + 1 :]  # they follow pairs of word and number, and the count of pointers
    parents = tuple(f"n{target}" for kind, target in zip(pointers[::4], pointers[1::4], strict=True) if kind == "@")
    return SynsetRecord(wnid, parents, fields[0].replace("_", " "), gloss.strip())


def closure(database: bytes, classes: list[str]) -> list[SynsetRecord]:
    """The classes and their ancestors, sorted by wnid."""
    found: dict[str, SynsetRecord] = {}
    todo = list(classes)
    while todo:
        wnid = todo.pop()
        if wnid not in found:
            found[wnid] = read(database, wnid)
            todo += found[wnid].parents
    return [found[wnid] for wnid in sorted(found)]


def table(synsets: list[SynsetRecord]) -> str:
    """The synsets as CSV. The parents' wnids are separated by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SynsetRecord._fields)
    writer.writerows((wnid, " ".join(parents), lemma, gloss) for wnid, parents, lemma, gloss in synsets)
    return text.getvalue()


def license_text(database: bytes) -> str:
    """The licence at the start of the database, without line numbers. It must accompany the data."""
    lines = database.decode().split("\n00001740 ", 1)[0].splitlines()
    return "".join(line.strip().partition(" ")[2] + "\n" for line in lines)


def main(path: Path) -> None:
    """Write the table and the licence from the database at ``path``."""
    database = path.read_bytes()
    with CLASSES.open(encoding="utf-8") as file:
        classes = [row["wnid"] for row in csv.DictReader(file)]
    TREE.write_text(table(closure(database, classes)), encoding="utf-8")
    LICENSE.write_text(license_text(database), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATABASE)
