"""From a request to its images' results, in two steps: ``receive`` the body, then ``classify`` its images.

Both run on the event loop. Every request is admitted before its body is read.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from starlette.types import Message

from app.api.answers import check_size
from app.api.documents import Body
from app.api.excerpts import shown
from app.api.exchange import ClientGone, Exchange
from app.api.forms import Contents, Form, Upload
from app.api.options import DEFAULT_K
from app.api.ratelimit import Charge
from app.api.service import Service
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import InvalidParameter, TopkError

T = TypeVar("T")
Outcome = Result | BaseException

_TIMEOUT_DIGITS = 12  # Python refuses to parse numbers of thousands of digits


@dataclass(frozen=True, slots=True)
class Received(Generic[T]):
    """A body as it was parsed, the request's deadline (``time.monotonic``) and its charge on the rate limit.

    ``stated``: the client stated the deadline.
    """

    body: T
    deadline: float
    stated: bool
    charge: Charge | None


@asynccontextmanager
async def receive(
    request: Request, form: Form, parse: Callable[[Body], T], explain: bool = False
) -> AsyncIterator[Received[Contents | T]]:
    """Admit a request, then read its body, whose images stay in memory within the context.

    ``explain``: the query wants explanations, which another queue admits. The body may want them too.
    ``parse`` reads a JSON document; it runs in a thread if the document is large. Other bodies become Contents.
    Raises TopkError.
    """
    service = Service.of(request)
    stated_s, most_s = _stated_s(request), service.settings.request_timeout_ms / 1000
    timeout_s, stated = (most_s, False) if stated_s is None else (min(stated_s, most_s), True)
    service.classifier.admit(1, time.monotonic() + timeout_s, stated, explain)
    charge = service.rate_limit.charge(Exchange.of(request.scope).caller, 1)  # the number of images is not known yet
    async with service.uploads.read(request, form, parse) as body:
        yield Received(body, time.monotonic() + timeout_s, stated, charge)


async def classify(
    request: Request, received: Received[T], images: list[Upload], want: Want, sets: bool = False
) -> list[Result | TopkError]:
    """The result or the error of every image, in order. The images are admitted together, or refused together.

    ``sets``: the response has a prediction set of each image.
    """
    service, exchange = Service.of(request), Exchange.of(request.scope)
    classifier = service.classifier
    exchange.images = len(images)
    exchange.response_bytes = check_size(classifier, want, len(images), service.uploads.most_images, sets)
    valid = [image.content for image in images if not isinstance(image.content, TopkError)]
    deadline, stated, caller = received.deadline, received.stated, exchange.caller
    classifier.admit(len(valid), deadline, stated, explain=want.explain is not None)
    service.rate_limit.charge(caller, len(images), instead=received.charge)
    work = asyncio.gather(
        *(classifier.classify(image, want, deadline, stated, caller) for image in valid), return_exceptions=True
    )
    outcomes = iter(await _unless_gone(request, work))
    results = [image.content if isinstance(image.content, TopkError) else _expected(next(outcomes)) for image in images]
    exchange.record(result.timing for result in results if isinstance(result, Result))
    return results


def top(classifier: Classifier, k: int | None = None, probabilities: bool = False) -> Want:
    """The k best classes. By default ``DEFAULT_K``, or all of a model that has fewer. Raises InvalidParameter."""
    classes = len(classifier.model.labels)
    if k is not None and k > classes:
        raise InvalidParameter(f"top_k must be between 1 and {classes}, the number of classes, got {shown(k)}")
    return Want(k=min(DEFAULT_K, classes) if k is None else k, probabilities=probabilities)


async def _unless_gone(request: Request, work: "asyncio.Future[list[Outcome]]") -> list[Outcome]:
    """The result of ``work``. If the client closes its connection first, cancels it and raises ClientGone."""
    gone = asyncio.ensure_future(request.receive())
    waited: list[asyncio.Future[list[Outcome]] | asyncio.Future[Message]] = [work, gone]
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # marks the exception as retrieved, so that asyncio does not log it
            raise ClientGone
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


def _expected(outcome: Outcome) -> Result | TopkError:
    if isinstance(outcome, Result | TopkError):
        return outcome
    raise outcome


def _stated_s(request: Request) -> float | None:
    """Seconds until the deadline that the client states in a header, if it does."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return None
    digits = given.strip().lstrip("0")
    if not re.fullmatch("[0-9]+", digits):
        raise InvalidParameter(
            f"X-Request-Timeout-Ms must be a positive whole number of milliseconds, got {shown(given)}"
        )
    return int(digits[:_TIMEOUT_DIGITS]) / 1000
