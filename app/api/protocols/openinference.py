"""Open Inference Protocol v2 over REST, as KServe, Triton, MLServer and OpenVINO Model Server speak it.

With the binary, raw and classification extensions: kserve's ``docs/predict-api/v2/required_api.md``, Triton's
``extension_binary_data.md`` and ``extension_classification.md``.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import APIRouter, Depends, Header, Path, Request
from starlette.responses import Response

from app import __version__
from app.api import health, schemas
from app.api.auth import require_key
from app.api.classify import as_json, gate
from app.api.documents import Body, loads
from app.api.forms import Form, Upload
from app.api.protocols.asked import MOST, SAID, VERSION, answer, count, members, named, said
from app.api.protocols.tensors import DIMENSIONS, LENGTH, images_of, shown
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import Internal, InvalidParameter, MalformedRequest
from app.settings import Settings

NAME = "v2"
PREFIX = "/v2/"
BINARY_HEADER = "Inference-Header-Content-Length"
_SHOWN = 64  # characters of a client's value in an error
_FORM = Form(several=True, fields=())
_OUTPUTS = 4  # scores and logits, each whole or only its best classes
_ID_CHARACTERS = 1024
_JSON_NUMBERS = 2**20  # the interpreter is held for a tenth of a second to read as many

problem = said
Model = Annotated[str, Path(description="The served model's name.")]
Version = Annotated[str, Path(description="There is only `1`.", examples=[VERSION])]
HeaderLength = Annotated[
    str | None,
    Header(
        alias=BINARY_HEADER,
        description="Bytes of JSON before the binary tensors; 0 for an image alone.",
        json_schema_extra={"pattern": "^[0-9]{1,11}$"},
    ),
]


@dataclass(frozen=True, slots=True)
class Output:
    """An output that is asked for: ``scores`` or ``logits``, whole or only the ``k`` best classes."""

    name: str = "scores"
    k: int | None = None
    binary: bool = False

    def tensor(self, classifier: Classifier, results: list[Result]) -> tuple[list[int], list[str] | npt.NDArray[Any]]:
        """Its shape, and its values row by row: float32, or ``score:index:label``."""
        if self.k is None:
            rows = [_whole(result, self.name) for result in results]
            return [len(rows), len(rows[0])], np.concatenate(rows)
        texts = [text for result in results for text in _classes(classifier, result, self.name, self.k)]
        return [len(results), len(texts) // len(results)], texts


@dataclass(frozen=True, slots=True)
class Inference:
    """A request's images and the outputs it asks for."""

    images: list[Upload]
    place: str = "image"
    id: str | None = None
    outputs: list[Output] = field(default_factory=lambda: [Output()])

    def want(self, classifier: Classifier) -> Want:
        k = max((output.k or 0 for output in self.outputs), default=0)
        return Want(
            k=min(k, len(classifier.model.labels)),
            logits=any(output.name == "logits" for output in self.outputs),
            probabilities=any(output.name == "scores" and output.k is None for output in self.outputs),
        )

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        described, tails = [], []
        for output in self.outputs:
            shape, values = output.tensor(classifier, results)
            entry: dict[str, Any] = {
                "name": output.name,
                "datatype": "BYTES" if isinstance(values, list) else "FP32",
                "shape": shape,
            }
            if output.binary:
                tails.append(_packed(values))
                entry["parameters"] = {"binary_data_size": len(tails[-1])}
            else:
                entry["data"] = values
            described.append(entry)
        body: dict[str, Any] = {"model_name": classifier.model.name, "model_version": VERSION}
        body |= {} if self.id is None else {"id": self.id}
        if not tails:
            return as_json(body | {"outputs": described})
        head = orjson.dumps(body | {"outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(
            b"".join([head, *tails]),
            headers={BINARY_HEADER: str(len(head))},
            media_type="application/octet-stream",
        )


def read(content: Body, header_length: str | None, uploads: Uploads, crop: int) -> Inference:
    """A body to what it asks: JSON, JSON with binary tensors behind it, or an image alone. Raises TopkError."""
    length = _header_length(header_length, len(content))
    if length == 0:
        return Inference([uploads.image(bytes(content))])
    alone = "an image alone needs Content-Type application/octet-stream"
    tensor = 3 * crop * crop
    numbers = min(uploads.most_images * tensor, max(_JSON_NUMBERS, tensor))
    binary = "send fewer images, or tensors as binary data"
    document = loads(content if length == len(content) else content[:length], numbers, alone, binary)
    if not isinstance(document, dict):
        raise MalformedRequest('the JSON must be {"inputs": [{"name", "shape", "datatype", "data"}]}')
    given = document.get("id")
    if given is not None and not (isinstance(given, str) and len(given) <= _ID_CHARACTERS):
        raise MalformedRequest(f"id must be a string of at most {_ID_CHARACTERS} characters")
    as_binary = members(document.get("parameters"), "parameters").get("binary_data_output") is True
    outputs = _outputs(document.get("outputs"), as_binary)
    images = images_of(document.get("inputs"), memoryview(content)[length:], uploads, crop)
    return Inference(images, id=given, outputs=outputs)


def _header_length(given: str | None, most: int) -> int:
    if given is None:
        return most
    if not (given.isascii() and given.isdigit() and len(given) < 12 and int(given) <= most):
        shown = given[:_SHOWN]
        raise MalformedRequest(f"{BINARY_HEADER} must be the bytes of JSON in the body, which has {most}: not {shown}")
    return int(given)


def _outputs(given: Any, binary: bool) -> list[Output]:
    if given is None or given == []:
        return [Output(binary=binary)]
    if not isinstance(given, list) or not all(isinstance(output, dict) for output in given):
        raise MalformedRequest("outputs must be a list of objects")
    if len(given) > _OUTPUTS:
        raise InvalidParameter(f"outputs must be at most {_OUTPUTS}, not {len(given)}")
    outputs = [_output(output, binary) for output in given]
    if len({(output.name, output.k is None) for output in outputs}) < len(outputs):
        raise InvalidParameter("outputs must differ: each is asked for once whole, and once with classification")
    return outputs


def _output(given: dict[str, Any], binary: bool) -> Output:
    if "name" not in given:
        raise MalformedRequest("an output must have a name: scores or logits")
    if (name := given["name"]) not in ("scores", "logits"):
        raise InvalidParameter(f"no output {shown(name)}: there are scores and logits")
    parameters = members(given.get("parameters"), "an output's parameters")
    k = count(parameters["classification"], "classification") if "classification" in parameters else None
    return Output(name, k, parameters.get("binary_data", binary) is True)


def _whole(result: Result, name: str) -> npt.NDArray[np.float32]:
    row = result.row.logits if name == "logits" else result.row.probabilities
    if row is None:
        raise Internal(f"no {name} came from the device")
    return row


def _classes(classifier: Classifier, result: Result, name: str, k: int) -> list[str]:
    ids = result.row.class_ids[:k]
    values = _whole(result, name)[ids] if name == "logits" else result.row.scores[:k]
    labels = classifier.model.labels
    return [f"{value:f}:{i}:{labels[i].label}" for i, value in zip(ids.tolist(), values.tolist(), strict=True)]


def _packed(values: list[str] | npt.NDArray[Any]) -> bytes:
    """A tensor as binary data."""
    if not isinstance(values, list):
        return values.astype("<f4").tobytes()
    elements = [value.encode() for value in values]
    return b"".join(LENGTH.pack(len(element)) + element for element in elements)


async def ready(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    return as_json({"ready": True})


async def live(request: Request) -> Response:
    """200 while the process works."""
    health.check_alive(request)
    return as_json({"live": True})


async def server(request: Request) -> Response:
    """The server and its extensions."""
    extensions = ["binary_tensor_data", "classification"]
    return as_json({"name": "topk", "version": __version__, "extensions": extensions})


async def model_ready(request: Request, model: Model) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    named(request, model)
    return as_json({"name": model, "ready": True})


async def version_ready(request: Request, model: Model, version: Version) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    named(request, model, version)
    return as_json({"name": model, "ready": True})


async def model(request: Request, model: Model) -> Response:
    """The model's inputs and outputs. FP32 `[n, 3, H, W]` is taken as well: already preprocessed images."""
    return as_json(_metadata(named(request, model)))


async def model_version(request: Request, model: Model, version: Version) -> Response:
    """The model's inputs and outputs."""
    return as_json(_metadata(named(request, model, version)))


async def infer(request: Request, model: Model, header_length: HeaderLength = None) -> Response:
    """Classify images: files as BYTES (base64 in JSON), or preprocessed tensors as FP32; outputs whole or the best."""
    return await _infer(request, named(request, model), header_length)


async def infer_version(
    request: Request, model: Model, version: Version, header_length: HeaderLength = None
) -> Response:
    """The same for a version."""
    return await _infer(request, named(request, model, version), header_length)


async def _infer(request: Request, classifier: Classifier, header_length: str | None) -> Response:
    uploads: Uploads = request.app.state.uploads
    crop = classifier.model.preprocessing.crop
    if header_length is None and request.headers.get("content-type") == "application/octet-stream":
        header_length = "0"
    return await answer(request, _FORM, lambda content: read(content, header_length, uploads, crop))


def _metadata(classifier: Classifier) -> dict[str, Any]:
    classes = len(classifier.model.labels)
    return {
        "name": classifier.model.name,
        "versions": [VERSION],
        "platform": classifier.engine.name,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, classes]} for name in ("scores", "logits")],
    }


