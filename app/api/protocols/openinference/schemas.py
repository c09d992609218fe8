"""Bodies of the Open Inference Protocol v2, for the OpenAPI document, with an example of each."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app import __version__
from app.api.options import Explain
from app.api.protocols.members import MOST
from app.api.protocols.openinference.tensors import DIMENSIONS
from app.api.protocols.protocol import VERSION
from app.api.schemas.requests import CAT, Base64

ID_CHARACTERS = 1024
OUTPUTS = 4  # scores and logits, each whole or as the best classes

_Positive = Annotated[int, Field(ge=1, le=MOST)]


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputTensor(BaseModel):
    name: str | None = None
    shape: list[_Positive] = Field(max_length=DIMENSIONS)
    datatype: Literal["BYTES", "UINT8", "FP32"]
    data: Annotated[list[Base64], Field(min_length=1)] | list[float | list[Any]]


class RequestParameters(BaseModel):
    binary_data_output: bool = False
    coverage: float | None = Field(None, gt=0, lt=1, description="Add the outputs `set` and `typicality`.")
    unknown: float | None = Field(None, gt=0, lt=1, description="Add the outputs `unknown` and `typicality`.")
    explain: Explain | None = Field(
        None, description="Add the outputs `explanation`, `explanation_class` and `explanation_box`."
    )


class OutputParameters(BaseModel):
    classification: _Positive = Field(0, description="The number of best classes, instead of the whole output.")
    binary_data: bool = False


class OutputRequest(BaseModel):
    name: Literal["scores", "logits"] = "scores"
    parameters: OutputParameters | None = None


class InferRequest(BaseModel):
    id: Annotated[str, Field(max_length=ID_CHARACTERS)] | None = None
    parameters: RequestParameters | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: Annotated[list[OutputRequest], Field(max_length=OUTPUTS)] | None = Field(
        None, description="Each output at most once whole, and once as its best classes."
    )


class OutputTensor(BaseModel):
    name: Literal[
        "scores", "logits", "set", "typicality", "unknown", "explanation", "explanation_class", "explanation_box"
    ]
    datatype: Literal["BYTES", "FP32", "INT64", "BOOL"]
    shape: list[int]
    data: list[float | str | bool] = Field([], description="Absent if the output is binary.")
    parameters: dict[str, int] = Field({}, description="`binary_data_size` of a binary output.")


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


EXTENSIONS = ["binary_tensor_data", "classification"]
SERVER = {"name": "topk", "version": __version__, "extensions": EXTENSIONS}
METADATA = {
    "name": "resnet50",
    "versions": [VERSION],
    "platform": "openvino",
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 1000]} for name in ("scores", "logits")],
}
INFERRED = {
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
REQUEST = {
    "id": "42",
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [CAT]}],
    "outputs": [{"name": "scores", "parameters": {"classification": 5}}],
}
