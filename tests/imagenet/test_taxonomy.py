import csv
import math
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from app.imagenet import taxonomy, wordnet
from app.imagenet.labels import Label, imagenet1k
from app.imagenet.taxonomy import Taxonomy
from tests.conftest import REPOSITORY

DATABASE = pytest.mark.skipif(not wordnet.DATABASE.is_file(), reason="Debian's wordnet-base is not installed")
DOGS = range(151, 269)


@pytest.fixture(scope="module")
def tree() -> Taxonomy:
    tree = taxonomy.of(imagenet1k())
    assert tree
    return tree


@pytest.fixture(scope="module")
def hypernyms() -> dict[str, list[str]]:
    """Wnid -> its parents, as the data file has them."""
    with wordnet.TREE.open(encoding="utf-8") as file:
        return {row["wnid"]: row["parents"].split() for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def database() -> bytes:
    return wordnet.DATABASE.read_bytes()


def scores(n: int, spread: float = 0.05) -> np.ndarray:
    """Rows of probabilities, as uneven as a network's."""
    return np.random.default_rng(0).dirichlet(np.full(1000, spread), n).astype(np.float32)


def made(**shares: float) -> np.ndarray:
    """One row: each label has its share, all other classes the same part of what is left."""
    row = np.full(1000, (1 - sum(shares.values())) / (1000 - len(shares)))
    for i, label in enumerate(imagenet1k()):
        row[i] = shares.get(label.label.replace(" ", "_"), row[i])
    return row.astype(np.float32)


def above(wnid: str, hypernyms: dict[str, list[str]]) -> set[str]:
    """The slow way up: everything that a walk along the hypernyms meets."""
    met = {wnid}
    for parent in hypernyms[wnid]:
        met |= above(parent, hypernyms)
    return met


def test_there_are_1000_leaves_one_root_and_no_cycle(tree: Taxonomy) -> None:
    leaves = [node.wnid for node, children in zip(tree.nodes, tree.children, strict=True) if not children]
    assert sorted(leaves) == sorted(str(label.wnid) for label in imagenet1k())
    assert [node.wnid for node, parents in zip(tree.nodes, tree.parents, strict=True) if not parents] == ["n00001740"]
    assert tree.nodes[0].label == "entity"
    assert all(parent < i for i, parents in enumerate(tree.parents) for parent in parents)  # so a cycle cannot be


def test_every_sum_is_that_of_a_slow_walk_along_the_hypernyms(tree: Taxonomy, hypernyms: dict[str, list[str]]) -> None:
    rows = scores(3)
    expected = {node.wnid: [[] for _ in rows] for node in tree.nodes}
    for i, label in enumerate(imagenet1k()):
        for wnid in above(str(label.wnid), hypernyms):
            for terms, row in zip(expected[wnid], rows, strict=True):
                terms.append(float(row[i]))
    assert len(expected) == len(hypernyms) == 1860
    for terms, row in zip(zip(*expected.values(), strict=True), tree.sums(rows), strict=True):
        np.testing.assert_allclose(row, [math.fsum(part) for part in terms], rtol=1e-12)


def test_a_class_with_several_ways_up_is_counted_once(tree: Taxonomy, hypernyms: dict[str, list[str]]) -> None:
    @cache
    def ways(wnid: str) -> int:
        return sum(map(ways, hypernyms[wnid])) or 1

    several = [i for i, label in enumerate(imagenet1k()) if ways(str(label.wnid)) > 1]
    assert len(several) == 304
    for row in tree.sums(np.eye(1000, dtype=np.float32)[several]):
        assert set(row) == {0.0, 1.0}


def test_a_node_s_sum_is_the_same_in_any_batch_and_that_of_a_node_with_the_same_classes(tree: Taxonomy) -> None:
    rows = scores(600)
    sums = tree.sums(rows)
    np.testing.assert_allclose(sums[599:], tree.sums(rows[599:]), rtol=1e-12)
    _, same = np.unique(tree.above, axis=0, return_inverse=True)
    for i in (0, 599):
        assert len(set(zip(same.ravel(), sums[i], strict=True))) == same.max() + 1 < len(tree.nodes)


def test_the_depth_is_that_of_the_shortest_way(tree: Taxonomy) -> None:
    assert tree.depths[0] == 0
    for i, parents in enumerate(tree.parents[1:], 1):
        assert tree.depths[i] == 1 + min(tree.depths[parent] for parent in parents)
    assert [tree.depths[tree.index[wnid]] for wnid in ("n00001930", "n02084071", "n02111889")] == [1, 8, 10]


def test_parents_and_children_are_each_other_s_reverse(tree: Taxonomy) -> None:
    up = {(parent, i) for i, parents in enumerate(tree.parents) for parent in parents}
    assert up == {(i, child) for i, children in enumerate(tree.children) for child in children}


def test_the_path_goes_up_by_the_highest_sum_then_by_wnid(tree: Taxonomy) -> None:
    rows = np.concatenate([scores(50), np.eye(1000, dtype=np.float32)])  # a sure model's parents are all tied
    for row, sums in zip(rows, tree.sums(rows), strict=True):
        path = tree.path(sums)
        assert path[0] == 0
        assert path[-1] == tree.index[str(imagenet1k()[int(row.argmax())].wnid)]
        for parent, child in pairwise(path):
            among = sorted((-sums[i], tree.nodes[i].wnid) for i in tree.parents[child])
            assert (-sums[parent], tree.nodes[parent].wnid) == among[0]


@pytest.mark.parametrize("confidence", [1e-9, 0.1, 0.5, 0.9, 0.999, 1])
def test_no_node_with_fewer_classes_than_the_answer_reaches_the_confidence(tree: Taxonomy, confidence: float) -> None:
    for sums in tree.sums(scores(50, 0.01)):
        answer = tree.answer(sums, confidence)
        reached = min(confidence, sums[0])
        assert sums[answer] >= reached
        fewer = tree.above.sum(axis=1) < tree.above[answer].sum()
        assert not (sums[fewer] >= reached).any()


def test_a_model_that_hesitates_between_twenty_breeds_answers_dog(tree: Taxonomy) -> None:
    row = np.full(1000, 0.03 / 980)
    row[list(DOGS)[::6]] = 0.97 / 20
    [sums] = tree.sums(row[None])
    assert tree.nodes[tree.answer(sums, 0.9)].label == "dog"
    assert tree.nodes[tree.answer(sums, 0.99)].label not in ("dog", "entity")
    assert sums[tree.index["n02084071"]] == pytest.approx(0.97, abs=0.005)


def test_a_model_that_is_sure_answers_with_the_class_itself_not_what_has_it_alone(tree: Taxonomy) -> None:
    only = next(i for i, children in enumerate(tree.children) if len(children) == 1 and not tree.children[children[0]])
    [sums] = tree.sums(tree.above[only].astype(np.float32)[None])
    assert tree.answer(sums, 0.9) == tree.children[only][0]


def test_the_answer_need_not_lie_on_the_path(tree: Taxonomy) -> None:
    [sums] = tree.sums(made(sports_car=0.3, Samoyed=0.24, beagle=0.24, chow=0.2)[None])
    assert tree.nodes[tree.path(sums)[-1]].label == "sports car"
    assert tree.nodes[tree.answer(sums, 0.6)].label == "dog"


def test_the_root_always_reaches_the_confidence(tree: Taxonomy) -> None:
    row = np.full(1000, np.float32(0.00099999))
    assert tree.answer(tree.sums(row[None])[0], 1.0) == 0


def test_no_score_is_more_than_one_though_rounding_makes_it_so(tree: Taxonomy) -> None:
    row = np.full(1000, np.float32(0.001000001))
    assert tree.sums(row[None])[0, 0] > 1
    assert tree.placing(row, 0.9).taxonomy[0].score == 1


def test_what_covers_a_set_is_what_a_slow_walk_finds(tree: Taxonomy, hypernyms: dict[str, list[str]]) -> None:
    """The node with the fewest classes of those above all of the set; of equals, the furthest from the root."""
    counts = Counter(node for label in imagenet1k() for node in above(str(label.wnid), hypernyms))

    @cache
    def longest(wnid: str) -> int:
        return 1 + max(map(longest, hypernyms[wnid]), default=0)

    random = np.random.default_rng(0)
    for _ in range(60):
        near = random.integers(990) + random.choice(10, random.integers(1, 6), replace=False)
        common = set.intersection(*(above(str(imagenet1k()[i].wnid), hypernyms) for i in near))
        expected = min(common, key=lambda wnid: (counts[wnid], -longest(wnid), wnid))
        assert tree.nodes[tree.covering(near)].wnid == expected


def test_what_covers_a_class_is_the_class_and_what_covers_all_has_all(tree: Taxonomy) -> None:
    assert [tree.covering(np.array([i])) for i in range(1000)] == [
        tree.index[str(label.wnid)] for label in imagenet1k()
    ]
    assert tree.above[tree.covering(np.arange(1000))].all()
    assert tree.nodes[tree.covering(np.array(DOGS))].label == "dog"


def test_a_larger_set_is_covered_by_a_node_with_at_least_as_many_classes(tree: Taxonomy) -> None:
    order = np.random.default_rng(1).permutation(1000)
    sizes = [tree.above[tree.covering(order[:n])].sum() for n in range(1, 30)]
    assert sizes == sorted(sizes)


def test_the_answer_for_a_set_does_not_depend_on_the_confidence(tree: Taxonomy) -> None:
    row, both = made(Samoyed=0.5, chow=0.4), np.array([258, 260])
    placings = [tree.placing(row, confidence, both) for confidence in (0.1, 0.9)]
    assert placings[0].answer == placings[1].answer
    assert (placings[0].answer.label, placings[0].taxonomy) == ("spitz", tree.placing(row).taxonomy)
    assert placings[0].answer.score == pytest.approx(0.9, abs=0.01)


def test_of_nodes_with_the_same_classes_the_furthest_from_the_root_covers_them() -> None:
    pets = taxonomy.of([Label("cat", "n02121808"), Label("dog", "n02084071")])
    assert pets
    assert [pets.nodes[pets.covering(np.array(some))].label for some in ([0], [1])] == ["cat", "dog"]
    assert pets.nodes[pets.covering(np.array([0, 1]))].label == "carnivore"  # "domestic animal" has the same two


def test_imagenet_s_is_read_once(tree: Taxonomy) -> None:
    assert taxonomy.of([Label(label.label, label.wnid) for label in imagenet1k()]) is tree


def test_labels_may_come_in_any_order_and_number(tree: Taxonomy) -> None:
    order = np.random.default_rng(0).permutation(1000)[:100]
    some = taxonomy.of([imagenet1k()[i] for i in order])
    assert some
    row = scores(1)[:, order]
    whole = np.zeros((1, 1000), np.float32)
    whole[:, order] = row
    at = [tree.index[node.wnid] for node in some.nodes]
    np.testing.assert_allclose(some.sums(row), tree.sums(whole)[:, at], rtol=1e-12)
    assert [some.nodes[i].label for i in some.classes] == [imagenet1k()[i].label for i in order]


def test_classes_may_be_what_is_above_imagenet_s() -> None:
    pets = taxonomy.of([Label("cat", "n02121808"), Label("my dog", "n02084071")])
    assert pets
    assert [pets.nodes[i].label for i in pets.classes] == ["cat", "my dog"]
    assert [pets.nodes[i].label for i in pets.path(pets.sums(np.array([[0.2, 0.8]]))[0])][-2:] == [
        "domestic animal",
        "my dog",
    ]


@pytest.mark.parametrize(
    "labels",
    [
        [],
        [Label("Samoyed", "n02111889"), Label("mine")],
        [Label("Samoyed", "n02111889"), Label("unknown", "n99999999")],
        [Label("Samoyed", "n02111889"), Label("again", "n02111889")],
        [Label("Samoyed", "n02111889"), Label("dog", "n02084071")],
    ],
)
def test_labels_that_wordnet_cannot_tell_apart_have_no_taxonomy(labels: list[Label]) -> None:
    assert taxonomy.of(labels) is None


@DATABASE
def test_the_hypernyms_are_wordnet_s_own(tree: Taxonomy, database: bytes) -> None:
    """Found by pattern in the lines of ``data.noun``, not by the code that made the file."""
    lines = {f"n{line[:8]}": line for line in database.decode().splitlines() if line[:8].isdigit()}
    for node, parents, children in zip(tree.nodes, tree.parents, tree.children, strict=True):
        pointers, _, gloss = lines[node.wnid].partition(" | ")
        words = pointers.split(" ")
        found = [f"n{words[i + 1]}" for i, word in enumerate(words) if word == "@" and words[i + 2] == "n"]
        assert found == [tree.nodes[parent].wnid for parent in parents]
        assert "@i" not in words
        assert node.gloss == gloss.strip()
        assert not children or node.label == words[4].replace("_", " ")


@DATABASE
def test_the_data_file_is_what_its_script_makes(database: bytes) -> None:
    synsets = wordnet.closure(database, [str(label.wnid) for label in imagenet1k()])
    assert wordnet.TREE.read_text(encoding="utf-8") == wordnet.table(synsets)
    assert wordnet.LICENSE.read_text(encoding="utf-8") == wordnet.license_text(database)


@DATABASE
def test_another_version_of_wordnet_is_refused(database: bytes) -> None:
    with pytest.raises(ValueError, match=r"not WordNet 3\.0"):
        wordnet.read(database[1:], "n00001740")


def test_wordnet_s_licence_goes_where_its_data_goes() -> None:
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in wordnet.LICENSE.read_text()
    assert (REPOSITORY / "pyproject.toml").read_text().count("app/imagenet/wordnet.LICENSE") == 1
