"""The shapes of the API's answers, for the documentation; the routes write them with orjson."""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, Field

from app.api.problems import MEDIA_TYPE, problem
from app.errors import (
    DeadlineExceeded,
    MalformedRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    TopkError,
    Unauthorized,
    UndecodableImage,
    UnsupportedMediaType,
    UploadTimeout,
)


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
    embedding: list[float] | str = Field(
        description="Numbers, or base64 of little-endian float32; of length 1 with `normalize`."
    )


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


class Preprocessing(BaseModel):
    resize: int
    crop: int
    interpolation: str
    mean: list[float]
    std: list[float]
    squash: bool = Field(description="Both edges are resized, not the shorter one alone.")


class Decoding(BaseModel):
    fast: bool = Field(description="JPEGs are decoded at a smaller scale where that changes no answer.")
    ahead_of_queue: bool
    heic: bool = Field(description="HEIC is decoded as well.")


class Batching(BaseModel):
    streams: int
    ceiling: int = Field(description="Images of the largest batch.")
    cost_ms: dict[str, float] = Field(description="Milliseconds of a batch, by its images.")
    alone_ms: float | None


class Limits(BaseModel):
    max_upload_bytes: int
    max_body_bytes: int
    max_batch_images: int
    max_inflight_bytes: int
    max_pixels: int
    decode_pixels: int
    request_timeout_ms: int


class Info(BaseModel):
    model: str
    architecture: str
    weights: str
    digest: str
    classes: int
    dim: int = Field(description="Numbers of an embedding.")
    engine: str
    device: str
    precision: str
    compilation: str
    preprocessing: Preprocessing
    decode: Decoding
    batching: Batching
    limits: Limits
    warning: str | None = Field(None, description="What its operator should know.")


