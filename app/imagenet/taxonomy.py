"""WordNet above a model's labels: from a probability per class to a probability per synset.

The score of a synset is the sum over the classes at or below it, so `dog` has the sum of its breeds. Each class counts
once, even if several paths connect it. The hierarchy is that of WordNet 3.0, a directed acyclic graph in which a synset
may have several parents; see ``imagenet/wordnet.py``.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from app.imagenet.labels import Label, imagenet1k

CONFIDENCE = 0.9
"""The default of ``confidence``, the score that an answer must reach."""

MIN_CONFIDENCE, MAX_CONFIDENCE = 0.0, 1.0
"""``confidence`` is more than the first and at most the second."""

Positions = tuple[tuple[int, ...], ...]

_CHUNK = 256  # rows per summation, at 100 KB of memory each


@dataclass(frozen=True, slots=True)
class Node:
    """A synset. ``label`` is the model's label for a class, and WordNet's first word for any other synset."""

    wnid: str
    label: str
    gloss: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A node and its score for one image: the sum over the classes at or below it."""

    wnid: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Placing:
    """An image's path from the root to its best class, and the answer: see ``Taxonomy.placing``."""

    taxonomy: list[Scored]
    answer: Scored


class Taxonomy:
    """The classes (wnid -> label, in the order of the logits) and their ancestors.

    ``nodes`` are sorted by the length of their longest path from the root, then by wnid: the root is first, parents
    precede children. ``index`` maps a wnid to its position; ``parents`` and ``children`` are positions; ``depths``
    [nodes] are the lengths of the shortest paths from the root. ``above`` [nodes, classes] is true if the class is at
    or below the node.
    """

    def __init__(self, labels: dict[str, str], synsets: "dict[str, _Synset]") -> None:
        longest = _longest_paths(labels, synsets)
        order = sorted(longest, key=lambda wnid: (longest[wnid], wnid))
        self.index = {wnid: i for i, wnid in enumerate(order)}
        self.nodes = tuple(Node(wnid, labels.get(wnid, synsets[wnid].lemma), synsets[wnid].gloss) for wnid in order)
        self.parents: Positions = tuple(tuple(self.index[p] for p in synsets[wnid].parents) for wnid in order)
        self.children = _inverted(self.parents)
        self.classes = np.array([self.index[wnid] for wnid in labels])  # [classes], positions
        self.above = np.zeros((len(order), len(labels)), np.bool_)
        self.above[self.classes, np.arange(len(labels))] = True
        self.depths = np.zeros(len(order), np.int64)
        for i, parents in enumerate(self.parents[1:], 1):
            self.depths[i] = 1 + self.depths[list(parents)].min()
        for i, children in reversed(list(enumerate(self.children))):
            self.above[i] |= self.above[list(children)].any(axis=0)
        self._longest = [longest[wnid] for wnid in order]
        self._counts = self.above.sum(axis=1)
        self._below = np.nonzero(self.above)[1]  # the classes at or below the first node, then the second, ...
        self._starts = np.cumsum(self._counts) - self._counts

    def sums(self, probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Sum probabilities [n, classes] over the classes at or below each node. Returns [n, nodes].

        Nodes above the same classes have bitwise equal sums.
        """
        sums = np.empty((len(probabilities), len(self.nodes)))
        for i in range(0, len(probabilities), _CHUNK):
            terms = probabilities[i : i + _CHUNK].take(self._below, axis=1)
            np.add.reduceat(terms, self._starts, axis=1, dtype=np.float64, out=sums[i : i + _CHUNK])
        return sums

    def path(self, sums: npt.NDArray[np.float64]) -> list[int]:
        """The path from the root to the best class, for one row of ``sums``.

        It is built upwards, to the parent with the highest sum; ties are resolved by wnid.
        """
        best = int(self.classes[np.argmax(sums[self.classes])])
        path = [best]
        while self.parents[path[-1]]:
            path.append(min(self.parents[path[-1]], key=lambda i: (-sums[i], self.nodes[i].wnid)))
        return path[::-1]

    def answer(self, sums: npt.NDArray[np.float64], confidence: float) -> int:
        """The node with the fewest classes whose sum reaches ``confidence``, for one row of ``sums``.

        Ties are resolved by the highest sum, the longest path from the root and the first wnid. The root always
        qualifies, even if a softmax in float32 sums to 0.9999999.
        """
        reached = np.flatnonzero(sums >= min(confidence, sums[0]))
        return int(min(reached, key=lambda i: (self._counts[i], -sums[i], -self._longest[i], self.nodes[i].wnid)))

    def covering(self, classes: npt.NDArray[np.int64]) -> int:
        """The most specific node that contains all of these class ids: the one with the fewest classes.

        Ties are resolved by the longest path from the root and the first wnid.
        """
        containing = np.flatnonzero(self.above[:, classes].all(axis=1))
        return int(min(containing, key=lambda i: (self._counts[i], -self._longest[i], self.nodes[i].wnid)))

    def placing(
        self,
        probabilities: npt.NDArray[np.floating],
        confidence: float = CONFIDENCE,
        classes: npt.NDArray[np.int64] | None = None,
    ) -> Placing:
        """The path and the answer for one image's probabilities [classes].

        With ``classes``, a prediction set, the answer is the most specific node that contains it.
        """
        [sums] = self.sums(probabilities[None])

        def scored(i: int) -> Scored:
            score = min(float(sums[i]), 1.0)  # softmax in float32 may sum to 1.0000001
            return Scored(self.nodes[i].wnid, self.nodes[i].label, score)

        answer = self.answer(sums, confidence) if classes is None else self.covering(classes)
        return Placing([scored(i) for i in self.path(sums)], scored(answer))

    def describe(self, wnid: str) -> dict[str, Any]:
        """A node with its gloss, parents, children and classes, for JSON. Raises KeyError for an unknown wnid."""
        i = self.index[wnid]

        def named(at: int) -> dict[str, str]:
            return {"wnid": self.nodes[at].wnid, "label": self.nodes[at].label}

        leaves = np.flatnonzero(self.above[i]).tolist()
        return named(i) | {
            "gloss": self.nodes[i].gloss,
            "parents": [named(parent) for parent in self.parents[i]],
            "children": [named(child) for child in self.children[i]],
            "leaves": [{"class_id": leaf} | named(self.classes[leaf]) for leaf in leaves],
        }


def answer_confidence(taxonomy: bool, confidence: float | None) -> float | None:
    """The confidence of the answer; None if no answer is requested. Raises ValueError."""
    if confidence is not None and not taxonomy:
        raise ValueError("confidence requires taxonomy, which adds the answer that it applies to")
    if confidence is not None and not MIN_CONFIDENCE < confidence <= MAX_CONFIDENCE:
        raise ValueError(
            f"confidence must be more than {MIN_CONFIDENCE:g} and at most {MAX_CONFIDENCE:g}, got {confidence:g}"
        )
    return (CONFIDENCE if confidence is None else confidence) if taxonomy else None


def of(labels: Sequence[Label]) -> Taxonomy | None:
    """The taxonomy of these classes, or None.

    Each class needs its own wnid, that of an ImageNet-1k class or of one of their ancestors, and no class may be an
    ancestor of another. For ImageNet-1k itself, the result is always the same object.
    """
    if tuple(labels) == imagenet1k():
        return _imagenet1k()
    classes = {label.wnid: label.label for label in labels if label.wnid}
    if not classes or len(classes) < len(labels):
        return None
    synsets = _synsets()
    if not classes.keys() <= synsets.keys():
        return None
    taxonomy = Taxonomy(classes, synsets)
    return None if taxonomy.above[taxonomy.classes].sum() > len(labels) else taxonomy


@dataclass(frozen=True, slots=True)
class _Synset:
    parents: tuple[str, ...]
    lemma: str
    gloss: str


@cache
def _imagenet1k() -> Taxonomy:
    return Taxonomy({str(label.wnid): label.label for label in imagenet1k()}, _synsets())


def _synsets() -> dict[str, _Synset]:
    text = (resources.files("app") / "imagenet" / "wordnet.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["wnid"]: _Synset(tuple(row["parents"].split()), row["lemma"], row["gloss"]) for row in rows}


def _longest_paths(wnids: Iterable[str], synsets: dict[str, _Synset]) -> dict[str, int]:
    """The lengths of the longest paths from the root, for these synsets and their ancestors."""
    found: dict[str, int] = {}

    def visit(wnid: str) -> int:
        if wnid not in found:
            found[wnid] = 1 + max(map(visit, synsets[wnid].parents), default=-1)
        return found[wnid]

    for wnid in wnids:
        visit(wnid)
    return found


def _inverted(parents: Positions) -> Positions:
    """The children of each node."""
    children: list[list[int]] = [[] for _ in parents]
    for child, above in enumerate(parents):
        for parent in above:
            children[parent].append(child)
    return tuple(map(tuple, children))
