"""Accuracy by WordNet level against a slow reference that walks the tree."""

import numpy as np
import pytest

from app.commands.evaluate.levels import SELECTED, Levels, levels
from app.imagenet import taxonomy
from app.imagenet.labels import Label, imagenet1k

LABELS = imagenet1k()
IDS = {label.label: i for i, label in enumerate(LABELS)}


def of(*pairs: tuple[str, str]) -> Levels:
    """Of (truth, answer), by label."""
    truth, answers = (np.array([IDS[name] for name in names]) for names in zip(*pairs, strict=True))
    return levels(truth, answers, LABELS)


def over(class_id: int) -> set[int]:
    """Every node above a class and its own, by walking up."""
    tree = taxonomy.of(LABELS)
    assert tree
    found, waiting = set[int](), [tree.index[str(LABELS[class_id].wnid)]]
    while waiting:
        node = waiting.pop()
        found.add(node)
        waiting += tree.parents[node]
    return found


@pytest.fixture(scope="module")
def found() -> tuple[np.ndarray, np.ndarray, Levels]:
    random = np.random.default_rng(1)
    truth = random.integers(0, 400, 500)
    near = np.clip(truth + random.integers(-20, 20, 500), 0, 999)
    answers = np.where(random.random(500) < 0.6, truth, near)
    return truth, answers, levels(truth, answers, LABELS)


def test_each_node_is_counted_as_a_walk_through_the_tree_counts(found: tuple[np.ndarray, np.ndarray, Levels]) -> None:
    truth, answers, result = found
    tree = taxonomy.of(LABELS)
    assert tree
    ways = {i: over(i) for i in {*truth.tolist(), *answers.tolist()}}
    pairs = list(zip(truth.tolist(), answers.tolist(), strict=True))
    expected = {}
    for node in range(len(tree.nodes)):
        below = [(t, a) for t, a in pairs if node in ways[t]]
        if len({t for t, _ in below}) >= 2:
            right = sum(node in ways[a] for _, a in below)
            expected[tree.nodes[node].wnid] = (len(below), right, sum(t == a for t, a in below))
    assert {
        level.wnid: (level.n, round(level.accuracy * level.n), round(level.exact * level.n)) for level in result.nodes
    } == expected


def test_the_curve_is_what_a_walk_through_the_tree_finds(found: tuple[np.ndarray, np.ndarray, Levels]) -> None:
    truth, answers, result = found
    tree = taxonomy.of(LABELS)
    assert tree
    for depth, share in enumerate(result.depths):
        right = [
            t == a or any(tree.depths[node] >= depth for node in over(t) & over(a))
            for t, a in zip(truth.tolist(), answers.tolist(), strict=True)
        ]
        assert share == np.mean(right)
    assert result.depths[0] == 1
    assert result.depths[-1] == (truth == answers).mean()
    assert sorted(result.depths, reverse=True) == list(result.depths)


def test_a_wrong_breed_is_right_as_a_dog_and_a_skunk_only_as_a_mammal() -> None:
    result = of(
        ("Irish wolfhound", "Scottish deerhound"),
        ("Shetland sheepdog", "skunk"),
        ("goldfish", "goldfish"),
        ("robin", "jay"),
        ("moped", "minivan"),
        ("teapot", "coffeepot"),
    )
    by_label = {level.label: level for level in result.nodes}
    assert (by_label["dog"].n, by_label["dog"].exact, by_label["dog"].accuracy) == (2, 0.0, 0.5)
    assert by_label["animal"].accuracy == by_label["artifact"].accuracy == 1.0
    assert by_label["animal"].exact == 0.25
    assert "bird" not in by_label  # one class alone


def test_the_shown_nodes_are_a_tree_of_the_common_names() -> None:
    every = np.arange(1000)
    result = levels(every, every, LABELS)
    shown = [level for level in result.nodes if level.indent is not None]
    assert shown == list(result.nodes[:SELECTED])
    names = [level.label for level in shown]
    assert {"artifact", "animal", "mammal", "dog", "bird", "vehicle"} <= set(names)
    assert not {"entity", "canine", "carnivore", "vertebrate"} & set(names)
    indents = dict(zip(names, (level.indent for level in shown), strict=True))
    assert (indents["animal"], indents["mammal"], indents["dog"]) == (0, 1, 2)
    assert names.index("animal") < names.index("mammal") < names.index("dog")


def test_where_all_are_dogs_dog_is_shown_all_the_same() -> None:
    result = of(("Irish wolfhound", "Scottish deerhound"), ("Shetland sheepdog", "skunk"))
    assert "dog" in [level.label for level in result.nodes if level.indent is not None]


def test_a_depth_may_be_below_the_class_itself() -> None:
    """A tabby is few steps from the root by way of the domestic animals, but as a cat it is many."""
    result = of(("tabby", "Egyptian cat"), ("Egyptian cat", "Egyptian cat"))
    assert max(level.depth for level in result.nodes) < len(result.depths)


def test_labels_outside_wordnet_have_no_levels() -> None:
    assert levels(np.array([0]), np.array([1]), (Label("cat"), Label("dog"))) == Levels()
