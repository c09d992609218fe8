"""Figures against what is counted by hand, or slowly."""

from collections import Counter

import numpy as np
import pytest

from app.commands.evaluate.intervals import wilson
from app.commands.evaluate.metrics import AccuracyMetrics, Outcomes, calibration, score
from app.imagenet.labels import Label

LABELS = tuple(Label(name) for name in "abcdefg")


def made(n: int = 400, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, classes], better than chance, and the truth [n]."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth]
    exponential = np.exp(logits)
    return (exponential / exponential.sum(axis=1, keepdims=True)).astype(np.float32), truth


def slow_ece(scores: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for i in range(15):
        inside = [j for j, s in enumerate(scores) if i / 15 < s <= (i + 1) / 15]
        if inside:
            accuracy = sum(right[j] for j in inside) / len(inside)
            confidence = sum(float(scores[j]) for j in inside) / len(inside)
            total += len(inside) / len(scores) * abs(accuracy - confidence)
    return total


def measure(probabilities: np.ndarray, truth: np.ndarray, labels: tuple[Label, ...]) -> AccuracyMetrics:
    """The figures of whole rows [n, classes]."""
    answers = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    return score(Outcomes(truth, answers, np.take_along_axis(probabilities, answers, axis=1)), labels)


@pytest.fixture(scope="module")
def metrics() -> AccuracyMetrics:
    return measure(*made(), LABELS)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Newcombe 1998, table I, and by hand
        (1, 29, 0.0061, 0.1718),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=6e-5)


def test_accuracy_is_counted(metrics: AccuracyMetrics) -> None:
    rows, truth = made()
    ranks = [sorted(range(7), key=lambda c: -row[c]) for row in rows]
    assert metrics.top1 == np.mean([rank[0] == t for rank, t in zip(ranks, truth, strict=True)])
    assert metrics.top5 == np.mean([t in rank[:5] for rank, t in zip(ranks, truth, strict=True)])
    assert (metrics.n, metrics.classes, metrics.k) == (400, 7, 5)
    assert metrics.top1_interval == wilson(round(metrics.top1 * 400), 400)


def test_classes_come_worst_first_with_their_own_counts(metrics: AccuracyMetrics) -> None:
    rows, truth = made()
    answers = rows.argmax(axis=1)
    assert sum(row.n for row in metrics.per_class) == 400
    for row in metrics.per_class:
        mine = truth == row.class_id
        assert (row.label, row.n) == (LABELS[row.class_id].label, mine.sum())
        assert row.accuracy == (answers[mine] == row.class_id).mean()
        assert row.answered == (answers == row.class_id).sum()
    assert [row.accuracy for row in metrics.per_class] == sorted(row.accuracy for row in metrics.per_class)


def test_confused_pairs_are_counted_most_often_first(metrics: AccuracyMetrics) -> None:
    rows, truth = made()
    wrong = Counter((t, a) for t, a in zip(truth.tolist(), rows.argmax(axis=1).tolist(), strict=True) if t != a)
    found = {(pair.truth, pair.answer): pair.n for pair in metrics.confused}
    assert found == {(LABELS[t].label, LABELS[a].label): n for (t, a), n in wrong.items()}
    assert [pair.n for pair in metrics.confused] == sorted(found.values(), reverse=True)
    first = metrics.confused[0]
    assert first.share == first.n / (truth == "abcdefg".index(first.truth)).sum()


def test_the_calibration_error_is_that_of_fifteen_bins(metrics: AccuracyMetrics) -> None:
    rows, truth = made()
    scores, right = rows.max(axis=1), rows.argmax(axis=1) == truth
    assert metrics.ece == pytest.approx(slow_ece(scores, right), abs=1e-7)
    assert metrics.confidence == pytest.approx(float(scores.mean()), abs=1e-6)


def test_a_bin_holds_its_upper_edge() -> None:
    bins = calibration(np.array([0.2, 1.0, 0.95], np.float32), np.array([True, False, True]))
    assert [(i, one.n) for i, one in enumerate(bins) if one.n] == [(3, 1), (14, 2)]  # 0.2 in float32 is a bit more
    assert bins[14].accuracy == 0.5
    assert bins[14].confidence == pytest.approx(0.975)


def test_two_classes_have_a_top_2() -> None:
    found = measure(np.array([[0.9, 0.1], [0.2, 0.8]], np.float32), np.array([0, 0]), LABELS[:2])
    assert (found.k, found.top1, found.top5) == (2, 0.5, 1.0)
    assert found.ece == pytest.approx(0.45)
    assert (found.levels, found.depths) == ((), ())


def test_one_class_alone_is_no_reason_to_fail() -> None:
    found = measure(np.ones((1, 1), np.float32), np.array([0]), LABELS[:1])
    assert (found.k, found.top1, found.confused) == (1, 1.0, ())


def test_the_first_of_equal_scores_is_the_answer() -> None:
    found = measure(np.full((3, 7), 1 / 7, np.float32), np.array([0, 4, 5]), LABELS)
    assert (found.top1, found.top5) == (1 / 3, 2 / 3)


def test_as_json_it_has_n_and_fractions(metrics: AccuracyMetrics) -> None:
    found = metrics.as_dict()
    assert (found["n"], found["top1"], found["top5"]) == (400, metrics.top1, metrics.top5)
    assert found["per_class"][0]["label"] == metrics.per_class[0].label
