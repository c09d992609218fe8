"""KServe's protocol v1, and TensorFlow Serving's REST API, which it grew out of.

kserve's ``v1_endpoints.py``, tensorflow/serving's ``api_rest.md``.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from app.api import health, schemas
from app.api.auth import require_key
from app.api.classify import as_json, gate, served, top
from app.api.documents import Body, loads
from app.api.forms import Form, Upload
from app.api.protocols.asked import SAID, VERSION, Asked, Document, answer, count, members, named, said
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import InvalidParameter, MalformedRequest, NotFound
from app.settings import Settings

NAME = "kserve-v1"
PREFIX = "/v1/models/"
FORM = Form(several=True, fields=())

problem = said
Model = Annotated[str, Path(description="The served model's name.")]
Version = Annotated[str, Path(description="There is only `1`.", examples=[VERSION])]


@dataclass(frozen=True, slots=True)
class Instances:
    """Images one by one, or as one column: ``place`` is where they came, ``key`` where their answers go."""

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
class Examples:
    """What TensorFlow Serving's classify asks: labels with their scores."""

    images: list[Upload]
    place: str = "examples"

    def want(self, classifier: Classifier) -> Want:
        return top(classifier)

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        rows = [[[p.label, p.score] for p in classifier.predictions(result.row)] for result in results]
        return as_json({"result": rows})


def instances(document: dict[str, Any], uploads: Uploads) -> Asked:
    """``{"instances": [...], "parameters": {...}}``. Raises MalformedRequest, InvalidParameter, PayloadTooLarge."""
    return _instances(document, "instances", "predictions", _list(document, "instances"), uploads)


def predict(document: dict[str, Any], uploads: Uploads) -> Asked:
    """``instances``, or the columnar ``inputs``."""
    if "instances" in document:
        return instances(document, uploads)
    if "inputs" not in document:
        raise MalformedRequest('the JSON body must be {"instances": [{"b64": "<base64>"}, ...]}')
    column = document["inputs"]
    if isinstance(column, dict) and "b64" not in column:
        if len(column) != 1:
            raise MalformedRequest(f"inputs must have one column, not {len(column)}")
        column = next(iter(column.values()))
    return _instances(document, "inputs", "outputs", column if isinstance(column, list) else [column], uploads)


def examples(document: dict[str, Any], uploads: Uploads) -> Asked:
    """``{"examples": [{"image": {"b64": ...}}]}``."""
    return Examples(_images(_list(document, "examples"), "examples", uploads))


def _instances(document: dict[str, Any], place: str, key: str, values: list[Any], uploads: Uploads) -> Instances:
    parameters = members(document.get("parameters"), "parameters")
    k = count(parameters["top_k"], "top_k") if "top_k" in parameters else None
    min_score = parameters.get("min_score", 0.0)
    if not isinstance(min_score, int | float) or isinstance(min_score, bool) or not 0 <= min_score <= 1:
        raise InvalidParameter("min_score must be a number, 0 to 1")
    return Instances(_images(values, place, uploads), place, key, k, min_score)


