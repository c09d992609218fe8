"""A prediction: the options that the model supports, what the device computes for them, and how it is written."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from app.api.classify import top
from app.api.excerpts import shown
from app.api.explanation import Explanation, explanation
from app.api.options import PredictOptions
from app.calibration import Promise, promise
from app.classifier import Classifier, Result
from app.engine.base import BEST, Row, Want
from app.errors import Internal, InvalidParameter
from app.imagenet.predictions import Prediction
from app.imagenet.taxonomy import answer_confidence

Members = dict[str, object]


@dataclass(frozen=True, slots=True)
class Promised:
    """A prediction set, the typicality, and whether the image is unknown; None for what is not wanted."""

    set: list[Prediction] | None = None
    typicality: float | None = None
    unknown: bool | None = None


class Predicting:
    """What a prediction computes, and how it is written. Raises InvalidParameter.

    ``sets``: the answer has a prediction set. ``promise`` is what the calibration is asked for, if anything.
    """

    def __init__(self, classifier: Classifier, options: PredictOptions) -> None:
        self._classifier = classifier
        self._min_score = options.min_score or 0.0
        self.want = check(classifier, options)
        self.sets = options.coverage is not None
        try:
            self._confidence = answer_confidence(bool(options.taxonomy), options.confidence)
            self.promise = _promise(classifier, options)
        except ValueError as error:
            raise InvalidParameter(str(error)) from None
        if self.sets and options.confidence is not None:
            raise InvalidParameter(
                "confidence and coverage exclude each other: with coverage, answer contains the whole set"
            )
        self._png = bool(options.explain_png)
        if self._png and self.want.explain is None:
            raise InvalidParameter("explain_png requires explain, which adds the explanation that the PNG shows")

    def head(self) -> Members:
        """The members that come before the images'."""
        return {"model": self._classifier.model.name, "weights": self._classifier.model.weights}

    def write(self, result: Result) -> Members:
        """One image's members."""
        answer = self.answer(result)
        members: Members = {"predictions": self._classifier.predictions(result.row, self._min_score)}
        for name in ("set", "typicality", "unknown"):
            if (value := getattr(answer, name)) is not None:
                members[name] = value
        if self._confidence is not None:
            members |= self._placing(result.row, self._confidence, answer.set)
        if self.want.explain is not None:
            members["explanation"] = self.explanation(result).members()
        return members

    def answer(self, result: Result) -> Promised:
        """What the calibration promises of one image."""
        if self.promise is None:
            return Promised()
        typicality = self.promise.calibration.typicality(result.row.energy)
        found = self._classifier.prediction_set(result.row, self.promise)
        return Promised(found, typicality, self.promise.is_unknown(typicality))

    def explanation(self, result: Result) -> Explanation:
        """The explanation of one image. ``want`` has one."""
        assert self.want.explain is not None
        return explanation(result, self.want.explain, self._classifier.model.preprocessing, self._png)

    def _placing(self, row: Row, confidence: float, found: list[Prediction] | None) -> Members:
        """The path and the answer in WordNet; that of a prediction set, if there is one."""
        if self._classifier.taxonomy is None or row.probabilities is None:
            raise Internal("the device returned no probabilities")
        inside = None if found is None else np.array([one.class_id for one in found])
        return asdict(self._classifier.taxonomy.placing(row.probabilities, confidence, inside))


def check(classifier: Classifier, options: PredictOptions) -> Want:
    """What to compute. Raises InvalidParameter for options that the served model does not support."""
    if options.taxonomy and classifier.taxonomy is None:
        raise InvalidParameter("taxonomy is not available: the model's classes are not in WordNet")
    try:
        _promise(classifier, options)
    except ValueError as error:
        raise InvalidParameter(str(error)) from None
    whole = bool(options.taxonomy) or options.coverage is not None
    return replace(top(classifier, options.top_k, probabilities=whole), explain=explained(classifier, options.explain))


def explained(classifier: Classifier, explain: str | None) -> int | None:
    """The class to explain, or ``BEST``; None if none is wanted. Raises InvalidParameter."""
    if explain is None or explain == "false":
        return None
    if reason := classifier.served.inexplicable:
        raise InvalidParameter(f"explain is not available: {reason}")
    if explain == "true":
        return BEST
    labels = classifier.model.labels
    if explain.isdigit() and int(explain) < len(labels):
        return int(explain)
    for class_id, label in enumerate(labels):
        if label.wnid == explain:
            return class_id
    raise InvalidParameter(
        f"explain must be true, false, a class id between 0 and {len(labels) - 1}, or the wnid of a class, got"
        f" {shown(explain)}"
    )


def _promise(classifier: Classifier, options: PredictOptions) -> Promise | None:
    """Raises ValueError."""
    return promise(classifier.model.calibrations, classifier.engine.precision, options.coverage, options.unknown)
