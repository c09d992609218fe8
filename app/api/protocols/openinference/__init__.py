"""Open Inference Protocol v2 over REST, as in KServe, Triton, MLServer and OpenVINO Model Server.

With the binary, raw and classification extensions: kserve's ``docs/predict-api/v2/required_api.md``, Triton's
``extension_binary_data.md`` and ``extension_classification.md``.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request
from starlette.responses import Response

from app.api import health
from app.api.answers import as_json
from app.api.forms import Form, media_type
from app.api.gate import gate, require_key
from app.api.protocols.inquiries import answer
from app.api.protocols.openinference import schemas
from app.api.protocols.openinference.inference import BINARY_HEADER, read
from app.api.protocols.protocol import VERSION, ErrorMessage, ModelName, Protocol, error_message, named
from app.api.schemas.document import json_body, response
from app.api.schemas.errors import NAMED, errors
from app.api.service import Service
from app.classifier import Classifier
from app.settings import Settings

NAME = "v2"
_FORM = Form(several=True, fields=())

AnyVersion = Annotated[str, Path(description="Any version: the served one answers.", examples=[VERSION])]
HeaderLength = Annotated[
    str | None,
    Header(
        alias=BINARY_HEADER,
        description="Bytes of JSON before the binary tensors; 0 for an image alone.",
        json_schema_extra={"pattern": "^[0-9]{1,11}$"},
    ),
]


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
    return as_json(schemas.SERVER)


async def model_ready(request: Request, model: ModelName) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    named(request, model)
    return as_json({"name": model, "ready": True})


async def version_ready(request: Request, model: ModelName, version: AnyVersion) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    health.check_ready(request)
    named(request, model)
    return as_json({"name": model, "ready": True})


async def model(request: Request, model: ModelName) -> Response:
    """The model's inputs and outputs. Preprocessed images, FP32 `[n, 3, H, W]`, are accepted as well."""
    return as_json(_metadata(named(request, model)))


async def model_version(request: Request, model: ModelName, version: AnyVersion) -> Response:
    """The model's inputs and outputs."""
    return as_json(_metadata(named(request, model)))


async def infer(request: Request, model: ModelName, header_length: HeaderLength = None) -> Response:
    """Classify images: files as BYTES (base64 in JSON), or preprocessed tensors as FP32."""
    return await _infer(request, named(request, model), header_length)


async def infer_version(
    request: Request, model: ModelName, version: AnyVersion, header_length: HeaderLength = None
) -> Response:
    """The same for a version."""
    return await _infer(request, named(request, model), header_length)


async def _infer(request: Request, classifier: Classifier, header_length: str | None) -> Response:
    uploads = Service.of(request).uploads
    crop = classifier.model.preprocessing.crop
    binary = media_type(request) == "application/octet-stream"
    return await answer(request, _FORM, lambda content: read(content, header_length, binary, uploads, crop))


def _metadata(classifier: Classifier) -> dict[str, object]:
    classes = len(classifier.model.labels)
    return {
        "name": classifier.model.name,
        "versions": [VERSION],
        "platform": classifier.engine.name,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, classes]} for name in ("scores", "logits")],
    }


def routes(settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=[NAME])
    unready = errors([503], ErrorMessage, error_message)
    unknown = errors([404, 503], ErrorMessage, error_message)
    locked = errors([401, 404, 503], ErrorMessage, error_message)
    keyed = errors([401], ErrorMessage, error_message)
    key = [Depends(require_key)]
    alive = unready | {200: response(schemas.ServerLive, {"live": True})}
    router.get("/health/live", summary="Liveness", responses=alive)(live)
    prepared = unready | {200: response(schemas.ServerReady, {"ready": True})}
    router.get("/health/ready", summary="Readiness", responses=prepared)(ready)
    described = keyed | {200: response(schemas.ServerMetadata, schemas.SERVER)}
    router.get("", summary="Server metadata", dependencies=key, responses=described)(server)
    each = (("", model_ready, model, infer), ("/versions/{version}", version_ready, model_version, infer_version))
    for version, is_ready, metadata, inference in each:
        path = f"/models/{{model}}{version}"
        suffix = " of a version" if version else ""
        named_ready = unknown | {200: response(schemas.ModelReady, {"name": "resnet50", "ready": True})}
        router.get(f"{path}/ready", summary=f"Model readiness{suffix}", responses=named_ready)(is_ready)
        model_metadata = locked | {200: response(schemas.ModelMetadata, schemas.METADATA)}
        router.get(path, summary=f"Model metadata{suffix}", dependencies=key, responses=model_metadata)(metadata)
        router.post(
            f"{path}/infer",
            summary=f"Inference{suffix}",
            dependencies=gate(_FORM),
            responses=errors(NAMED, ErrorMessage, error_message)
            | {200: response(schemas.InferResponse, schemas.INFERRED, "application/octet-stream")},
            openapi_extra=json_body(schemas.InferRequest, schemas.REQUEST, "application/octet-stream"),
        )(inference)
    return router


PROTOCOL = Protocol(NAME, routes, prefix="/v2/", error_body=error_message)
