"""Request bodies: images as files or base64, and the options beside them."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema

from app.api.options import EmbedOptions, Options, PredictOptions
from app.api.schemas.document import BINARY, Schema, body, schema, with_query, without_null

# docs/cat.jpg at 48x48, as WebP: an example that works
CAT = (
    "UklGRoYBAABXRUJQVlA4IHoBAABQCQCdASowADAAPuVcpk6pJSOiPHgIASAciUOAAZ29bGDcBUPGz4YaFEg5vO3gYSTFmzZbTa35LbulrWAe"
    "DswPbpoGWQNyMM152YcstYDxyiuWYADNYvNmc+nWJB/JGDmr9hgGBoSrFKiZLjjCaSdFWk0iTjNrj9sKvpA8xLPHmB/InitFSob/sGCkB9lG"
    "4iM/m/l7dUvf3MbQFGRP+OxfvRaXccK2GKXijPs4X2x83sJWTi7YJD8Y8VqIsr3Nj3T6uUukyZXMnziVK0USGXYHcv4vGbDTsuQfhQHCo+qn"
    "i8UA2jV3kU8fjpYfQaLxwZ3OdbgAXi70SAkXaMHgGMUgo/0y7aM4Z0XW/6z/hx4a+vLecNz53Q1Ith75WKvougYI1u9AKlEYmrjxscauQ3bZ"
    "+4w0bK2wO6KU4r70LUYQeO2+bjbFWbYz4fXYVSoDGbTYfZ/vcQHvU8KTynxkKqanmG+z/yN8O+OfCCKHBJpbejW8YcsCG/8AAAA="
)

_BASE64: Schema = {
    "type": "string",
    "format": "byte",
    "description": "An image file in base64, or as a base64 `data:` URL.",
}
Base64 = Annotated[str, WithJsonSchema(_BASE64 | {"minLength": 1})]
AnyBase64 = Annotated[str, WithJsonSchema(_BASE64)]
"""Also the empty string: an image of a batch fails alone."""

IMAGE_TYPES = ("image/jpeg", "image/png")
_OTHER_FIELD = {"type": "string", "maxLength": 64, "description": "Ignored; at most 32 fields of 256 bytes each."}


class OneImage(BaseModel):
    image: Base64


class SeveralImages(BaseModel):
    images: list[AnyBase64] = Field(min_length=1)


class PredictRequest(PredictOptions, OneImage):
    pass


class BatchRequest(PredictOptions, SeveralImages):
    pass


class EmbedRequest(EmbedOptions, OneImage):
    pass


class EmbedBatchRequest(EmbedOptions, SeveralImages):
    pass


def image_body(
    kind: type[BaseModel],
    options: type[Options] = Options,
    field: str = "file",
    example: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A body that carries images in any of the ways that a route accepts, for ``openapi_extra``.

    ``kind`` is its JSON document, ``options`` are the query parameters, and the form fields beside the image ``field``.
    """
    several = issubclass(kind, SeveralImages)
    default = {"images": [CAT, f"data:image/webp;base64,{CAT}"]} if several else {"image": CAT}
    part: Schema = {"type": "array", "minItems": 1, "items": BINARY} if several else BINARY
    form = schema(options)
    fields = {name: without_null(value) for name, value in form.get("properties", {}).items()}
    content: dict[str, Schema] = {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [field],
                "properties": {field: part} | fields,
                "additionalProperties": _OTHER_FIELD,
                "$defs": form.get("$defs", {}),
            },
            "encoding": {field: {"contentType": ", ".join(IMAGE_TYPES)}},
        },
        "application/json": {"schema": schema(kind), "example": example or default},
    }
    if not several:
        content |= {media_type: {"schema": BINARY} for media_type in (*IMAGE_TYPES, "application/octet-stream")}
    return with_query(body(content), options)
