"""The JSON responses of the API's own routes, and an example of each."""

from typing import Any

from pydantic import BaseModel, Field

from app.api.explanation import Explanation
from app.api.schemas.document import Responses
from app.imagenet.predictions import Prediction
from app.imagenet.taxonomy import Scored
from app.images import Preprocessing

_PATH = "With `taxonomy=true`: the path in WordNet from the root to the best class, by the highest scores."
_ANSWER = (
    "With `taxonomy=true`: the most specific synset whose score reaches `confidence`; with `coverage`, the most"
    " specific synset that contains the whole `set`."
)
_SET = "With `coverage`: the prediction set, highest score first. It contains the true class with that probability."
_TYPICALITY = (
    "With `coverage` or `unknown`: the share of images, among those of the calibration and this one, that are at least"
    " as unusual as this one."
)
_UNKNOWN = "With `unknown`: whether `typicality` is at most that."
_EXPLANATION = "With `explain`: the map of the class; `png` is absent without `explain_png`."


class PredictAnswer(BaseModel):
    model: str
    weights: str
    predictions: list[Prediction] = Field(description="Highest score first.")
    taxonomy: list[Scored] | None = Field(None, description=_PATH)
    answer: Scored | None = Field(None, description=_ANSWER)
    set: list[Prediction] | None = Field(None, description=_SET)
    typicality: float | None = Field(None, description=_TYPICALITY)
    unknown: bool | None = Field(None, description=_UNKNOWN)
    explanation: Explanation | None = Field(None, description=_EXPLANATION)


class ItemError(BaseModel):
    code: str
    detail: str


class BatchItem(BaseModel):
    filename: str | None
    predictions: list[Prediction] | None = Field(None, description="Absent if the image failed.")
    taxonomy: list[Scored] | None = Field(None, description=_PATH)
    answer: Scored | None = Field(None, description=_ANSWER)
    set: list[Prediction] | None = Field(None, description=_SET)
    typicality: float | None = Field(None, description=_TYPICALITY)
    unknown: bool | None = Field(None, description=_UNKNOWN)
    explanation: Explanation | None = Field(None, description=_EXPLANATION)
    error: ItemError | None = Field(None, description="Absent if the image was classified.")


class BatchAnswer(BaseModel):
    model: str
    weights: str
    results: list[BatchItem] = Field(description="One per image, in order.")


class EmbedAnswer(BaseModel):
    model: str
    dim: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class EmbedItem(BaseModel):
    filename: str | None
    embedding: list[float] | str | None = Field(None, description="Absent if the image failed.")
    error: ItemError | None = Field(None, description="Absent if the image was embedded.")


class EmbedBatchAnswer(BaseModel):
    model: str
    dim: int
    results: list[EmbedItem] = Field(description="One per image, in order.")


class NamedNode(BaseModel):
    wnid: str
    label: str


class Leaf(NamedNode):
    class_id: int


class TaxonomyNode(BaseModel):
    wnid: str = Field(examples=["n02122948"])
    label: str = Field(description="A class's own label, or the first word of a synset.", examples=["kitten"])
    gloss: str = Field(description="WordNet's definition.", examples=["young domestic cat"])
    parents: list[NamedNode] = Field(
        description="None for the root, sometimes several.",
        examples=[[{"wnid": "n02121808", "label": "domestic cat"}]],
    )
    children: list[NamedNode] = Field(description="Only nodes that have classes of the model.", examples=[[]])
    leaves: list[Leaf] = Field(description="The model's classes at or below this node.", examples=[[]])


class Decoding(BaseModel):
    fast: bool = Field(description="JPEGs are decoded at a smaller scale if that changes no answer.", examples=[True])
    ahead_of_queue: bool = Field(description="Images are decoded before they are queued.", examples=[False])
    heic: bool = Field(description="HEIC images are supported.", examples=[True])


class Batching(BaseModel):
    streams: int = Field(description="Batches that run at the same time.", examples=[2])
    ceiling: int = Field(description="The largest batch, in images.", examples=[4])
    cost_ms: dict[str, float] = Field(
        description="Milliseconds per batch, by its number of images; extrapolated for a size that has not run yet.",
        examples=[{"1": 18.2, "2": 25.6, "4": 43.1}],
    )
    alone_ms: float | None = Field(description="Milliseconds for one image on all cores.", examples=[10.4])
    patience: float | None = Field(
        description="Seconds that clients wait that state no deadline, as observed; null if none has left.",
        examples=[2.5],
    )


