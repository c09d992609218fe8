"""KServe's protocol v1, and TensorFlow Serving's REST API, from which it derives.

kserve's ``v1_endpoints.py``, tensorflow/serving's ``api_rest.md``.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api import health
from app.api.answers import as_json
from app.api.classify import top
from app.api.documents import Body, loads
from app.api.excerpts import shown
from app.api.forms import Form, Upload
from app.api.gate import gate, require_key
from app.api.inquiry import Document, Inquiry
from app.api.options import TopK
from app.api.protocols.inquiries import answer
from app.api.protocols.members import json_object, members, whole_number
from app.api.protocols.protocol import VERSION, ErrorMessage, ModelName, Protocol, Version, error_message, named
from app.api.schemas.document import json_body, response
from app.api.schemas.errors import NAMED, errors
from app.api.schemas.requests import CAT, Base64
from app.api.service import Service
from app.api.uploads import Uploads
from app.classifier import Classifier, Prediction, Result
from app.engine import Want
from app.errors import InvalidParameter, MalformedRequest, NotFound
from app.settings import Settings

NAME = "kserve-v1"
FORM = Form(several=True, fields=())


class EncodedImage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    b64: Base64


class InstancesParameters(BaseModel):
    top_k: TopK | None = None
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None


class InstancesRequest(BaseModel):
    instances: list[EncodedImage] = Field(min_length=1)
    parameters: InstancesParameters | None = None


class ExampleImage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: EncodedImage


class ExamplesRequest(BaseModel):
    examples: list[ExampleImage] = Field(min_length=1)


class PredictionRows(BaseModel):
    """``outputs`` instead of ``predictions`` if the request has columnar ``inputs``."""

    predictions: list[list[Prediction]] | None = None
    outputs: list[list[Prediction]] | None = None


class ExampleResults(BaseModel):
    """Pairs of a label and its score."""

    result: list[list[Annotated[list[str | float], Field(min_length=2, max_length=2)]]]


class ModelNames(BaseModel):
    models: list[str]


class VersionError(BaseModel):
    error_code: str
    error_message: str


class VersionStatus(BaseModel):
    version: str
    state: str
    status: VersionError


class ModelStatus(BaseModel):
    """KServe's members and TensorFlow Serving's."""

    name: str
    ready: bool
    model_version_status: list[VersionStatus]


@dataclass(frozen=True, slots=True)
class Instances:
    """Images as rows or as a column. ``key`` is the response's member for their predictions."""

    images: list[Upload]
    place: str
    key: str
    k: int | None
    min_score: float

    def want(self, classifier: Classifier) -> Want:
        return top(classifier, self.k)

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        return as_json({self.key: [classifier.predictions(result.row, self.min_score) for result in results]})


@dataclass(frozen=True, slots=True)
class TensorFlowExamples:
    """The images of TensorFlow Serving's classify."""

    images: list[Upload]
    place: str = "examples"

    def want(self, classifier: Classifier) -> Want:
        return top(classifier)

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        rows = [[[p.label, p.score] for p in classifier.predictions(result.row)] for result in results]
        return as_json({"result": rows})


def instances(document: dict[str, object], uploads: Uploads) -> Inquiry:
    """``{"instances": [...], "parameters": {...}}``. Raises MalformedRequest, InvalidParameter, PayloadTooLarge."""
    return _instances(document, "instances", "predictions", _list(document, "instances"), uploads)


def predict(document: dict[str, object], uploads: Uploads) -> Inquiry:
    """``instances``, or the columnar ``inputs``."""
    if "instances" in document:
        return instances(document, uploads)
    if "inputs" not in document:
        raise MalformedRequest('the JSON body must be {"instances": [{"b64": "<base64>"}, ...]}')
    column = document["inputs"]
    if isinstance(column, dict) and "b64" not in column:
        if len(column) != 1:
            raise MalformedRequest(f"inputs must have one column, got {len(column)}")
        column = next(iter(column.values()))
    return _instances(document, "inputs", "outputs", column if isinstance(column, list) else [column], uploads)


def examples(document: dict[str, object], uploads: Uploads) -> Inquiry:
    """``{"examples": [{"image": {"b64": ...}}]}``."""
    return TensorFlowExamples(_images(_list(document, "examples"), "examples", uploads))


def _instances(document: dict[str, object], place: str, key: str, values: list[object], uploads: Uploads) -> Instances:
    parameters = members(document.get("parameters"), "parameters")
    k, min_score = parameters.get("top_k"), parameters.get("min_score")
    min_score = 0.0 if min_score is None else min_score
    if not isinstance(min_score, int | float) or isinstance(min_score, bool) or not 0 <= min_score <= 1:
        raise InvalidParameter(f"min_score must be a number between 0 and 1, got {shown(min_score)}")
    images = _images(values, place, uploads)
    return Instances(images, place, key, None if k is None else whole_number(k, "top_k"), min_score)


