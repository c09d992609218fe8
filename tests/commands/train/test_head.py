"""The linear head against scikit-learn's own pipeline on the raw features."""

import sys

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.commands.train import head
from app.commands.train.head import GRID, Head, fit
from app.errors import TrainingError


def blobs(n: int, dim: int, classes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Features of very different scales, one of which never varies."""
    random = np.random.default_rng(0)
    class_ids = np.arange(n) % classes
    centres = random.normal(size=(classes, dim))
    features = (centres[class_ids] + 2 * random.normal(size=(n, dim))) * np.logspace(-2, 2, dim) + 5
    features[:, 1] = 7.0
    return features.astype(np.float32), class_ids


def probabilities(found: Head, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    logits = features.astype(np.float64) @ found.weight.T + found.bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "dim"), [(40, 64), (200, 16)], ids=["fewer images", "more images"])
def test_it_is_the_regularised_solution(n: int, dim: int, classes: int) -> None:
    features, class_ids = blobs(n, dim, classes)
    found = fit(features, class_ids, 0, lambda _: None)
    assert found.weight.shape == (classes, dim)
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=found.c, tol=1e-8, max_iter=10_000))
    expected.fit(features.astype(np.float64), class_ids)
    assert np.allclose(probabilities(found, features), expected.predict_proba(features), atol=5e-3)


def test_the_strength_with_the_least_loss_on_unseen_images_is_chosen() -> None:
    found = fit(*blobs(200, 16, 4), 0, lambda _: None)
    assert found.loss == min(found.losses.values()) < np.log(4)
    assert found.c in GRID


@pytest.mark.slow
def test_strengths_are_judged_by_solved_problems() -> None:
    """Where there are many classes a gradient is small long before it is none."""
    features, class_ids = blobs(300, 64, 30)
    found = fit(features, class_ids, 0, lambda _: None)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for c in (0.01, 0.1, found.c):
        solved = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
        scores = cross_val_score(solved, standard, class_ids, cv=folds, scoring="neg_log_loss")
        assert found.losses[c] == pytest.approx(-scores.mean(), rel=0.01)


def test_of_many_images_some_folds_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    loss = head._loss
    monkeypatch.setattr(head, "_VALIDATION_IMAGES", 70)
    monkeypatch.setattr(head, "_loss", lambda *given: judged.append(len(given[-1])) or loss(*given))
    found = fit(*blobs(200, 16, 4), 0, lambda _: None)
    assert judged == [40, 40] * len(found.losses)


def test_noise_is_regularised_away() -> None:
    random = np.random.default_rng(0)
    found = fit(random.normal(size=(60, 30)).astype(np.float32), np.arange(60) % 3, 0, lambda _: None)
    assert found.c <= GRID[2]
    assert len(found.losses) < len(GRID)


def test_the_same_seed_gives_the_same_head() -> None:
    first, second = (fit(*blobs(60, 80, 3), 3, lambda _: None) for _ in range(2))
    assert np.array_equal(first.weight, second.weight)
    assert np.array_equal(first.bias, second.bias)


def test_of_very_many_images_enough_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_MAX_IMAGES", 50)
    features, class_ids = blobs(200, 16, 4)
    some = head._subset(features.astype(np.float64), class_ids, 0)
    assert np.bincount(some[1]).tolist() == [12] * 4
    assert fit(features, class_ids, 0, lambda _: None).weight.shape == (4, 16)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(TrainingError, match=r"needs scikit-learn; run: pip install '\.\[train\]'"):
        head.require()
