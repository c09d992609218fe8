"""What TensorFlow Serving's and Vertex AI's clients send beside the image of an instance, and its key."""

import base64
from typing import Any

import httpx2
import pytest

from tests.api.conftest import InProcess, served
from tests.conftest import CAT

BASE64 = base64.b64encode(CAT.read_bytes()).decode()
B64 = {"b64": BASE64}
MODEL = "efficientnet_lite0"
PREDICT, CLASSIFY = f"/v1/models/{MODEL}:predict", f"/v1/models/{MODEL}:classify"


def post(server: InProcess, document: Any, path: str = PREDICT) -> httpx2.Response:
    return httpx2.post(server.url + path, json=document)


@pytest.fixture(scope="module")
def row(app_server: InProcess) -> Any:
    """The predictions of the image."""
    return httpx2.post(f"{app_server.url}/v1/predict", json={"image": BASE64}).json()["predictions"]


FEATURES: dict[str, Any] = {
    "TensorFlow Serving": {"image": B64, "caption": "seaside"},
    "in another order": {"caption": "seaside", "image": B64},
    "Vertex AI": {"content": BASE64, "mimeType": "image/jpeg"},
    "AutoML": {"content": BASE64, "mime_type": "image/jpeg"},
    "AutoML's container": {"image_bytes": B64, "name": "cat.jpg"},
    "Keras": {"bytes_inputs": B64, "training": False},
    "base64 beside its type": {"b64": BASE64, "mimeType": "image/jpeg"},
    "one object in the other": {"image": {"b64": BASE64, "format": "jpg"}, "caption": None},
    "content in an object": {"image": {"content": BASE64, "mimeType": "image/jpeg"}, "caption": "sea"},
    "any name": {"input_1": B64, "dense": [1.0, 2.0], "tag": {"a": 1}},
    "any binary name": {"pixels_bytes": BASE64, "caption": "seaside"},
    "a second picture": {"thumbnail": {"b64": "AAAA"}, "image": B64},
    "PyTorch": {"data": B64, "target": 0},
    "a string named as the image": {"image": BASE64, "caption": "AAAA", "id": 5},
}


@pytest.mark.parametrize("instance", FEATURES.values(), ids=FEATURES)
def test_other_members_are_ignored(app_server: InProcess, row: Any, instance: Any) -> None:
    assert post(app_server, {"instances": [instance, B64]}).json() == {"predictions": [row, row]}
    document = {"examples": [instance], "signature_name": "classify_objects", "context": {"a": 1}}
    expected = [[entry["label"], entry["score"]] for entry in row]
    assert post(app_server, document, CLASSIFY).json() == {"result": [expected]}


@pytest.mark.parametrize("path", [PREDICT, f"/v1/models/{MODEL}/versions/1:predict", "/predict", "/invocations"])
@pytest.mark.parametrize("key", ["1", "", "a/b \u00e9.jpg", 0, 1, 2.5, -(2**53), "x" * 1024])
def test_a_key_is_returned_with_its_predictions(app_server: InProcess, row: Any, key: Any, path: str) -> None:
    given = [{"image_bytes": B64, "key": key}, B64, {"key": "2", "b64": BASE64, "caption": "sea"}]
    expected = [{"key": key, "predictions": row}, row, {"key": "2", "predictions": row}]
    assert post(app_server, {"instances": given}, path).json() == {"predictions": expected}


def test_a_key_is_returned_on_vertex_ai_s_route(row: Any) -> None:
    with served(model=MODEL, aip_predict_route="/aip") as server:
        document = {"instances": [{"content": BASE64, "mimeType": "image/jpeg", "key": "7"}]}
        answer = post(server, document | {"parameters": {"top_k": 2}}, "/aip")
    assert answer.json() == {"predictions": [{"key": "7", "predictions": row[:2]}]}


def test_a_key_of_null_is_none(app_server: InProcess, row: Any) -> None:
    assert post(app_server, {"instances": [{"image": B64, "key": None}]}).json() == {"predictions": [row]}


def test_a_single_member_is_the_image_whatever_its_name(app_server: InProcess, row: Any) -> None:
    assert post(app_server, {"instances": [{"key": BASE64}, {"caption": B64}]}).json() == {"predictions": [row, row]}


def test_columns(app_server: InProcess, row: Any) -> None:
    columns = {"caption": ["a", "b"], "image_bytes": [B64, B64]}
    assert post(app_server, {"inputs": columns}).json() == {"outputs": [row, row]}
    keys = ["one", 2]
    expected = {"outputs": {"key": keys, "predictions": [row, row]}}
    assert post(app_server, {"inputs": columns | {"key": keys}}).json() == expected
    single = {"inputs": {"image": B64, "key": "one"}}
    assert post(app_server, single).json() == {"outputs": {"key": ["one"], "predictions": [row]}}


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        ({"instances": [{"image": B64, "key": True}]}, "instances[0]: key must be a string or a number, got a boolean"),
        ({"instances": [B64, {"image": B64, "key": ["1"]}]}, "instances[1]: key must be a string or a number"),
        ({"instances": [{"image": B64, "key": "x" * 1025}]}, "instances[0]: key must have at most 1024 characters"),
        ({"instances": [{"a": B64, "b": B64}]}, "instances[0]: an object must have one member such as"),
        ({"instances": [{"a": "AAAA", "b": "BBBB", "c": 1}]}, "instances[0]: an object must have one member such as"),
        ({"instances": [{}]}, "instances[0]: an object must have one member such as"),
        ({"instances": [{"image": B64, "top_k": 1}]}, "instances[0]: top_k is an option of the request; send it in"),
        ({"instances": [{"image": B64, "min_score": 0}]}, "instances[0]: min_score is an option of the request"),
        ({"instances": [{"content": "gs://bucket/cat.jpg", "mimeType": "image/jpeg"}]}, "instances[0]: image URLs are"),
        ({"instances": [{"image": {"b64": "?"}, "key": "1"}]}, "instances[0]: the image is not valid base64"),
        (
            {"inputs": {"a": [B64], "b": [B64]}},
            "inputs must have one column, got 2; name that of the images `image`",
        ),
        ({"inputs": {"image": [B64, B64], "key": ["1"]}}, "inputs must have one key for each image, got 1 for 2"),
        ({"inputs": {"image": [B64], "key": [{}]}}, "inputs[0]: key must be a string or a number, got an object"),
    ],
)
def test_what_is_refused_has_a_reason(app_server: InProcess, document: Any, detail: str) -> None:
    answer = post(app_server, document)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert answer.json()["error"].startswith(detail)


def test_options_beside_an_image_in_topk_s_own_json_are_options(app_server: InProcess, row: Any) -> None:
    document = {"image": BASE64, "top_k": 2, "caption": "sea"}
    assert post(app_server, document, "/v1/predict").json()["predictions"] == row[:2]
    assert "top_k must be" in post(app_server, document | {"top_k": "x"}, "/v1/predict").json()["detail"]
    misspelt = post(app_server, document, "/v1/predict?topK=3")
    assert (misspelt.status_code, misspelt.json()["detail"]) == (400, "unknown parameter topK; use top_k")
