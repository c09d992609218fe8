"""The OpenAPI document: FastAPI's, with what only the running service knows, and without what is not so of it."""

import copy
from collections.abc import Iterator
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

from app.api import schemas
from app.settings import Settings

Operation = dict[str, Any]
_Served = tuple[str, int] | None


def describe(app: FastAPI, settings: Settings) -> None:
    """Make ``/openapi.json`` that of this service, rendered once: before its model is known, and once it is loaded."""
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
    """The name of the model and its number of classes; None while it is not known."""
    classifier = app.state.classifier
    return (classifier.model.name, len(classifier.model.labels)) if classifier.ready else None


def _settle(document: dict[str, Any], most_images: int, keyed: bool) -> None:
    """What does not depend on the model: FastAPI presumes keys, its own 422, and that a query can hold null."""
    components = document["components"]
    components["schemas"] |= copy.deepcopy(schemas.COMPONENTS)  # ``_fit`` changes them
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    if not keyed:
        del components["securitySchemes"]
    for operation in _operations(document):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
        if not keyed:
            operation.pop("security", None)
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        _bound(operation.get("requestBody"), most_images)


def _fit(document: dict[str, Any], model: str, classes: int) -> None:
    """The served model's name as the example of every path that has one, and its classes as the most there are."""
    document["components"]["schemas"]["TopK"]["maximum"] = classes
    for operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            match parameter["in"], parameter["name"]:
                case "path", "model":
                    parameter["example"] = model
                case "query", "top_k":
                    parameter["schema"]["maximum"] = classes


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for methods in document["paths"].values():
        yield from methods.values()


def _bound(schema: Any, most_images: int) -> None:
    """Lists of at least one, within a request, are of images: those have a most as well."""
    if isinstance(schema, dict):
        if schema.get("minItems") == 1:
            schema.setdefault("maxItems", most_images)
        for value in schema.values():
            _bound(value, most_images)
    elif isinstance(schema, list):
        for value in schema:
            _bound(value, most_images)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    kind: dict[str, Any] = kinds[0]
    return {name: value for name, value in schema.items() if name != "anyOf"} | kind
