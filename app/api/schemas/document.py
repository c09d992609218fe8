"""pydantic models to the parts of an OpenAPI document that FastAPI does not write itself."""

from typing import Any

from pydantic import BaseModel, TypeAdapter

Schema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]
"""The ``responses`` of a FastAPI route."""

BINARY: Schema = {"type": "string", "format": "binary", "description": "An image file."}
_REFERENCE = "#/components/schemas/{model}"
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "Milliseconds to wait for the response after the last byte of the body, up to the server's limit.",
    "schema": {"type": "integer", "minimum": 1},
}


def schema(kind: Any) -> Schema:
    """The schema of a type. ``openapi.describe`` moves the ``$defs`` in it to the document's components."""
    described: Schema = TypeAdapter(kind).json_schema(ref_template=_REFERENCE)
    return described


def without_null(of: Schema) -> Schema:
    """The schema of a value that cannot be null, such as a query parameter or a form field."""
    kinds = [kind for kind in of.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return of
    kind: Schema = kinds[0]
    return {name: value for name, value in of.items() if name not in ("anyOf", "default")} | kind


def body(content: dict[str, Schema]) -> dict[str, Any]:
    """The request body of a route, by media type, for ``openapi_extra``. The routes read it from the stream."""
    return {"requestBody": {"required": True, "content": content}, "parameters": [_TIMEOUT]}


def with_query(described: dict[str, Any], options: type[BaseModel]) -> dict[str, Any]:
    """The ``openapi_extra`` of a route whose query may have these options, which FastAPI does not parse."""
    of = schema(options)
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": value["description"],
            "schema": without_null(value) | {"$defs": of.get("$defs", {})},
        }
        for name, value in of.get("properties", {}).items()
    ]
    return described | {"parameters": [*parameters, *described["parameters"]]}


def json_body(kind: type[BaseModel], example: Any, *binary: str) -> dict[str, Any]:
    """A JSON body for ``openapi_extra``. ``binary``: media types of image files that the route also accepts."""
    content: dict[str, Schema] = {"application/json": {"schema": schema(kind), "example": example}}
    return body(content | {media_type: {"schema": BINARY} for media_type in binary})


def response(kind: Any, example: Any, *binary: str) -> dict[str, Any]:
    """A JSON response for ``responses``. ``binary``: media types that it may have instead."""
    content: dict[str, Schema] = {"application/json": {"schema": schema(kind), "example": example}}
    content |= {media_type: {"schema": BINARY} for media_type in binary}
    return {"description": "Successful response", "content": content}
