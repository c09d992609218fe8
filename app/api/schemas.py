"""The shapes of the API's answers, for the documentation; the routes write them with orjson."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    class_id: int = Field(examples=[258])
    wnid: str | None = Field(description="WordNet id, null where the model has none.", examples=["n02111889"])
    label: str = Field(examples=["Samoyed"])
    score: float = Field(description="Softmax probability.", examples=[0.8846])


class Summed(BaseModel):
    wnid: str = Field(examples=["n02084071"])
    label: str = Field(examples=["dog"])
    score: float = Field(description="Sum over the classes at or below it.", examples=[0.9712])


_PATH = "With `taxonomy=true`: the way through WordNet from the root to the best class, by the highest scores."
_ANSWER = "With `taxonomy=true`: what has the fewest classes below it of all whose score reaches `confidence`."


class PredictAnswer(BaseModel):
    model: str = Field(examples=["resnet50"])
    weights: str = Field(examples=["IMAGENET1K_V2"])
    predictions: list[Prediction] = Field(description="Highest score first.")
    taxonomy: list[Summed] | None = Field(None, description=_PATH)
    answer: Summed | None = Field(None, description=_ANSWER)


class ItemError(BaseModel):
    code: str = Field(examples=["undecodable_image"])
    detail: str


class BatchItem(BaseModel):
    filename: str | None
    predictions: list[Prediction] | None = Field(None, description="Absent where the image failed.")
    taxonomy: list[Summed] | None = Field(None, description=_PATH)
    answer: Summed | None = Field(None, description=_ANSWER)
    error: ItemError | None = Field(None, description="Absent where the image was classified.")


class BatchAnswer(BaseModel):
    model: str
    weights: str
    results: list[BatchItem] = Field(description="One an image, in order.")


class EmbedAnswer(BaseModel):
    model: str
    dim: int = Field(examples=[2048])
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class EmbedItem(BaseModel):
    filename: str | None
    embedding: list[float] | str | None = Field(None, description="Absent where the image failed.")
    error: ItemError | None = None


class EmbedBatchAnswer(BaseModel):
    model: str
    dim: int
    results: list[EmbedItem]


class Named(BaseModel):
    wnid: str = Field(examples=["n02083346"])
    label: str = Field(examples=["canine"])


class Leaf(Named):
    class_id: int = Field(examples=[258])
    wnid: str = Field(examples=["n02111889"])
    label: str = Field(examples=["Samoyed"])


class Synset(BaseModel):
    wnid: str = Field(examples=["n02084071"])
    label: str = Field(description="The class's own, and above the classes WordNet's first word.", examples=["dog"])
    gloss: str = Field(description="What it is, in WordNet's words.")
    parents: list[Named] = Field(description="None above the root, sometimes several.")
    children: list[Named] = Field(description="Only those that classes of the model are at or below.")
    leaves: list[Leaf] = Field(description="The model's classes at or below it.")


class Problem(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:topk:problem:unsupported_media_type"])
    title: str
    status: int = Field(examples=[415])
    detail: str
    code: str = Field(examples=["unsupported_media_type"])
    request_id: str
    retry_after_ms: int | None = Field(None, description="With `overloaded`.")


# docs/cat.jpg at 48x48, as WebP: an example that can be tried as it stands
CAT = (
    "UklGRoYBAABXRUJQVlA4IHoBAABQCQCdASowADAAPuVcpk6pJSOiPHgIASAciUOAAZ29bGDcBUPGz4YaFEg5vO3gYSTFmzZbTa35LbulrWAe"
    "DswPbpoGWQNyMM152YcstYDxyiuWYADNYvNmc+nWJB/JGDmr9hgGBoSrFKiZLjjCaSdFWk0iTjNrj9sKvpA8xLPHmB/InitFSob/sGCkB9lG"
    "4iM/m/l7dUvf3MbQFGRP+OxfvRaXccK2GKXijPs4X2x83sJWTi7YJD8Y8VqIsr3Nj3T6uUukyZXMnziVK0USGXYHcv4vGbDTsuQfhQHCo+qn"
    "i8UA2jV3kU8fjpYfQaLxwZ3OdbgAXi70SAkXaMHgGMUgo/0y7aM4Z0XW/6z/hx4a+vLecNz53Q1Ith75WKvougYI1u9AKlEYmrjxscauQ3bZ"
    "+4w0bK2wO6KU4r70LUYQeO2+bjbFWbYz4fXYVSoDGbTYfZ/vcQHvU8KTynxkKqanmG+z/yN8O+OfCCKHBJpbejW8YcsCG/8AAAA="
)
BINARY = {"type": "string", "format": "binary"}

_TEXTS = {
    400: "`empty_body`, `invalid_parameter` or `malformed_request`",
    401: "`unauthorized`",
    404: "`not_found`: another name than is served",
    408: "`upload_timeout`",
    413: "`payload_too_large`",
    415: "`unsupported_media_type`",
    422: "`undecodable_image` or `too_many_pixels`",
    429: "`rate_limited`",
    503: "`overloaded` (with `Retry-After`) or `not_ready`",
    504: "`deadline_exceeded`",
}

Responses = dict[int | str, dict[str, Any]]


def errors(media_type: str, schema: dict[str, Any], statuses: Iterable[int] = _TEXTS) -> Responses:
    """What a route answers where it fails, for ``responses``."""
    return {status: {"description": _TEXTS[status], "content": {media_type: {"schema": schema}}} for status in statuses}


ERRORS = errors("application/problem+json", Problem.model_json_schema(), sorted(_TEXTS.keys() - {404}))
UNKNOWN_WNID = errors("application/problem+json", Problem.model_json_schema(), [404])


def image_body(
    several: bool, field: str = "file", json: dict[str, Any] | None = None, example: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The request body for ``openapi_extra``: the routes read it themselves, from the stream."""
    key = "images" if several else "image"
    text = {"type": "string"}
    part: dict[str, Any] = {"type": "array", "items": BINARY} if several else BINARY
    value: dict[str, Any] = {"type": "array", "items": text} if several else text
    json = json or {"type": "object", "required": [key], "properties": {key: value}}
    example = example or {key: [CAT, f"data:image/webp;base64,{CAT}"] if several else CAT}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": {"type": "object", "required": [field], "properties": {field: part}}},
        "application/json": {"schema": json, "example": example},
    }
    if not several:
        content |= {kind: {"schema": BINARY} for kind in ("image/jpeg", "image/png", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": content}}


def document(schema: dict[str, Any], example: dict[str, Any], *also: str) -> dict[str, Any]:
    """A body of JSON for ``openapi_extra``; ``also`` are the media types of bytes that the same route takes."""
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    content |= {kind: {"schema": BINARY} for kind in also}
    return {"requestBody": {"required": True, "content": content}}


def answer(example: Any, schema: dict[str, Any] | None = None, *also: str) -> dict[str, Any]:
    """A JSON answer, of this schema or like the example; ``also`` are the media types it may have as well."""
    content: dict[str, Any] = {"application/json": {"schema": schema or _like(example), "example": example}}
    content |= {kind: {"schema": BINARY} for kind in also}
    return {"description": "As asked", "content": content}


def _like(example: Any) -> dict[str, Any]:
    """The schema of values like this one: objects with the same members, lists of the same items."""
    match example:
        case dict():
            return {
                "type": "object",
                "required": list(example),
                "properties": {name: _like(value) for name, value in example.items()},
            }
        case list():
            return {"type": "array", "items": _like(example[0]) if example else {}}
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
    return {"type": "string"}