class Problem(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:topk:problem:unsupported_media_type"])
    title: str
    status: int = Field(examples=[415])
    detail: str
    code: str = Field(examples=["unsupported_media_type"])
    request_id: str
    retry_after_ms: int | None = Field(None, description="With `overloaded`.")


_PREDICTIONS = [
    {"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.3864},
    {"class_id": 282, "wnid": "n02123159", "label": "tiger cat", "score": 0.3632},
]
_MODEL = {"model": "resnet50", "weights": "IMAGENET1K_V2"}
_FAILED = {"filename": "notes.txt", "error": {"code": "unsupported_media_type", "detail": "the bytes are no image"}}
PREDICTED: dict[str, Any] = _MODEL | {"predictions": _PREDICTIONS}
BATCH: dict[str, Any] = _MODEL | {"results": [{"filename": "cat.jpg", "predictions": _PREDICTIONS}, _FAILED]}
EMBEDDED: dict[str, Any] = {"model": "resnet50", "dim": 2048, "embedding": [0.0423, 0.0, 0.1429]}
EMBEDDED_BATCH: dict[str, Any] = {
    "model": "resnet50",
    "dim": 2048,
    "results": [{"filename": "cat.jpg", "embedding": [0.0423, 0.0, 0.1429]}, _FAILED],
}
INFO: dict[str, Any] = {
    "model": "resnet50",
    "architecture": "resnet50",
    "weights": "IMAGENET1K_V2",
    "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "classes": 1000,
    "dim": 2048,
    "engine": "openvino",
    "device": "cpu",
    "precision": "bfloat16",
    "compilation": "compiled",
    "preprocessing": {
        "resize": 232,
        "crop": 224,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "squash": False,
    },
    "decode": {"fast": True, "ahead_of_queue": False, "heic": True},
    "batching": {"streams": 2, "ceiling": 4, "cost_ms": {"1": 18.2, "2": 25.6, "4": 43.1}, "alone_ms": 10.4},
    "limits": {
        "max_upload_bytes": 20971520,
        "max_body_bytes": 67108864,
        "max_batch_images": 32,
        "max_inflight_bytes": 536870912,
        "max_pixels": 50000000,
        "decode_pixels": 315956377,
        "request_timeout_ms": 10000,
    },
}
SYNSET: dict[str, Any] = {
    "wnid": "n02122948",
    "label": "kitten",
    "gloss": "young domestic cat",
    "parents": [{"wnid": "n02121808", "label": "domestic cat"}],
    "children": [],
    "leaves": [],
}

# docs/cat.jpg at 48x48, as WebP: an example that can be tried as it stands
CAT = (
    "UklGRoYBAABXRUJQVlA4IHoBAABQCQCdASowADAAPuVcpk6pJSOiPHgIASAciUOAAZ29bGDcBUPGz4YaFEg5vO3gYSTFmzZbTa35LbulrWAe"
    "DswPbpoGWQNyMM152YcstYDxyiuWYADNYvNmc+nWJB/JGDmr9hgGBoSrFKiZLjjCaSdFWk0iTjNrj9sKvpA8xLPHmB/InitFSob/sGCkB9lG"
    "4iM/m/l7dUvf3MbQFGRP+OxfvRaXccK2GKXijPs4X2x83sJWTi7YJD8Y8VqIsr3Nj3T6uUukyZXMnziVK0USGXYHcv4vGbDTsuQfhQHCo+qn"
    "i8UA2jV3kU8fjpYfQaLxwZ3OdbgAXi70SAkXaMHgGMUgo/0y7aM4Z0XW/6z/hx4a+vLecNz53Q1Ith75WKvougYI1u9AKlEYmrjxscauQ3bZ"
    "+4w0bK2wO6KU4r70LUYQeO2+bjbFWbYz4fXYVSoDGbTYfZ/vcQHvU8KTynxkKqanmG+z/yN8O+OfCCKHBJpbejW8YcsCG/8AAAA="
)
BINARY = {"type": "string", "format": "binary", "description": "An image's file."}
BASE64 = {
    "type": "string",
    "format": "byte",
    "description": "An image's file in base64. A `data:` URL is taken as well.",
}
ONE_BASE64 = BASE64 | {"minLength": 1}
TOP_K = {"$ref": "#/components/schemas/TopK"}
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
COMPONENTS: dict[str, dict[str, Any]] = {
    "Problem": Problem.model_json_schema(),
    "TopK": {"type": "integer", "minimum": 1, "description": "How many classes, at most those of the model."},
}
"""What is named in the document, beside the models that routes name to FastAPI."""

_ERRORS: dict[int, tuple[str, TopkError]] = {
    400: (
        "`empty_body`, `invalid_parameter` or `malformed_request`",
        MalformedRequest("the image is no valid base64"),
    ),
    401: ("`unauthorized`, where the server has API keys", Unauthorized("the API key is not known")),
    404: ("`not_found`: another name than is served", NotFound("no model another is served here, but resnet50")),
    408: ("`upload_timeout`", UploadTimeout("the body did not come in time")),
    413: ("`payload_too_large`", PayloadTooLarge("an image of more than 20971520 bytes")),
    415: ("`unsupported_media_type`", UnsupportedMediaType("the bytes are no image format that is decoded here")),
    422: ("`undecodable_image` or `too_many_pixels`", UndecodableImage("the image is truncated")),
    429: ("`rate_limited`", RateLimited("more images than the rate limit, 600/minute, grants", 12.0)),
    503: ("`overloaded` (with `Retry-After`) or `not_ready`", Overloaded("the answer would come too late", 1.4)),
    504: ("`deadline_exceeded`", DeadlineExceeded("the answer did not come in time")),
}
NAMING = tuple(_ERRORS)
"""What an upload to a model by its name may fail with."""
UPLOADING = tuple(status for status in _ERRORS if status != 404)
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}

_OTHER_PART = {"type": "string", "maxLength": 64, "description": "Ignored; at most 32 of them, of 256 bytes each."}
_IMAGES = ("image/jpeg", "image/png")

Responses = dict[int | str, dict[str, Any]]


def _problem(error: TopkError) -> dict[str, Any]:
    return problem(error, "0f8fad5bd9cb469fa16570867728950e")


def errors(
    statuses: Iterable[int] = UPLOADING,
    shape: Callable[[TopkError], dict[str, Any]] = _problem,
    schema: dict[str, Any] = _PROBLEM,
) -> Responses:
    """What a route answers where it fails, for ``responses``: in a protocol's shape, else as ``Problem``."""
    kind = MEDIA_TYPE if shape is _problem else "application/json"
    return {status: _error(status, kind, shape, schema) for status in statuses}


def _error(status: int, kind: str, shape: Callable[[TopkError], dict[str, Any]], schema: dict[str, Any]) -> Any:
    description, error = _ERRORS[status]
    described = {"description": description, "content": {kind: {"schema": schema, "example": shape(error)}}}
    return described | ({"headers": _RETRY_AFTER} if error.retry_after_s else {})


def shown(example: dict[str, Any]) -> Responses:
    """The example of a route's answer, whose schema FastAPI knows."""
    return {200: {"content": {"application/json": {"example": example}}}}


_PATIENCE = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "Milliseconds to wait for the answer once the body has come; the server's own limit is the most.",
    "schema": {"type": "integer", "minimum": 1},
}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}, "parameters": [_PATIENCE]}


def image_body(
    several: bool, field: str = "file", json: dict[str, Any] | None = None, example: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The request body for ``openapi_extra``: the routes read it themselves, from the stream."""
    key = "images" if several else "image"
    part: dict[str, Any] = {"type": "array", "minItems": 1, "items": BINARY} if several else BINARY
    value: dict[str, Any] = {"type": "array", "minItems": 1, "items": BASE64} if several else ONE_BASE64
    json = json or {"type": "object", "required": [key], "properties": {key: value}}
    example = example or {key: [CAT, f"data:image/webp;base64,{CAT}"] if several else CAT}
    content: dict[str, Any] = {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [field],
                "properties": {field: part},
                "additionalProperties": _OTHER_PART,
            },
            "encoding": {field: {"contentType": ", ".join(_IMAGES)}},
        },
        "application/json": {"schema": json, "example": example},
    }
    if not several:
        content |= {kind: {"schema": BINARY} for kind in (*_IMAGES, "application/octet-stream")}
    return _body(content)


def document(schema: dict[str, Any], example: dict[str, Any], *also: str) -> dict[str, Any]:
    """A body of JSON for ``openapi_extra``; ``also`` are the media types of bytes that the same route takes."""
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    return _body(content | {kind: {"schema": BINARY} for kind in also})


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
