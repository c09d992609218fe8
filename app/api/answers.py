"""Responses: their size is bounded before anything is computed, and large ones are built off the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import orjson
from fastapi import Request
from starlette.responses import Response

from app.api.exchange import Exchange
from app.classifier import Classifier
from app.engine import Want
from app.errors import PayloadTooLarge

T = TypeVar("T")

BYTES_AN_IMAGE = 512 * 2**10  # all outputs of a model of 1000 classes take a third of this
_IMAGES = 32  # one image may use the share of 32: the outputs of a model of 22 000 classes take a fifth of it
_THREAD_BYTES = 256 * 2**10  # larger responses are built in a thread
_CLASS_BYTES = 120  # of one of the top-k classes, with its label
_NUMBER_BYTES = 16  # of one number of a whole row
_EXPLANATION_BYTES = 8 * 2**10  # of one explanation: a grid of 24 x 24 numbers and its PNG


def check_size(classifier: Classifier, want: Want, images: int, most_images: int, sets: bool = False) -> int:
    """The approximate size of a response in bytes. Raises PayloadTooLarge.

    ``sets``: each image has a prediction set, which may contain all classes.
    The limit is ``BYTES_AN_IMAGE`` for each of ``most_images``, at least 32, shared by the images of the request.
    """
    classes = len(classifier.model.labels)
    size = images * (
        _CLASS_BYTES * (min(want.k, classes) + classes * sets)
        + _NUMBER_BYTES * classes * (want.logits + want.probabilities)
        + _NUMBER_BYTES * classifier.engine.dim * want.features
        + _EXPLANATION_BYTES * (want.explain is not None)
    )
    most = BYTES_AN_IMAGE * max(most_images, _IMAGES)
    if size > most:
        raise PayloadTooLarge(
            f"the response would have about {size} bytes, more than {most}; request fewer images, classes or outputs"
        )
    return size


async def build(request: Request, make: Callable[[], T]) -> T:
    """The result of ``make``, called in a thread if the response is large."""
    if Exchange.of(request.scope).response_bytes > _THREAD_BYTES:
        return await asyncio.to_thread(make)
    return make()


def as_json(body: object) -> Response:
    """A JSON response. The body may contain numpy arrays and dataclasses."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