def _list(document: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(document.get(key), list):
        raise MalformedRequest(f'the JSON body must be {{"{key}": [{{"image": {{"b64": "<base64>"}}}}, ...]}}')
    values: list[Any] = document[key]
    return values


def _images(values: list[Any], place: str, uploads: Uploads) -> list[Upload]:
    uploads.check_count(len(values))
    return uploads.images([_base64(value, f"{place}[{number}]") for number, value in enumerate(values)], place)


def _base64(value: Any, place: str) -> Any:
    """The string within ``{"b64": ...}`` and ``{"any name": ...}``, one within the other. Raises MalformedRequest."""
    for _ in range(2):
        if isinstance(value, dict):
            if len(value) != 1:
                raise MalformedRequest(f'{place}: an object must have one member, as {{"b64": "<base64>"}} has')
            [value] = value.values()
    return value


async def models(request: Request) -> Response:
    """The served model's name."""
    return as_json({"models": [served(request).model.name]})


async def status(request: Request, model: Model) -> Response:
    """Whether the model is ready: KServe's members and TensorFlow Serving's in one answer."""
    health.check_ready(request)
    named(request, model)
    return as_json(_status(model))


async def version_status(request: Request, model: Model, version: Version) -> Response:
    """The same for a version."""
    health.check_ready(request)
    named(request, model, version)
    return as_json(_status(model))


async def predict_model(request: Request, model: Model) -> Response:
    """Classify images: an answer an instance, in order. A bad instance fails the request, which names its index."""
    named(request, model)
    return await _answer(request, predict)


async def predict_version(request: Request, model: Model, version: Version) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await _answer(request, predict)


async def classify_model(request: Request, model: Model) -> Response:
    """Classify images: labels with their scores, the best five an example."""
    named(request, model)
    return await _answer(request, examples)


async def classify_version(request: Request, model: Model, version: Version) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await _answer(request, examples)


async def no_verb(request: Request, model: Model, verb: str) -> Response:
    """What is asked of a model that it cannot be."""
    named(request, model)
    raise NotFound(f"there is no :{verb}, but :predict and :classify")


async def no_verb_version(request: Request, model: Model, version: Version, verb: str) -> Response:
    """The same for a version."""
    named(request, model, version)
    return await no_verb(request, model, verb)


async def _answer(request: Request, document: Document) -> Response:
    uploads: Uploads = request.app.state.uploads

    def read(content: Body) -> Asked:
        given = loads(content, uploads.most_images * 3, "an image goes into the JSON as base64")
        if not isinstance(given, dict):
            raise MalformedRequest("the JSON body must be an object")
        return document(given, uploads)

    return await answer(request, FORM, read)


def _status(model: str) -> dict[str, Any]:
    available = {"version": VERSION, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    return {"name": model, "ready": True, "model_version_status": [available]}


def routes(settings: Settings) -> APIRouter:
    """Its routes."""
    router = APIRouter(prefix="/v1/models", tags=[NAME])
    locked = schemas.errors([401, 404, 503], said, SAID)
    failing = schemas.errors(schemas.NAMING, said, SAID)
    listing = schemas.errors([401, 503], said, SAID)
    key = [Depends(require_key)]
    router.get("", summary="Models", dependencies=key, responses=listing | {200: schemas.answer(_MODELS)})(models)
    each = (
        ("/{model}", status, predict_model, classify_model, no_verb),
        ("/{model}/versions/{version}", version_status, predict_version, classify_version, no_verb_version),
    )
    for path, is_ready, predicting, classifying, other in each:
        of = " of a version" if "version" in path else ""
        for verb, answered, body, endpoint in (
            ("predict", PREDICTIONS, INSTANCES, predicting),
            ("classify", _RESULT, _EXAMPLES, classifying),
        ):
            router.post(
                f"{path}:{verb}",
                summary=f"{verb.title()}{of}",
                dependencies=gate(FORM),
                responses=failing | {200: answered},
                openapi_extra=body,
            )(endpoint)
        router.post(f"{path}:{{verb:path}}", dependencies=key, include_in_schema=False)(other)
        router.get(
            path,
            summary=f"Model status{of}",
            dependencies=key,
            responses=locked | {200: schemas.answer(_status("resnet50"))},
        )(is_ready)
    return router


_MODELS = {"models": ["resnet50"]}
_ROWS = {"type": "array", "items": {"type": "array", "items": schemas.Prediction.model_json_schema()}}
PREDICTIONS = schemas.answer(
    {"predictions": [[{"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.3864}]]},
    {"type": "object", "properties": {"predictions": _ROWS, "outputs": _ROWS}},
)
_PAIR = {"type": "array", "items": {"type": ["string", "number"]}, "minItems": 2, "maxItems": 2}
_RESULT = schemas.answer(
    {"result": [[["Egyptian cat", 0.3864], ["tiger cat", 0.3632]]]},
    {
        "type": "object",
        "required": ["result"],
        "properties": {"result": {"type": "array", "items": {"type": "array", "items": _PAIR}}},
    },
)
_B64 = {"type": "object", "required": ["b64"], "properties": {"b64": schemas.ONE_BASE64}, "additionalProperties": False}
INSTANCES = schemas.document(
    {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {"type": "array", "minItems": 1, "items": _B64},
            "parameters": {
                "type": ["object", "null"],
                "properties": {
                    "top_k": schemas.TOP_K,
                    "min_score": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
    },
    {"instances": [{"b64": schemas.CAT}], "parameters": {"top_k": 5}},
)
_EXAMPLES = schemas.document(
    {
        "type": "object",
        "required": ["examples"],
        "properties": {
            "examples": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": _B64},
                    "additionalProperties": False,
                },
            }
        },
    },
    {"examples": [{"image": {"b64": schemas.CAT}}]},
)
