"""The figures of docs/trust.md, as Markdown: ``python -m tests.calibration.figures [MODEL]``.

Needs ../shared and the packages of ``.[test]``. MODEL is ``resnet50`` by default.
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np

from app.calibration import conformal, fit
from app.commands.calibrate import figures as cross_fitted
from app.imagenet import taxonomy
from app.imagenet.labels import imagenet1k
from tests.calibration import splits
from tests.calibration.measured import Floats, Ints, Measured, Rows, measured

COVERAGES = (0.9, 0.95)
UNKNOWN = 0.05
METHODS: dict[str, splits.Method] = {
    "topk": splits.regularised,
    "plain threshold on the score (MAPIE's LAC)": splits.plain_threshold,
    "MAPIE's APS": splits.mapie_aps,
    "without regularisation": splits.unregularised,
}
BRANCHES = {
    "dog": "n02084071",
    "bird": "n01503061",
    "other animal": "n00015388",
    "vehicle": "n04524313",
    "other instrumentality": "n03575240",
    "other artifact": "n00021939",
}
"""The first branch above a class counts; "other" has those below none."""

NEAREST = 10


def main(model: str) -> None:
    """Print all tables."""
    found = measured(model)
    for title, lines in (
        ("Calibration error, cross-fitted in 5 parts", calibration_error(found)),
        ("Sets of the other half, 50 random halves", coverage(found)),
        (f"Mean set size by branch, the same halves, coverage {COVERAGES[0]:g} and {COVERAGES[1]:g}", branches(found)),
        ("AUROC of photographs against generated pictures, the same halves", separation(found)),
        (f"Share with a p-value of at most {UNKNOWN:g}, the same halves", flagged(found)),
    ):
        print(f"\n{title}\n")
        print("\n".join(lines))


def calibration_error(found: Measured) -> Iterable[str]:
    """One line."""
    logits = found.photographs.logits
    one = cross_fitted.measure(logits, found.truth)
    fitted = fit.fit(logits, found.truth)
    yield (
        f"top-1 {one.accuracy:.1%}; temperature {fitted.temperature:.3f}; {fitted.regularisation};"
        f" ECE {one.ece_before:.1%} -> {one.ece_after:.1%}"
    )


def coverage(found: Measured) -> Iterable[str]:
    """The coverage and the mean set size of each method."""
    titles = [f"{name} at {c:g}" for c in COVERAGES for name in ("covered", "classes", "empty")]
    yield from _head("Method", titles)
    for name, method in METHODS.items():
        judged = [splits.judge(method, found.photographs.logits, found.truth, c) for c in COVERAGES]
        cells = [(f"{j.hits.mean():.1%}", f"{j.sizes.mean():.2f}", f"{(j.sizes == 0).mean():.1%}") for j in judged]
        yield _row(name, [cell for three in cells for cell in three])


def branches(found: Measured) -> Iterable[str]:
    """The mean set size and the coverage by branch of WordNet."""
    names = branch_of(found.truth)
    judged = [splits.judge(splits.regularised, found.photographs.logits, found.truth, c) for c in COVERAGES]
    yield from _head("Branch", ["photographs", *(f"{n} at {c:g}" for c in COVERAGES for n in ("classes", "covered"))])
    for name in [*BRANCHES, "other"]:
        cells = [str((names == name).sum())]
        for one in judged:
            mine = names[one.positions] == name
            cells += [f"{one.sizes[mine].mean():.2f}", f"{one.hits[mine].mean():.0%}"]
        yield _row(name, cells)


def branch_of(truth: Ints) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    """The name of the branch of each class."""
    tree = taxonomy.of(imagenet1k())
    assert tree
    below = {name: np.asarray(tree.above[tree.index[wnid]], bool) for name, wnid in BRANCHES.items()}
    return np.array([next((name for name, row in below.items() if row[one]), "other") for one in truth.tolist()])


SCORES = ("energy", "energy, centred", "best score", f"{NEAREST} nearest features")


def scores(rows: Rows, known: Rows) -> dict[str, Floats]:
    """What could tell photographs from others, [n] each: high for photographs.

    The log-sum-exp of the logits; the same of the logits without their mean; the best score; and the mean cosine to the
    nearest features of the calibration, those of the same picture aside.
    """
    means = rows.logits.mean(axis=1, dtype=np.float64)
    cosines = _unit(rows.features) @ _unit(known.features).T
    cosines[cosines > 1 - 1e-6] = -1  # itself
    nearest = np.sort(cosines, axis=1)[:, -NEAREST:].mean(axis=1)
    centred = fit.energies(rows.logits)
    values = (centred + means, centred, fit.softmax(rows.logits, 1.0).max(axis=1), nearest)
    return dict(zip(SCORES, values, strict=True))


def separation(found: Measured) -> Iterable[str]:
    """The AUROC by kind of picture and score."""
    yield from _head("", SCORES)
    for kind, pictures in found.generated.items():
        areas = []
        for known, own in splits.halves(len(found.truth)):
            mine = scores(_part(found.photographs, own), _part(found.photographs, known))
            others = scores(pictures, _part(found.photographs, known))
            areas.append([auroc(mine[name], others[name]) for name in SCORES])
        yield _row(kind, [f"{area:.3f}" for area in np.mean(areas, axis=0)])


def flagged(found: Measured) -> Iterable[str]:
    """The share of pictures whose p-value is at most ``UNKNOWN``, by kind and score."""
    yield from _head("", SCORES)
    for kind, pictures in {**found.generated, "the other photographs": None}.items():
        shares = []
        for known, own in splits.halves(len(found.truth)):
            half = _part(found.photographs, known)
            calibration = scores(half, half)
            others = scores(pictures or _part(found.photographs, own), half)
            shares.append([_below(np.sort(calibration[name]), others[name]) for name in SCORES])
        yield _row(kind, [f"{share:.1%}" for share in np.mean(shares, axis=0)])


def auroc(high: Floats, low: Floats) -> float:
    """The probability that one of ``high`` is more than one of ``low``."""
    return float((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)


def _below(known: Floats, values: Floats) -> float:
    return float(np.mean([conformal.p_value(known.astype(np.float64), one) <= UNKNOWN for one in values.tolist()]))


def _part(rows: Rows, positions: Ints) -> Rows:
    return Rows(rows.logits[positions], rows.features[positions])


def _unit(features: Floats) -> Floats:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _head(first: str, titles: Sequence[str]) -> Iterable[str]:
    yield _row(first, titles)
    yield _row("---", ["---:"] * len(titles))


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "resnet50")
