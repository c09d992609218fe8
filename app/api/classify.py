"""The one way from a request to its images' results: admission, and only then its body. On the event loop."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Annotated, Any

import orjson
from fastapi import Depends, Query, Request
from starlette.responses import Response

from app.api import answers
from app.api.auth import require_key
from app.api.exchange import ClientGone, Exchange
from app.api.forms import Form, Upload
from app.api.ratelimit import RateLimit
from app.api.uploads import Parse, Uploads, check_limits
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import InvalidParameter, NotReady, TopkError

DEFAULT_K = 5
TopK = Annotated[
    int | None,
    Query(
        ge=1, le=2**31 - 1, description=f"How many classes; {DEFAULT_K} unless given, or all of a model that has fewer."
    ),
]
MinScore = Annotated[float, Query(ge=0, le=1, description="Leave out classes that score less.")]
Outcome = Result | BaseException


def gate(form: Form) -> list[Any]:
    """The dependencies of a route that takes such bodies: what their headers tell, then the key."""
    return [Depends(check_limits(form)), Depends(require_key)]


async def classify(
    request: Request, form: Form, want: Callable[[], Want], parse: Parse | None = None
) -> list[tuple[Upload, Result | TopkError]]:
    """Every image of a request with its result, as admitted: all of them or none.

    ``want`` is asked once the body is there, which ``parse`` reads where it is a document that is not our own.
    """
    classifier = served(request)
    uploads: Uploads = request.app.state.uploads
    rate_limit: RateLimit = request.app.state.rate_limit
    exchange = Exchange.of(request.scope)
    patience = _patience(request, classifier.settings.request_timeout_ms)
    classifier.admit(1, time.monotonic() + patience)
    upload = rate_limit.charge(exchange.caller, 1)  # how many images it has is not known before its body
    async with uploads.read(request, form, parse) as images:
        deadline = time.monotonic() + patience
        wanted = want()
        exchange.images = len(images)
        exchange.answer_bytes = answers.check_size(classifier, wanted, len(images), uploads.most_images)
        sound = [image.content for image in images if not isinstance(image.content, TopkError)]
        classifier.admit(len(sound), deadline)
        rate_limit.charge(exchange.caller, len(images), instead=upload)  # what is refused costs one: it has been read
        work = asyncio.gather(
            *(classifier.classify(image, wanted, deadline) for image in sound), return_exceptions=True
        )
        outcomes = iter(await _unless_gone(request, work))
        results = [
            (image, image.content if isinstance(image.content, TopkError) else _expected(next(outcomes)))
            for image in images
        ]
    exchange.took(result.timing for _, result in results if isinstance(result, Result))
    return results


def served(request: Request) -> Classifier:
    """The classifier. Raises NotReady while it is being loaded."""
    classifier: Classifier = request.app.state.classifier
    if not classifier.ready:
        raise NotReady("the model is being loaded")
    return classifier


def top(classifier: Classifier, k: int | None = None, probabilities: bool = False) -> Want:
    """The k best classes; unasked ``DEFAULT_K``, or all of a model that has fewer. Raises InvalidParameter."""
    classes = len(classifier.model.labels)
    if k is not None and k > classes:
        raise InvalidParameter(f"top_k: {k} is more than the model's {classes} classes")
    return Want(k=min(DEFAULT_K, classes) if k is None else k, probabilities=probabilities)


def as_json(body: Any) -> Response:
    """An answer, numpy arrays and dataclasses in it."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def _unless_gone(request: Request, work: "asyncio.Future[list[Outcome]]") -> list["Outcome"]:
    """The work's result; cancelled, and ClientGone raised, when the client closes its connection first."""
    gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # looked at, or asyncio complains
            raise ClientGone
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


def _expected(outcome: Outcome) -> Result | TopkError:
    if isinstance(outcome, Result | TopkError):
        return outcome
    raise outcome


def _patience(request: Request, most_ms: int) -> float:
    """Seconds the client grants: its header, up to the server's own limit."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return most_ms / 1000
    digits = given.strip().lstrip("0")
    if not re.fullmatch("[0-9]+", digits):
        raise InvalidParameter("X-Request-Timeout-Ms must be a positive whole number of milliseconds")
    return min(int(digits[:12]), most_ms) / 1000  # Python refuses to read numbers of thousands of digits
