"""What a body asks, in whatever protocol, and the way to its answer."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import Response

from app.api.answers import build
from app.api.classify import as_json, classify, served, top
from app.api.documents import Body, loads
from app.api.exchange import Exchange
from app.api.forms import Form, Upload
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import InvalidParameter, MalformedRequest, NotFound, TopkError

VERSION = "1"
MOST = 2**31 - 1
"""The largest whole number that is read out of JSON: it is compared, multiplied and shown before anything else is."""


class Asked(Protocol):
    """Images, what is wanted of each, and the answer made of their results. ``place`` names an image in an error."""

    @property
    def images(self) -> list[Upload]: ...
    @property
    def place(self) -> str: ...
    def want(self, classifier: Classifier) -> Want: ...
    def answer(self, classifier: Classifier, results: list[Result]) -> Response: ...


Document = Callable[[dict[str, Any], Uploads], Asked]
"""A JSON document to what it asks."""


@dataclass(frozen=True, slots=True)
class One:
    """One image, which says nothing itself of what is wanted: ``shape`` makes the answer of its result."""

    shape: Callable[[Classifier, Result], Any]
    k: int | None = None
    images: list[Upload] = dataclasses.field(default_factory=list)
    place: str = ""

    def want(self, classifier: Classifier) -> Want:
        return top(classifier, self.k)

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        return as_json(self.shape(classifier, results[0]))


async def answer(request: Request, form: Form, read: Callable[[Body], Asked], raw: Asked | None = None) -> Response:
    """The answer to what a document asks, once ``read``, or to ``raw`` where the body is an image. Raises TopkError.

    One image's failure is the request's: none of these protocols can say it of an image alone.
    """
    classifier = served(request)
    asked = raw

    def parse(content: Body) -> list[Upload]:
        nonlocal asked
        asked = read(content)
        for number, image in enumerate(asked.images):
            if isinstance(image.content, TopkError):
                raise _at(asked, number, image.content)
        return asked.images

    def want() -> Want:
        assert asked
        return asked.want(classifier)

    outcomes = await classify(request, form, want, parse)
    assert asked
    answering, results = asked, []
    for number, (_, outcome) in enumerate(outcomes):
        if isinstance(outcome, TopkError):
            raise _at(asked, number, outcome)
        results.append(outcome)
    return await build(request, lambda: answering.answer(classifier, results))


async def answer_any(request: Request, form: Form, raw: One) -> Response:
    """The answer on a path that several protocols share: the body tells which one it is in.

    JSON with ``instances`` or ``inputs`` is the protocol's that says so, if one that has it is spoken; ``raw`` answers
    an image, alone or in JSON.
    """
    uploads: Uploads = request.app.state.uploads
    documents: dict[str, tuple[str, Document]] = request.app.state.documents

    def read(content: Body) -> Asked:
        document = loads(content, uploads.most_images)
        if not isinstance(document, dict):
            raise MalformedRequest("the JSON body must be an object")
        for key, (protocol, reading) in documents.items():
            if key in document:
                Exchange.of(request.scope).spoken = protocol
                return reading(document, uploads)
        if "image" not in document and len(document) == 1:
            document = {"image": next(iter(document.values()))}
        return dataclasses.replace(raw, images=uploads.one_of(document))

    return await answer(request, form, read, raw)


def named(request: Request, model: str, version: str | None = None) -> Classifier:
    """The classifier, if it is this model's. Raises NotFound, NotReady."""
    classifier = served(request)
    if model != classifier.model.name:
        raise NotFound(f"no model {model} is served here, but {classifier.model.name}")
    if version not in (None, VERSION):
        raise NotFound(f"{model} has no version {version}, but {VERSION}")
    return classifier


def count(value: Any, name: str) -> int:
    """A whole number, 1 to ``MOST``, out of JSON. Raises InvalidParameter."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as JSON Schema has it
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise InvalidParameter(f"{name} must be a whole number, 1 to {MOST}")
    return value


def members(value: Any, name: str) -> dict[str, Any]:
    """An object out of JSON, empty where there is none. Raises MalformedRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedRequest(f"{name} must be an object")
    return value


def said(error: TopkError) -> dict[str, Any]:
    """An error as most protocols have it."""
    return {"error": error.detail}


SAID = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def _at(asked: Asked, number: int, error: TopkError) -> TopkError:
    return error.at(f"{asked.place}[{number}]") if asked.place else error
