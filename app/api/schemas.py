"""The shapes of the API's answers, for the documentation; the routes write them with orjson."""

from typing import Any

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    class_id: int = Field(examples=[258])
    wnid: str | None = Field(description="WordNet id, null where the model has none.", examples=["n02111889"])
    label: str = Field(examples=["Samoyed"])
    score: float = Field(description="Softmax probability.", examples=[0.8846])


class PredictAnswer(BaseModel):
    model: str = Field(examples=["resnet50"])
    weights: str = Field(examples=["IMAGENET1K_V2"])
    predictions: list[Prediction] = Field(description="Highest score first.")


class ItemError(BaseModel):
    code: str = Field(examples=["undecodable_image"])
    detail: str


class BatchItem(BaseModel):
    filename: str | None
    predictions: list[Prediction] | None = Field(None, description="Absent where the image failed.")
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
_CAT = (
    "UklGRoYBAABXRUJQVlA4IHoBAABQCQCdASowADAAPuVcpk6pJSOiPHgIASAciUOAAZ29bGDcBUPGz4YaFEg5vO3gYSTFmzZbTa35LbulrWAe"
    "DswPbpoGWQNyMM152YcstYDxyiuWYADNYvNmc+nWJB/JGDmr9hgGBoSrFKiZLjjCaSdFWk0iTjNrj9sKvpA8xLPHmB/InitFSob/sGCkB9lG"
    "4iM/m/l7dUvf3MbQFGRP+OxfvRaXccK2GKXijPs4X2x83sJWTi7YJD8Y8VqIsr3Nj3T6uUukyZXMnziVK0USGXYHcv4vGbDTsuQfhQHCo+qn"
    "i8UA2jV3kU8fjpYfQaLxwZ3OdbgAXi70SAkXaMHgGMUgo/0y7aM4Z0XW/6z/hx4a+vLecNz53Q1Ith75WKvougYI1u9AKlEYmrjxscauQ3bZ"
    "+4w0bK2wO6KU4r70LUYQeO2+bjbFWbYz4fXYVSoDGbTYfZ/vcQHvU8KTynxkKqanmG+z/yN8O+OfCCKHBJpbejW8YcsCG/8AAAA="
)
_BINARY = {"type": "string", "format": "binary"}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status, text in {
        400: "`empty_body`, `invalid_parameter` or `malformed_request`",
        401: "`unauthorized`",
        408: "`upload_timeout`",
        413: "`payload_too_large`",
        415: "`unsupported_media_type`",
        422: "`undecodable_image` or `too_many_pixels`",
        503: "`overloaded` (with `Retry-After`) or `not_ready`",
        504: "`deadline_exceeded`",
    }.items()
}


def image_body(several: bool) -> dict[str, Any]:
    """The request body for ``openapi_extra``: the routes read it themselves, from the stream."""
    if several:
        part: dict[str, Any] = {"type": "array", "items": _BINARY}
        json = {
            "type": "object",
            "required": ["images"],
            "properties": {"images": {"type": "array", "items": {"type": "string"}}},
        }
        example: dict[str, Any] = {"images": [_CAT, f"data:image/webp;base64,{_CAT}"]}
    else:
        part = _BINARY
        json = {"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}}
        example = {"image": _CAT}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": part}}},
        "application/json": {"schema": json, "example": example},
    }
    if not several:
        content |= {kind: {"schema": _BINARY} for kind in ("image/jpeg", "image/png", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": content}}
