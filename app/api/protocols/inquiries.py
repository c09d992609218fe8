"""Bodies of other protocols to responses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response

from app.api.answers import as_json, build
from app.api.classify import Received, classify, receive, top
from app.api.documents import Body, loads
from app.api.exchange import Exchange
from app.api.forms import Contents, Form, Upload
from app.api.inquiry import Inquiry
from app.api.protocols.members import json_object
from app.api.service import Service
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import TopkError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageInquiry:
    """One image without a document. ``write`` makes the body of its response."""

    images: list[Upload]
    write: Callable[[Classifier, Result], object]
    k: int | None = None
    place: str = ""
    sets: bool = False

    def want(self, classifier: Classifier) -> Want:
        return top(classifier, self.k)

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        return as_json(self.write(classifier, results[0]))


async def answer(request: Request, form: Form, read: Callable[[Body], Inquiry]) -> Response:
    """The response to a JSON document. Raises TopkError."""
    classifier = Service.of(request).ready_classifier()
    async with receive(request, form, read) as received:
        inquiry = received.body
        assert not isinstance(inquiry, Contents)  # ``form`` has no fields: every body is a document
        results = await _results(request, classifier, received, inquiry)
    return await build(request, lambda: inquiry.answer(classifier, results))


async def answer_any(request: Request, form: Form, image: Callable[[Contents], Inquiry]) -> Response:
    """The response on a path that several protocols share, where the body determines the protocol.

    A JSON document with ``instances`` or ``inputs`` belongs to the protocol that defines it, if that is enabled.
    Otherwise the body is an image, alone or in JSON, for ``image``.
    """
    service, exchange = Service.of(request), Exchange.of(request.scope)
    classifier = service.ready_classifier()

    def read(content: Body) -> Contents | Inquiry:
        document = json_object(loads(content, service.uploads.most_images))
        for member, (protocol, reader) in service.protocols.documents.items():
            if member in document:
                exchange.body_protocol = protocol  # also for the errors of the reader
                return reader(document, service.uploads)
        if "image" not in document and len(document) == 1:
            document = {"image": next(iter(document.values()))}
        return service.uploads.one_of(document)

    async with receive(request, form, read) as received:
        inquiry = image(received.body) if isinstance(received.body, Contents) else received.body
        results = await _results(request, classifier, received, inquiry)
    return await build(request, lambda: inquiry.answer(classifier, results))


async def _results(request: Request, classifier: Classifier, received: Received[T], inquiry: Inquiry) -> list[Result]:
    """The results of all images. Raises the first error: these protocols cannot report the error of one image."""
    for number, image in enumerate(inquiry.images):
        if isinstance(image.content, TopkError):
            raise _at(inquiry, number, image.content)
    results = []
    outcomes = await classify(request, received, inquiry.images, inquiry.want(classifier), inquiry.sets)
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, TopkError):
            raise _at(inquiry, number, outcome)
        results.append(outcome)
    return results


def _at(inquiry: Inquiry, number: int, error: TopkError) -> TopkError:
    """The error of an image, with its place in the request."""
    return error.at(f"{inquiry.place}[{number}]") if inquiry.place else error
