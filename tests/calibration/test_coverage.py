"""Calibrate on some pictures, and measure the coverage on others of the same kind. No model has seen either."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from app.calibration import fit
from app.imagenet.labels import imagenet1k
from tests.calibration import splits
from tests.calibration.measured import Floats, Ints, measured
from tests.calibration.splits import Judged


def _hits(logits: Floats, truth: Ints, known: Ints, own: Ints, coverage: float) -> tuple[int, int]:
    """How many of ``own`` are covered by the sets of a calibration on ``known``, and their number."""
    fitted = fit.fit(logits[known], truth[known])
    rows = fit.softmax(logits[own], fitted.temperature)
    return sum(true in fitted.set(row, coverage) for row, true in zip(rows, truth[own], strict=True)), len(own)


def _includes(hits: int, n: int, coverage: float) -> bool:
    """Whether the exact 95 % interval (Clopper and Pearson 1934) includes it."""
    interval = binomtest(hits, n).proportion_ci(0.95, "exact")
    return bool(interval.low <= coverage <= interval.high)


@pytest.mark.parametrize("coverage", [0.9, 0.95])
def test_the_interval_on_other_digits_includes_the_coverage(coverage: float) -> None:
    """Scanned digits, by the nearest mean of the upper half of their pixels: right for three in four."""
    pixels, truth = load_digits(return_X_y=True)
    upper, order = pixels[:, :32], np.random.default_rng(0).permutation(len(truth))
    train, known, own = order[:500], order[500:1100], order[1100:]
    means = np.stack([upper[train][truth[train] == digit].mean(axis=0) for digit in range(10)])
    logits = -(((upper[:, None] - means) / 16) ** 2).sum(axis=2).astype(np.float32)
    assert _includes(*_hits(logits, truth, known, own, coverage), coverage)


@pytest.mark.shared
@pytest.mark.slow
class TestResNet50:
    """The shared ResNet-50 and the shared photographs."""

    @pytest.mark.parametrize("coverage", [0.9, 0.95])
    def test_the_coverage_of_fifty_halves_is_the_requested_one(self, coverage: float) -> None:
        judged = _judged(splits.regularised, coverage)
        assert judged.hits.mean() == pytest.approx(coverage, abs=0.015)
        assert judged.sizes.min() >= 1

    @pytest.mark.parametrize("coverage", [0.9, 0.95])
    def test_the_interval_on_the_other_half_includes_the_coverage(self, coverage: float) -> None:
        """Every second photograph: the classes are in turns."""
        found = measured()
        known, own = np.arange(0, 200, 2), np.arange(1, 200, 2)
        assert _includes(*_hits(found.photographs.logits, found.truth, known, own, coverage), coverage)

    def test_the_sets_are_small(self) -> None:
        """Not smaller than a plain threshold's, which have empty ones, but far from those without a penalty."""
        sizes = {name: _judged(method, 0.9).sizes.mean() for name, method in METHODS.items()}
        assert sizes["plain"] < sizes["topk"] < sizes["plain"] + 0.3
        assert sizes["topk"] < sizes["aps"] < sizes["unregularised"]

    def test_no_set_is_large(self) -> None:
        """None has a tenth of all classes."""
        assert _judged(splits.regularised, 0.95).sizes.max() < len(imagenet1k()) / 10


METHODS: dict[str, splits.Method] = {
    "topk": splits.regularised,
    "plain": splits.plain_threshold,
    "aps": splits.mapie_aps,
    "unregularised": splits.unregularised,
}


def _judged(method: splits.Method, coverage: float) -> Judged:
    found = measured()
    return splits.judge(method, found.photographs.logits, found.truth, coverage)
