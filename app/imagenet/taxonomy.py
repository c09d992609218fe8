"""WordNet over a model's labels: from a probability for each class to one for each thing that the classes are.

A dog is any of its breeds: a node's score is the sum over the classes at or below it, each counted once, however many
ways lead up from it. The tree (a directed acyclic graph, for WordNet allows several parents) is WordNet 3.0's; see
``imagenet/wordnet.py``.
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

_AT_ONCE = 256  # rows whose terms are in memory at once, 100 KB each


@dataclass(frozen=True, slots=True)
class Node:
    """A synset. ``label`` is the class's own, and above the classes WordNet's first word for it."""

    wnid: str
    label: str
    gloss: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A node for one image. ``score`` is the sum over the classes at or below it."""

    wnid: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Placing:
    """Where an image stands: the way to its best class from the root, and the most one can say with confidence."""

    taxonomy: list[Scored]
    answer: Scored


class Taxonomy:
    """The classes (wnid -> label, in the order of the model's outputs) and all that is above them.

    ``nodes`` come by their longest way from the root, then by wnid: parents before children, the root first. ``index``
    is each wnid's position there, ``parents`` and ``children`` are positions, ``depths`` [nodes] the fewest steps from
    the root. ``above`` [nodes, classes] says which classes lie at or below a node.
    """

    def __init__(self, labels: dict[str, str], synsets: "dict[str, _Synset]") -> None:
        longest = _longest_ways(labels, synsets)
        order = sorted(longest, key=lambda wnid: (longest[wnid], wnid))
        self.index = {wnid: i for i, wnid in enumerate(order)}
        self.nodes = tuple(Node(wnid, labels.get(wnid, synsets[wnid].lemma), synsets[wnid].gloss) for wnid in order)
        self.parents: Positions = tuple(tuple(self.index[p] for p in synsets[wnid].parents) for wnid in order)
        self.children = _turned(self.parents)
        self.classes = np.array([self.index[wnid] for wnid in labels])  # [classes], the position of each
        self.above = np.zeros((len(order), len(labels)), np.bool_)
        self.above[self.classes, np.arange(len(labels))] = True
        self.depths = np.zeros(len(order), np.int64)
        for i, parents in enumerate(self.parents[1:], 1):
            self.depths[i] = 1 + self.depths[list(parents)].min()
        for i, children in reversed(list(enumerate(self.children))):
            self.above[i] |= self.above[list(children)].any(axis=0)
        self._longest = [longest[wnid] for wnid in order]
        self._counts = self.above.sum(axis=1)
        self._below = np.nonzero(self.above)[1]  # the classes below the first node, those below the second, ...
        self._starts = np.cumsum(self._counts) - self._counts

    def sums(self, probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Of probabilities [n, classes] the sum over the classes at or below each node, [n, nodes].

        Nodes above the same classes have the same sum to the last bit.
        """
        sums = np.empty((len(probabilities), len(self.nodes)))
        for i in range(0, len(probabilities), _AT_ONCE):
            terms = probabilities[i : i + _AT_ONCE].take(self._below, axis=1)
            np.add.reduceat(terms, self._starts, axis=1, dtype=np.float64, out=sums[i : i + _AT_ONCE])
        return sums

    def path(self, sums: npt.NDArray[np.float64]) -> list[int]:
        """The way from the root to the best class, for one row of ``sums``.

        Going up from the class it is always the parent with the highest sum, ties by wnid.
        """
        best = int(self.classes[np.argmax(sums[self.classes])])
        path = [best]
        while self.parents[path[-1]]:
            path.append(min(self.parents[path[-1]], key=lambda i: (-sums[i], self.nodes[i].wnid)))
        return path[::-1]

    def answer(self, sums: npt.NDArray[np.float64], confidence: float) -> int:
        """The node with the fewest classes below it whose sum reaches ``confidence``, for one row of ``sums``.

        Of several it is the one with the highest sum, then the farthest from the root, then the first wnid. The root
        always reaches it: softmax in float32 may sum to 0.9999999.
        """
        reached = np.flatnonzero(sums >= min(confidence, sums[0]))
        return int(min(reached, key=lambda i: (self._counts[i], -sums[i], -self._longest[i], self.nodes[i].wnid)))

    def placing(self, probabilities: npt.NDArray[np.floating], confidence: float) -> Placing:
        """One image's ``path`` and ``answer`` by its probabilities [classes]."""
        [sums] = self.sums(probabilities[None])

        def scored(i: int) -> Scored:
            score = min(float(sums[i]), 1.0)  # softmax in float32 may sum to 1.0000001
            return Scored(self.nodes[i].wnid, self.nodes[i].label, score)

        return Placing([scored(i) for i in self.path(sums)], scored(self.answer(sums, confidence)))

    def describe(self, wnid: str) -> dict[str, Any]:
        """A node with its gloss, its parents, children and classes, as JSON has it. Raises KeyError."""
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
    """The taxonomy of these classes; None unless each has a wnid of its own that is known, and none is above another.

    Known are ImageNet-1k's classes and what is above them. For ImageNet-1k itself it is always the same object.
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


def _longest_ways(wnids: Iterable[str], synsets: dict[str, _Synset]) -> dict[str, int]:
    """The most steps from the root, for these and all that is above them."""
    found: dict[str, int] = {}

    def visit(wnid: str) -> int:
        if wnid not in found:
            found[wnid] = 1 + max(map(visit, synsets[wnid].parents), default=-1)
        return found[wnid]

    for wnid in wnids:
        visit(wnid)
    return found


def _turned(parents: Positions) -> Positions:
    """Children by parents, or parents by children."""
    turned: list[list[int]] = [[] for _ in parents]
    for i, ends in enumerate(parents):
        for end in ends:
            turned[end].append(i)
    return tuple(map(tuple, turned))
