"""KServe's protocol v1, and TensorFlow Serving's REST API, from which it derives.

kserve's ``v1_endpoints.py``, tensorflow/serving's ``api_rest.md``.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
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
from app.api.protocols.instances import KEY_CHARACTERS, Key, checked, encoded, image_members, key
from app.api.protocols.members import json_object, members, whole_number
from app.api.protocols.protocol import VERSION, ErrorMessage, ModelName, Protocol, Version, error_message, named
from app.api.schemas.document import json_body, response
from app.api.schemas.errors import NAMED, errors
from app.api.schemas.requests import CAT, Base64
from app.api.service import Service
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import InvalidParameter, MalformedRequest, NotFound
from app.imagenet.predictions import Prediction
from app.settings import Settings

NAME = "kserve-v1"
FORM = Form(several=True, fields=())


class EncodedImage(BaseModel):
    """Other members than these are ignored."""

    b64: Base64


class Instance(EncodedImage):
    key: Annotated[str, Field(max_length=KEY_CHARACTERS)] | float | None = Field(
        None, description="Returned with the predictions of the image."
    )


class InstancesParameters(BaseModel):
    top_k: TopK | None = None
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None


class InstancesRequest(BaseModel):
    instances: list[Instance] = Field(min_length=1)
    parameters: InstancesParameters | None = None


class ExampleImage(BaseModel):
    image: EncodedImage


class ExamplesRequest(BaseModel):
    examples: list[ExampleImage] = Field(min_length=1)


class KeyedPredictions(BaseModel):
    """The predictions of an instance that has a key."""

    key: str | float
    predictions: list[Prediction]


class PredictionColumns(BaseModel):
    """The predictions for columnar inputs with keys."""

    key: list[str | float | None]
    predictions: list[list[Prediction]]


class PredictionRows(BaseModel):
    """``outputs`` instead of ``predictions`` if the request has columnar ``inputs``."""

    predictions: list[list[Prediction] | KeyedPredictions] | None = None
    outputs: list[list[Prediction]] | PredictionColumns | None = None


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
    """Images as rows or as a column, each with its key or None."""

    images: list[Upload]
    keys: list[Key]
    columnar: bool
    k: int | None
    min_score: float
    sets: bool = False

    def want(self, classifier: Classifier) -> Want:
        return top(classifier, self.k)

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        rows = [classifier.predictions(result.row, self.min_score) for result in results]
        if self.columnar:
            has_keys = any(key is not None for key in self.keys)
            return as_json({"outputs": {"key": self.keys, "predictions": rows} if has_keys else rows})
        pairs = zip(self.keys, rows, strict=True)
        return as_json(
            {"predictions": [row if key is None else {"key": key, "predictions": row} for key, row in pairs]}
        )

    @property
    def place(self) -> str:
        return "inputs" if self.columnar else "instances"


@dataclass(frozen=True, slots=True)
class TensorFlowExamples:
    """The images of TensorFlow Serving's classify."""

    images: list[Upload]
    place: str = "examples"
    sets: bool = False

    def want(self, classifier: Classifier) -> Want:
        return top(classifier)

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        rows = [[[p.label, p.score] for p in classifier.predictions(result.row)] for result in results]
        return as_json({"result": rows})


def instances(document: dict[str, object], uploads: Uploads) -> Inquiry:
    """``{"instances": [...], "parameters": {...}}``. Raises MalformedRequest, InvalidParameter, PayloadTooLarge."""
    values = _list(document, "instances")
    keys = [key(value, f"instances[{number}]") for number, value in enumerate(values)]
    return _instances(document, values, keys, False, uploads)


def predict(document: dict[str, object], uploads: Uploads) -> Inquiry:
    """``instances``, or the columnar ``inputs``."""
    if "instances" in document:
        return instances(document, uploads)
    if "inputs" not in document:
        raise MalformedRequest('the JSON body must be {"instances": [{"b64": "<base64>"}, ...]}')
    values, keys = _columns(document["inputs"])
    return _instances(document, values, keys, True, uploads)


def examples(document: dict[str, object], uploads: Uploads) -> Inquiry:
    """``{"examples": [{"image": {"b64": ...}}]}``."""
    return TensorFlowExamples(_images(_list(document, "examples"), "examples", uploads))


def _columns(inputs: object) -> tuple[list[object], list[Key]]:
    """The images and their keys. Raises MalformedRequest."""
    if not isinstance(inputs, dict) or "b64" in inputs:
        values = _column(inputs)
        return values, [None] * len(values)
    names = image_members(inputs)
    if len(names) != 1:
        raise MalformedRequest(f"inputs must have one column, got {len(names)}; name that of the images `image`")
    values = _column(inputs[names[0]])
    given = _column(inputs["key"]) if "key" in inputs and names != ["key"] else [None] * len(values)
    if len(given) != len(values):
        raise MalformedRequest(f"inputs must have one key for each image, got {len(given)} for {len(values)}")
    return values, [checked(value, f"inputs[{number}]") for number, value in enumerate(given)]


def _column(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _instances(
    document: dict[str, object], values: list[object], keys: list[Key], columnar: bool, uploads: Uploads
) -> Instances:
    parameters = members(document.get("parameters"), "parameters")
    k, min_score = parameters.get("top_k"), parameters.get("min_score")
    min_score = 0.0 if min_score is None else min_score
    if not isinstance(min_score, int | float) or isinstance(min_score, bool) or not 0 <= min_score <= 1:
        raise InvalidParameter(f"min_score must be a number between 0 and 1, got {shown(min_score)}")
    images = _images(values, "inputs" if columnar else "instances", uploads)
    return Instances(images, keys, columnar, None if k is None else whole_number(k, "top_k"), min_score)


def _list(document: dict[str, object], key: str) -> list[object]:
    values = document.get(key)
    if not isinstance(values, list):
        raise MalformedRequest(f'the JSON body must be {{"{key}": [{{"image": {{"b64": "<base64>"}}}}, ...]}}')
    return values


def _images(values: list[object], place: str, uploads: Uploads) -> list[Upload]:
    uploads.check_count(len(values))
    return uploads.images([encoded(value, f"{place}[{number}]") for number, value in enumerate(values)], place)


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
