"""Real responses against the models that the OpenAPI document is generated from."""

import base64
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx2
import pytest
from pydantic import BaseModel

from app import machine
from app.api.protocols import huggingface, kserve, torchserve
from app.api.protocols.openinference import schemas as openinference
from app.api.protocols.protocol import ErrorMessage
from app.api.schemas.errors import Problem
from app.api.schemas.responses import (
    BatchAnswer,
    EmbedAnswer,
    EmbedBatchAnswer,
    Info,
    PredictAnswer,
    TaxonomyNode,
)
from tests import tiny
from tests.api.conftest import InProcess, served
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
MODEL = "efficientnet_lite0"
FILES = [("file", ("cat.jpg", PHOTO)), ("file", ("notes.txt", b"text"))]
Kind = TypeVar("Kind", bound=BaseModel)


def validated(kind: type[Kind], answer: httpx2.Response, status: int = 200) -> Kind:
    """The response as a model; no member is missing, and none is undescribed."""
    assert answer.status_code == status, answer.text
    return kind.model_validate_json(answer.content, strict=True, extra="forbid")


@pytest.fixture(scope="module")
def calibrated() -> Iterator[InProcess]:
    with served(model=tiny.calibrated()[1], precision="float32") as server:
        yield server


def post(server: InProcess, path: str, **body: Any) -> httpx2.Response:
    return httpx2.post(server.url + path, timeout=60, **body)


def test_predictions(app_server: InProcess) -> None:
    for query in ("", "?taxonomy=true"):
        one = validated(PredictAnswer, post(app_server, f"/v1/predict{query}", content=PHOTO))
        assert (one.answer is not None) == bool(query)
        several = validated(BatchAnswer, post(app_server, f"/v1/predict/batch{query}", files=FILES))
        assert [result.error is None for result in several.results] == [True, False]


def test_predictions_of_a_calibrated_model(calibrated: InProcess) -> None:
    added = {"set", "typicality", "unknown", "answer", "explanation"}
    query = "?coverage=0.9&unknown=0.1&taxonomy=true&explain=true&explain_png=true"
    one = validated(PredictAnswer, post(calibrated, f"/v1/predict{query}", content=PHOTO))
    assert added < one.model_dump(exclude_none=True).keys()
    good, bad = validated(BatchAnswer, post(calibrated, f"/v1/predict/batch{query}", files=FILES)).results
    assert added < good.model_dump(exclude_none=True).keys()
    assert good.explanation
    assert good.explanation.png
    assert bad.model_dump(exclude_none=True).keys() == {"filename", "error"}
    info = validated(Info, httpx2.get(f"{calibrated.url}/v1/info"))
    assert info.explain
    assert info.calibration
    assert info.calibration.images == 200


def test_an_inference_of_a_calibrated_model(calibrated: InProcess) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}
    parameters = {"coverage": 0.9, "unknown": 0.1, "explain": True}
    document = {"inputs": [tensor], "parameters": parameters}
    answer = post(calibrated, "/v2/models/tiny-calibrated/infer", json=document)
    found = validated(openinference.InferResponse, answer)
    assert {output.datatype for output in found.outputs} == {"FP32", "BYTES", "BOOL", "INT64"}
    assert len(found.outputs) == 7


@pytest.mark.parametrize("query", ["", "?encoding=base64"])
def test_embeddings(app_server: InProcess, query: str) -> None:
    one = validated(EmbedAnswer, post(app_server, f"/v1/embed{query}", content=PHOTO))
    assert isinstance(one.embedding, str if query else list)
    several = validated(EmbedBatchAnswer, post(app_server, f"/v1/embed/batch{query}", files=FILES))
    assert [result.error is None for result in several.results] == [True, False]


def test_info(app_server: InProcess) -> None:
    answer = httpx2.get(f"{app_server.url}/v1/info")
    assert list(answer.json()) == [
        *("model", "architecture", "weights", "digest", "classes", "taxonomy", "dim", "engine", "device"),
        *("device_name", "precision", "compilation", "preprocessing", "decode", "batching", "limits", "calibration"),
        *("explain", "warning"),
    ]
    info = validated(Info, answer)
    assert (info.model, info.taxonomy, info.classes, info.dim) == (MODEL, True, 1000, 1280)
    engine = app_server.engine
    assert (info.engine, info.device, info.precision) == (engine.name, engine.device, engine.precision)
    assert info.device_name == engine.device_name == machine.processor()
    assert (info.preprocessing.crop, info.limits.max_batch_images) == (224, 32)
    assert list(info.batching.cost_ms) == [str(size) for size in engine.buckets]
    assert info.batching.ceiling in engine.buckets
    assert info.batching.patience is None or info.batching.patience > 0


@pytest.mark.parametrize("wnid", ["n00001740", "n02084071", "n02111889"])
def test_nodes(app_server: InProcess, wnid: str) -> None:
    assert validated(TaxonomyNode, httpx2.get(f"{app_server.url}/v1/taxonomy/{wnid}")).wnid == wnid


def test_problems(app_server: InProcess) -> None:
    for answer, status in (
        (post(app_server, "/v1/predict", content=b"text"), 415),
        (post(app_server, "/v1/predict?top_k=0", content=PHOTO), 400),
        (post(app_server, "/v1/predict", content=b""), 400),
        (httpx2.get(f"{app_server.url}/nothing"), 404),
        (httpx2.get(f"{app_server.url}/v1/predict"), 405),
    ):
        problem = validated(Problem, answer, status)
        assert (problem.status, problem.request_id) == (status, answer.headers["x-request-id"])


def test_protocols(app_server: InProcess) -> None:
    instances = {"instances": [{"b64": BASE64}]}
    examples = {"examples": [{"image": {"b64": BASE64}}]}
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}
    outputs = [{"name": "scores"}, {"name": "logits", "parameters": {"classification": 2}}]
    for kind, path, document in (
        (kserve.PredictionRows, f"/v1/models/{MODEL}:predict", instances),
        (kserve.PredictionRows, f"/v1/models/{MODEL}:predict", {"inputs": [{"b64": BASE64}]}),
        (kserve.ExampleResults, f"/v1/models/{MODEL}:classify", examples),
        (openinference.InferResponse, f"/v2/models/{MODEL}/infer", {"inputs": [tensor], "outputs": outputs}),
    ):
        answer = post(app_server, path, json=document)
        assert answer.status_code == 200, answer.text
        kind.model_validate_json(answer.content, extra="forbid")
    for kind, path in (
        (kserve.ModelNames, "/v1/models"),
        (kserve.ModelStatus, f"/v1/models/{MODEL}"),
        (openinference.ServerMetadata, "/v2"),
        (openinference.ModelMetadata, f"/v2/models/{MODEL}"),
        (openinference.ModelReady, f"/v2/models/{MODEL}/ready"),
        (openinference.ServerReady, "/v2/health/ready"),
        (openinference.ServerLive, "/v2/health/live"),
        (torchserve.TorchServeStatus, "/ping"),
    ):
        validated(kind, httpx2.get(app_server.url + path))
    for entry in post(app_server, "/", content=PHOTO).json():
        huggingface.LabelScore.model_validate(entry, strict=True, extra="forbid")


def test_errors_of_protocols(app_server: InProcess) -> None:
    for path in (f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer", "/"):
        validated(ErrorMessage, post(app_server, path, json=5), 400)
    validated(torchserve.TorchServeError, post(app_server, f"/predictions/{MODEL}", content=b"text"), 415)
