"""Accuracy by WordNet level: how often the prediction is at least a dog, at least an animal. Needs only numpy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.commands.evaluate.intervals import Interval, wilson
from app.imagenet import taxonomy
from app.imagenet.labels import Label
from app.imagenet.taxonomy import Taxonomy

SELECTED = 16
_SIMILAR = 0.6
_CHUNK = 4096  # pairs of truth and prediction, 2 KB each

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Level:
    """A node of WordNet that has at least two of the true classes at or below it.

    The truth of ``n`` images is below the node. ``exact`` is the share of them whose prediction is the true class,
    ``accuracy`` the share whose prediction is below the node too. ``indent`` counts the selected nodes above this one;
    it is None if the node itself is not selected (see ``_selected``).
    """

    wnid: str
    label: str
    depth: int
    classes: int
    n: int
    exact: float
    accuracy: float
    interval: Interval
    indent: int | None


class Levels(NamedTuple):
    """``nodes`` begins with the selected nodes, in tree order.

    ``depths[d]`` is the share of images that are right at depth ``d``: the prediction is the true class, or shares
    with it a node ``d`` or more steps from the root. It falls from 1 to the top-1 accuracy.
    """

    nodes: tuple[Level, ...] = ()
    depths: tuple[float, ...] = ()


class _Counted(NamedTuple):
    """Counts by node: images below, exact predictions, predictions below the node, and true classes."""

    images: Ints
    exact: Ints
    right: Ints
    classes: Ints


def levels(truth: Ints, answers: Ints, labels: Sequence[Label]) -> Levels:
    """The levels for class ids [n]. Empty unless all labels are in WordNet."""
    tree = taxonomy.of(labels)
    if tree is None:
        return Levels()
    pairs, times = np.unique(np.stack([truth, answers]), axis=1, return_counts=True)
    right = np.zeros(len(tree.nodes), np.int64)
    common = np.empty(len(times), np.int64)
    for i in range(0, len(times), _CHUNK):
        part = slice(i, i + _CHUNK)
        both = tree.above[:, pairs[0, part]] & tree.above[:, pairs[1, part]]
        right += both @ times[part]
        common[part] = np.where(both, tree.depths[:, None], 0).max(axis=0)
    same = pairs[0] == pairs[1]
    images = np.bincount(truth, minlength=len(labels))
    exact = np.bincount(pairs[0, same], times[same], len(labels)).astype(np.int64)
    above = tree.above.astype(np.int64)
    counted = _Counted(above @ images, above @ exact, right, above @ (images > 0))
    deepest = int(tree.depths[counted.images > 0].max())
    common[same] = deepest
    depths = tuple(float(times[common >= d].sum() / times.sum()) for d in range(deepest + 1))
    return Levels(tuple(_nodes(tree, counted, images)), depths)


def _nodes(tree: Taxonomy, counted: _Counted, images: Ints) -> Iterator[Level]:
    several = np.flatnonzero(counted.classes >= 2).tolist()
    selected = _as_tree(tree, _selected(tree, several, images), counted.images)
    for i in (*selected, *(i for i in several if i not in selected)):
        n, right = int(counted.images[i]), int(counted.right[i])
        yield Level(
            wnid=tree.nodes[i].wnid,
            label=tree.nodes[i].label,
            depth=int(tree.depths[i]),
            classes=int(counted.classes[i]),
            n=n,
            exact=int(counted.exact[i]) / n,
            accuracy=right / n,
            interval=wilson(right, n),
            indent=selected.get(i),
        )


def _selected(tree: Taxonomy, nodes: Sequence[int], images: Ints) -> list[int]:
    """The nodes with the most images. Of similar nodes, only the one with the shortest name.

    Short names are the common ones (Zipf 1935): dog rather than canine or carnivore. Two nodes are similar if they
    share more than 60 % of the images that either has. Nodes with more than 60 % of the model's classes are omitted,
    because almost any prediction is right there.
    """
    names = [len(node.label) for node in tree.nodes]
    few = np.array([i for i in nodes if tree.above[i].mean() <= _SIMILAR], dtype=np.int64)
    few = few[np.argsort([names[i] for i in few], kind="stable")]
    below = tree.above[few].astype(np.float64)
    shared = (below * images) @ below.T
    alike = shared > _SIMILAR * (shared.diagonal()[:, None] + shared.diagonal() - shared)
    kept: list[int] = []
    for i in range(len(few)):
        if not alike[i, kept].any():
            kept.append(i)
    return sorted(few[kept].tolist(), key=lambda i: -int(images[tree.above[i]].sum()))[:SELECTED]


def _as_tree(tree: Taxonomy, nodes: Sequence[int], images: Ints) -> dict[int, int]:
    """The same nodes in tree order, each below the smallest node that contains it, with its indent."""
    over = {i: [j for j in nodes if j != i and not (tree.above[i] & ~tree.above[j]).any()] for i in nodes}
    parent = {i: min(over[i], key=lambda j: int(images[j]), default=None) for i in nodes}
    found: dict[int, int] = {}

    def place(above: int | None, indent: int) -> None:
        for i in nodes:
            if parent[i] == above:
                found[i] = indent
                place(i, indent + 1)

    place(None, 0)
    return found