class Limits(BaseModel):
    max_upload_bytes: int = Field(examples=[20971520])
    max_body_bytes: int = Field(examples=[67108864])
    max_batch_images: int = Field(examples=[32])
    max_inflight_bytes: int = Field(examples=[536870912])
    max_pixels: int = Field(examples=[200000000])
    decode_pixels: int = Field(examples=[315956377])
    request_timeout_ms: int = Field(examples=[10000])


class CalibrationInfo(BaseModel):
    created: str = Field(description="Date and time.", examples=["2026-11-28T09:30:00+00:00"])
    images: int = Field(description="Labelled images that it was measured on.", examples=[2000])
    digest: str = Field(description="SHA-256 of the weights it was measured with.", examples=[f"sha256:{'0' * 64}"])
    precision: str = Field(examples=["bfloat16"])
    temperature: float = Field(description="Divisor of the logits before the softmax.", examples=[1.21])
    most_coverage: float = Field(description="The largest `coverage` that so many images support.", examples=[0.9995])
    least_unknown: float = Field(description="The smallest `unknown`.", examples=[0.0005])


class Info(BaseModel):
    model: str = Field(examples=["resnet50"])
    architecture: str = Field(examples=["resnet50"])
    weights: str = Field(examples=["IMAGENET1K_V2"])
    digest: str = Field(description="SHA-256 of the weights.", examples=[f"sha256:{'0' * 64}"])
    classes: int = Field(examples=[1000])
    taxonomy: bool = Field(description="The classes are in WordNet, so `taxonomy=true` is supported.", examples=[True])
    dim: int = Field(description="Numbers in an embedding.", examples=[2048])
    engine: str = Field(examples=["openvino"])
    device: str = Field(examples=["cpu"])
    device_name: str = Field(
        description="The product name of the GPU or the processor.", examples=["AMD EPYC 9654 96-Core Processor"]
    )
    precision: str = Field(examples=["bfloat16"])
    compilation: str = Field(
        description="`eager` (calls of torch), `captured` (CUDA graphs) or `compiled` (by OpenVINO).",
        examples=["compiled"],
    )
    preprocessing: Preprocessing = Field(
        examples=[
            {
                "resize": 232,
                "crop": 224,
                "interpolation": "bilinear",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "squash": False,
            }
        ]
    )
    decode: Decoding
    batching: Batching
    limits: Limits
    calibration: CalibrationInfo | None = Field(
        None, description="What `coverage` and `unknown` rely on; null if the served precision is not calibrated."
    )
    explain: bool = Field(description="`explain` is supported.", examples=[True])
    warning: str | None = Field(None, description="A warning for the operator.")


def example(value: dict[str, Any]) -> Responses:
    """The example of a response whose schema FastAPI adds, for ``responses``."""
    return {200: {"content": {"application/json": {"example": value}}}}


def _written(answer: BaseModel) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_unset=True)


def _by_fields(kind: type[BaseModel]) -> dict[str, Any]:
    """An example made of the fields' own examples."""
    examples: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.examples:
            examples[name] = field.examples[0]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            examples[name] = _by_fields(field.annotation)
    return examples


_MODEL, _WEIGHTS = "resnet50", "IMAGENET1K_V2"
_CLASSES = [Prediction(285, "n02124075", "Egyptian cat", 0.3864), Prediction(282, "n02123159", "tiger cat", 0.3632)]
_ERROR = ItemError(code="unsupported_media_type", detail="the file is not an image in a supported format")
_NUMBERS = [0.0423, 0.0, 0.1429]
PREDICTED = _written(PredictAnswer(model=_MODEL, weights=_WEIGHTS, predictions=_CLASSES))
BATCH = _written(
    BatchAnswer(
        model=_MODEL,
        weights=_WEIGHTS,
        results=[
            BatchItem(filename="cat.jpg", predictions=_CLASSES),
            BatchItem(filename="notes.txt", error=_ERROR),
        ],
    )
)
EMBEDDED = _written(EmbedAnswer(model=_MODEL, dim=2048, embedding=_NUMBERS))
EMBEDDED_BATCH = _written(
    EmbedBatchAnswer(
        model=_MODEL,
        dim=2048,
        results=[EmbedItem(filename="cat.jpg", embedding=_NUMBERS), EmbedItem(filename="notes.txt", error=_ERROR)],
    )
)
NODE = _by_fields(TaxonomyNode)
INFO = _by_fields(Info)