def _list(document: dict[str, object], key: str) -> list[object]:
    values = document.get(key)
    if not isinstance(values, list):
        raise MalformedRequest(f'the JSON body must be {{"{key}": [{{"image": {{"b64": "<base64>"}}}}, ...]}}')
    return values


def _images(values: list[object], place: str, uploads: Uploads) -> list[Upload]:
    uploads.check_count(len(values))
    return uploads.images([_base64(value, f"{place}[{number}]") for number, value in enumerate(values)], place)


def _base64(value: object, place: str) -> object:
    """The string in ``{"b64": ...}``, ``{"any name": ...}`` or one in the other. Raises MalformedRequest."""
    for _ in range(2):
        if isinstance(value, dict):
            if len(value) != 1:
                raise MalformedRequest(
                    f'{place}: an object must have one member, such as {{"b64": "<base64>"}}, got {len(value)}'
                )
            [value] = value.values()
    return value


async def models(request: Request) -> Response:
    """The served model's name."""
    return as_json({"models": [Service.of(request).ready_classifier().model.name]})


async def status(request: Request, model: ModelName) -> Response:
    """Whether the model is ready: KServe's members and TensorFlow Serving's in one response."""
    health.check_ready(request)
    named(request, model)
    return as_json(_status(model))


async def version_status(request: Request, model: ModelName, version: Version) -> Response:
    """The same for a version."""
    health.check_ready(request)
    named(request, model, version)
    return as_json(_status(model))


async def predict_model(request: Request, model: ModelName) -> Response:
    """Classify images, in order. A bad instance fails the request; the error names its index."""
    named(request, model)
    return await _answer(request, predict)


async def predict_version(request: Request, model: ModelName, version: Version) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await _answer(request, predict)


async def classify_model(request: Request, model: ModelName) -> Response:
    """Classify images: the five best labels of each, with their scores."""
    named(request, model)
    return await _answer(request, examples)


async def classify_version(request: Request, model: ModelName, version: Version) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await _answer(request, examples)


async def no_verb(request: Request, model: ModelName, verb: str) -> Response:
    """Refuse an unknown verb."""
    named(request, model)
    raise NotFound(f"there is no verb :{verb}; use :predict or :classify")


async def no_verb_version(request: Request, model: ModelName, version: Version, verb: str) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await no_verb(request, model, verb)


async def _answer(request: Request, document: Document) -> Response:
    uploads = Service.of(request).uploads

    def read(content: Body) -> Inquiry:
        given = loads(content, uploads.most_images * 3, "send the image in JSON, as base64")
        return document(json_object(given), uploads)

    return await answer(request, FORM, read)


def _status(model: str) -> dict[str, object]:
    available = {"version": VERSION, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    return {"name": model, "ready": True, "model_version_status": [available]}


def routes(settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=[NAME])
    locked = errors([401, 404, 503], ErrorMessage, error_message)
    failing = errors(NAMED, ErrorMessage, error_message)
    listing = errors([401, 503], ErrorMessage, error_message) | {200: response(ModelNames, {"models": ["resnet50"]})}
    key = [Depends(require_key)]
    router.get("", summary="Models", dependencies=key, responses=listing)(models)
    each = (
        ("/{model}", status, predict_model, classify_model, no_verb),
        ("/{model}/versions/{version}", version_status, predict_version, classify_version, no_verb_version),
    )
    for path, is_ready, predicting, classifying, other in each:
        suffix = " of a version" if "version" in path else ""
        for verb, answered, body, endpoint in (
            ("predict", PREDICTIONS, INSTANCES, predicting),
            ("classify", _RESULT, _EXAMPLES, classifying),
        ):
            router.post(
                f"{path}:{verb}",
                summary=f"{verb.title()}{suffix}",
                dependencies=gate(FORM),
                responses=failing | {200: answered},
                openapi_extra=body,
            )(endpoint)
        router.post(f"{path}:{{verb:path}}", dependencies=key, include_in_schema=False)(other)
        router.get(
            path,
            summary=f"Model status{suffix}",
            dependencies=key,
            responses=locked | {200: response(ModelStatus, _status("resnet50"))},
        )(is_ready)
    return router


PREDICTIONS = response(
    PredictionRows,
    {"predictions": [[{"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.3864}]]},
)
_RESULT = response(ExampleResults, {"result": [[["Egyptian cat", 0.3864], ["tiger cat", 0.3632]]]})
INSTANCES = json_body(InstancesRequest, {"instances": [{"b64": CAT}], "parameters": {"top_k": 5}})
_EXAMPLES = json_body(ExamplesRequest, {"examples": [{"image": {"b64": CAT}}]})
PROTOCOL = Protocol(NAME, routes, prefix="/v1/models/", error_body=error_message)