def routes(settings: Settings) -> APIRouter:
    """Its routes."""
    router = APIRouter(prefix="/v2", tags=[NAME])
    unready = schemas.errors([503], said, SAID)
    unknown = schemas.errors([404, 503], said, SAID)
    locked = schemas.errors([401, 404, 503], said, SAID)
    keyed = schemas.errors([401], said, SAID)
    key = [Depends(require_key)]
    router.get("/health/live", summary="Alive", responses=unready | _ok({"live": True}))(live)
    router.get("/health/ready", summary="Ready", responses=unready | _ok({"ready": True}))(ready)
    router.get("", summary="Server metadata", dependencies=key, responses=keyed | _ok(_SERVER))(server)
    each = (("", model_ready, model, infer), ("/versions/{version}", version_ready, model_version, infer_version))
    for version, is_ready, metadata, inference in each:
        path = f"/models/{{model}}{version}"
        of = " of a version" if version else ""
        router.get(f"{path}/ready", summary=f"Model ready{of}", responses=unknown | _ok(_READY))(is_ready)
        router.get(path, summary=f"Model metadata{of}", dependencies=key, responses=locked | _ok(_METADATA))(metadata)
        router.post(
            f"{path}/infer",
            summary=f"Inference{of}",
            dependencies=gate(_FORM),
            responses=schemas.errors(schemas.NAMING, said, SAID)
            | {200: schemas.answer(_ANSWER, _SHAPE, "application/octet-stream")},
            openapi_extra=_BODY,
        )(inference)
    return router


