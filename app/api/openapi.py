"""The OpenAPI document: FastAPI's, completed with what the running service knows."""

from collections.abc import Iterator
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

from app.api import health, pages, routes
from app.api.gate import KEY_SCHEMES
from app.api.schemas.document import without_null
from app.api.service import Service
from app.settings import Settings

Operation = dict[str, Any]
_Served = tuple[str, int] | None

_TAGS = {
    routes.CLASSIFY: "Classes of images",
    routes.EMBED: "Embeddings of images",
    routes.WORDNET: "The model's classes in WordNet",
    routes.INFO: "The served model, its costs and limits",
    pages.TAG: "The web page",
    health.TAG: "Probes and metrics",
    "v2": "Open Inference Protocol v2: KServe, Triton, MLServer, OpenVINO Model Server",
    "kserve-v1": "KServe protocol v1 and TensorFlow Serving",
    "torchserve": "TorchServe",
    "huggingface": "Hugging Face image classification",
    "sagemaker": "Amazon SageMaker",
    "vertex": "Google Vertex AI",
    "litserve": "LitServe",
}
"""Every tag in the order of ``/docs``."""


def describe(app: FastAPI, settings: Settings) -> None:
    """Serve ``/openapi.json``. It is rendered once before the model is loaded, and once after."""
    described = app.openapi
    rendered: dict[tuple[_Served, str], bytes] = {}
    fitted: _Served = None

    def openapi() -> dict[str, Any]:
        nonlocal fitted
        if app.openapi_schema is None:
            _settle(described(), settings.max_batch_images, keyed=bool(settings.api_keys or settings.api_keys_file))
        document: dict[str, Any] = described()
        if (now := _served(app)) and now != fitted:
            _fit(document, *now)
            fitted = now
        return document

    async def respond(request: Request) -> Response:
        root: str = request.scope.get("root_path", "").rstrip("/")
        key = (_served(app), root)
        if key not in rendered:
            document = openapi()
            rendered[key] = orjson.dumps({**document, "servers": [{"url": root}]} if root else document)
        return Response(rendered[key], media_type="application/json")

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_route("/openapi.json", respond, include_in_schema=False)


def _served(app: FastAPI) -> _Served:
    """The model's name and its number of classes; None before it is loaded."""
    service = app.state.service
    assert isinstance(service, Service)
    model = service.classifier.model if service.classifier.ready else None
    return (model.name, len(model.labels)) if model else None


def _settle(document: dict[str, Any], most_images: int, keyed: bool) -> None:
    """Everything that does not depend on the model.

    Orders the tags, removes FastAPI's own 422 and null in a query, and adds the API keys to operations that check them.
    """
    components = document["components"]
    _hoist(document["paths"], components["schemas"])
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    if keyed:
        components["securitySchemes"] = KEY_SCHEMES
    for operation in _operations(document):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = without_null(parameter["schema"])
        if keyed and "401" in operation["responses"]:
            operation["security"] = [{name: []} for name in KEY_SCHEMES]
        _bound(operation.get("requestBody"), most_images)
    order = list(_TAGS)
    used = {tag for operation in _operations(document) for tag in operation["tags"]}
    document["tags"] = [{"name": tag, "description": text} for tag, text in _TAGS.items() if tag in used]
    document["paths"] = dict(
        sorted(
            document["paths"].items(),
            key=lambda item: min(order.index(operation["tags"][0]) for operation in item[1].values()),
        )
    )


def _fit(document: dict[str, Any], model: str, classes: int) -> None:
    """The model's name as the example of paths, and its number of classes as the largest ``top_k``."""
    document["components"]["schemas"]["TopK"]["maximum"] = classes
    for operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            if (parameter["in"], parameter["name"]) == ("path", "model"):
                parameter["example"] = model


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for methods in document["paths"].values():
        yield from methods.values()


def _hoist(value: Any, components: dict[str, Any]) -> None:
    """Move the definitions within routes to the components, which their references name."""
    if isinstance(value, dict):
        for name, definition in value.pop("$defs", {}).items():
            _hoist(definition, components)
            components.setdefault(name, definition)
        for member in value.values():
            _hoist(member, components)
    elif isinstance(value, list):
        for member in value:
            _hoist(member, components)


def _bound(value: Any, most_images: int) -> None:
    """Lists of at least one element, within a request, are lists of images: add the largest number."""
    if isinstance(value, dict):
        if value.get("minItems") == 1:
            value.setdefault("maxItems", most_images)
        for member in value.values():
            _bound(member, most_images)
    elif isinstance(value, list):
        for member in value:
            _bound(member, most_images)
