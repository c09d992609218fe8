"""Sets, typicality and explanations as further outputs of an inference, requested by its parameters."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from app.api.options import PredictOptions, invalid
from app.api.predicting import Predicting
from app.classifier import Classifier, Result
from app.imagenet.predictions import Prediction

NAMES = ("coverage", "unknown", "explain")

Values = npt.NDArray[np.float32] | npt.NDArray[np.int64] | npt.NDArray[np.bool_]


class Extra(NamedTuple):
    """An output: its ``shape``, and its values row by row, or the strings of a BYTES tensor."""

    name: str
    shape: list[int]
    values: list[str] | Values


def options(parameters: dict[str, object]) -> PredictOptions | None:
    """The options among a request's parameters; None if there are none. Raises InvalidParameter."""
    given = {name: parameters[name] for name in NAMES if parameters.get(name) is not None}
    if not given:
        return None
    try:
        return PredictOptions.model_validate(given, strict=True)
    except ValidationError as error:
        raise invalid(error.errors()[0]) from None


def extras(classifier: Classifier, predicting: Predicting, results: list[Result]) -> list[Extra]:
    """The further outputs for all images."""
    answers = [predicting.answer(result) for result in results]
    n, found = len(answers), list[Extra]()
    if predicting.sets:
        found.append(_sets([answer.set or [] for answer in answers]))
    if predicting.promise:
        found.append(Extra("typicality", [n], np.array([answer.typicality for answer in answers], np.float32)))
    if predicting.promise and predicting.promise.unknown is not None:
        found.append(Extra("unknown", [n], np.array([answer.unknown for answer in answers])))
    if predicting.want.explain is not None:
        found += _explanations(predicting, results, classifier.model.preprocessing.crop)
    return found


def _sets(sets: list[list[Prediction]]) -> Extra:
    """``score:index:label`` for each class, and empty strings up to the size of the largest set."""
    size = max(map(len, sets))
    texts = [[f"{one.score:f}:{one.class_id}:{one.label}" for one in found] for found in sets]
    return Extra("set", [len(sets), size], [text for row in texts for text in row + [""] * (size - len(row))])


def _explanations(predicting: Predicting, results: list[Result], crop: int) -> list[Extra]:
    """The maps, their classes and boxes. A preprocessed tensor is its own crop."""
    found = [predicting.explanation(result) for result in results]
    grids = np.array([one.grid for one in found], np.float32)
    boxes = np.array([one.box or (0, 0, crop, crop) for one in found], np.float32)
    return [
        Extra("explanation", list(grids.shape), grids.ravel()),
        Extra("explanation_class", [len(found)], np.array([one.class_id for one in found])),
        Extra("explanation_box", [len(found), 4], boxes.ravel()),
    ]