def _ok(example: dict[str, Any]) -> schemas.Responses:
    return {200: schemas.answer(example)}


_SERVER = {"name": "topk", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
_READY = {"name": "resnet50", "ready": True}
_METADATA = {
    "name": "resnet50",
    "versions": [VERSION],
    "platform": "openvino",
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 1000]} for name in ("scores", "logits")],
}
_ANSWER = {
    "model_name": "resnet50",
    "model_version": VERSION,
    "id": "42",
    "outputs": [
        {
            "name": "scores",
            "datatype": "BYTES",
            "shape": [1, 2],
            "data": ["0.386400:285:Egyptian cat", "0.363200:282:tiger cat"],
        }
    ],
}
_OUTPUT = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"enum": ["scores", "logits"]},
        "datatype": {"enum": ["BYTES", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "items": {"type": ["number", "string"]}},
        "parameters": {"type": "object"},
    },
}
_SHAPE = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_BODY = schemas.document(
    {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"], "maxLength": _ID_CHARACTERS},
            "parameters": {
                "type": ["object", "null"],
                "properties": {"binary_data_output": {"type": "boolean"}},
            },
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype", "data"],
                    "properties": {
                        "name": {"type": "string"},
                        "shape": {
                            "type": "array",
                            "maxItems": DIMENSIONS,
                            "items": {"type": "integer", "minimum": 1, "maximum": MOST},
                        },
                        "datatype": {"enum": ["BYTES", "FP32"]},
                        "data": {
                            "anyOf": [
                                {"type": "array", "minItems": 1, "items": schemas.ONE_BASE64},
                                {"type": "array", "items": {"type": ["number", "array"]}},
                            ]
                        },
                    },
                },
            },
            "outputs": {
                "type": ["array", "null"],
                "maxItems": _OUTPUTS,
                "description": "No two the same: each whole, or only its best classes.",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": ["scores", "logits"]},
                        "parameters": {
                            "type": ["object", "null"],
                            "properties": {
                                "classification": {"type": "integer", "minimum": 1, "maximum": MOST},
                                "binary_data": {"type": "boolean"},
                            },
                        },
                    },
                },
            },
        },
    },
    {
        "id": "42",
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [schemas.CAT]}],
        "outputs": [{"name": "scores", "parameters": {"classification": 5}}],
    },
    "application/octet-stream",
)
