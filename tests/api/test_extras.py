"""Open Inference v2: outputs that the parameters ``coverage``, ``unknown`` and ``explain`` add."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from app.api import answers
from tests import tiny
from tests.api.conftest import InProcess, served
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [BASE64]}
ALL = {"coverage": 0.9, "unknown": 0.1, "explain": 3}
EXPLANATION = ["explanation", "explanation_class", "explanation_box"]
Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[InProcess]:
    with served(model=tiny.calibrated()[1], precision="float32") as server:
        yield server


def infer(server: InProcess, parameters: Any, image: dict[str, Any] = IMAGE, **members: Any) -> httpx2.Response:
    name = server.app.state.service.classifier.model.name
    document = {"inputs": [image], "parameters": parameters, **members}
    return httpx2.post(f"{server.url}/v2/models/{name}/infer", json=document, timeout=60)


def outputs(answer: httpx2.Response) -> dict[str, dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def tensors(answer: httpx2.Response) -> Tensors:
    return {name: np.reshape(np.array(o["data"]), o["shape"]) for name, o in outputs(answer).items()}


def from_binary(answer: httpx2.Response) -> Tensors:
    """The outputs of a response in binary, as a client reads them."""
    length = int(answer.headers["Inference-Header-Content-Length"])
    found, at = {}, length
    for output in json.loads(answer.content[:length])["outputs"]:
        tail = answer.content[at : (at := at + output["parameters"]["binary_data_size"])]
        kind = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?"}.get(output["datatype"])
        values = np.frombuffer(tail, kind) if kind else np.array(strings(tail))
        found[output["name"]] = values.reshape(output["shape"])
    assert at == len(answer.content)
    return found


def strings(tail: bytes) -> list[str]:
    found = []
    while tail:
        size = 4 + struct.unpack_from("<I", tail)[0]
        found.append(tail[4:size].decode())
        tail = tail[size:]
    return found


def predicted(server: InProcess, **options: object) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.post(f"{server.url}/v1/predict", params=options, content=PHOTO, timeout=60).json()
    return found


def refused(answer: httpx2.Response) -> str:
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    return str(answer.json()["error"])


def test_the_outputs_follow_the_requested_ones(server: InProcess) -> None:
    requested = [{"name": "logits", "parameters": {"classification": 2}}]
    found = outputs(infer(server, ALL, outputs=requested))
    assert list(found) == ["logits", "set", "typicality", "unknown", *EXPLANATION]
    kinds = [output["datatype"] for output in found.values()]
    assert kinds == ["BYTES", "BYTES", "FP32", "BOOL", "FP32", "INT64", "FP32"]


def test_their_values_are_those_of_a_prediction(server: InProcess) -> None:
    wanted = predicted(server, **ALL)
    found = tensors(infer(server, ALL, IMAGE | {"shape": [2], "data": [BASE64] * 2}))
    members = [f"{one['score']:f}:{one['class_id']}:{one['label']}" for one in wanted["set"]]
    assert found["set"].tolist() == [members] * 2
    assert found["typicality"].tolist() == pytest.approx([wanted["typicality"]] * 2)
    assert found["unknown"].tolist() == [wanted["unknown"]] * 2
    assert found["explanation_class"].tolist() == [3, 3]
    assert np.allclose(found["explanation"], [wanted["explanation"]["grid"]] * 2, atol=1e-3)
    assert np.allclose(found["explanation_box"], [wanted["explanation"]["box"]] * 2, atol=0.1)


def test_binary_data_has_the_same_values(server: InProcess) -> None:
    image = IMAGE | {"shape": [2], "data": [BASE64] * 2}
    plain, binary = tensors(infer(server, ALL, image)), infer(server, ALL | {"binary_data_output": True}, image)
    assert binary.headers["content-type"] == "application/octet-stream"
    found = from_binary(binary)
    assert list(found) == list(plain)
    assert found["set"].tolist() == plain["set"].tolist()
    for name in plain.keys() - {"set"}:
        assert np.allclose(found[name], plain[name], atol=1e-3), name


def test_sets_are_padded_with_empty_strings(server: InProcess) -> None:
    white_and_black = np.repeat([1.0, -1.0], 3 * 224 * 224)  # of black, all classes are equally likely
    image = {"name": "image", "datatype": "FP32", "shape": [2, 3, 224, 224], "data": white_and_black.tolist()}
    found = tensors(infer(server, {"coverage": 0.9}, image))["set"]
    small, large = (row != "" for row in found)
    assert small[0]
    assert small.sum() < large.sum() == len(large)
    assert not small[small.sum() :].any()


def test_each_parameter_adds_its_own_outputs(server: InProcess) -> None:
    for parameters, names in (
        ({"coverage": 0.9}, ["set", "typicality"]),
        ({"unknown": 0.1}, ["typicality", "unknown"]),
        ({"explain": True}, EXPLANATION),
        ({"explain": False}, []),
        ({"explain": "false", "coverage": None}, []),
        ({}, []),
    ):
        assert list(outputs(infer(server, parameters))) == ["scores", *names], parameters


@pytest.mark.parametrize(("value", "class_id"), [(1, 1), (1.0, 1), ("1", 1), ("n02124075", 285), (0, 0)])
def test_a_class_is_a_number_or_a_wnid(server: InProcess, value: object, class_id: int) -> None:
    found = tensors(infer(server, {"explain": value}))
    assert found["explanation_class"].tolist() == [class_id]


def test_true_explains_the_best_class(server: InProcess) -> None:
    found = tensors(infer(server, {"explain": True}))
    assert found["explanation_class"].tolist() == [found["scores"].argmax()]


def test_a_preprocessed_image_is_its_own_crop(server: InProcess) -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [3, 224, 224], "data": [0.1] * 150528}
    found = tensors(infer(server, {"explain": 7}, image, outputs=[{"name": "logits"}]))
    assert found["explanation_box"].tolist() == [[0, 0, 224, 224]]
    assert found["explanation"].mean() == pytest.approx(found["logits"][0, 7], rel=1e-3)


@pytest.mark.parametrize(
    ("parameters", "detail"),
    [
        ({"coverage": 2}, "coverage must be less than 1, got 2"),
        ({"coverage": 0}, "coverage must be more than 0, got 0"),
        ({"coverage": "0.9"}, "coverage must be a number, got '0.9'"),
        ({"coverage": True}, "coverage must be a number, got true"),
        ({"coverage": 0.999}, "because the model is calibrated on 200 images"),
        ({"unknown": 1e-309}, "because the model is calibrated on 200 images"),
        ({"explain": "n1"}, "explain must be true, false, a class id or a wnid, got 'n1'"),
        ({"explain": 1000}, "explain must be true, false, a class id between 0 and 999"),
        ({"explain": "n00000000"}, "or the wnid of a class, got 'n00000000'"),
        ({"explain": [1]}, "explain must be true, false, a class id or a wnid"),
    ],
)
def test_wrong_values_are_refused_as_in_a_prediction(
    server: InProcess, parameters: dict[str, object], detail: str
) -> None:
    assert detail in refused(infer(server, parameters))
    document = {"image": BASE64} | parameters
    answer = httpx2.post(f"{server.url}/v1/predict", json=document)
    assert (answer.status_code, detail in answer.json()["detail"]) == (400, True)


def test_a_model_without_a_calibration_says_what_to_run(app_server: InProcess) -> None:
    for parameters in ({"coverage": 0.9}, {"unknown": 0.1}):
        assert "run `topk calibrate DIR --model MODEL --out FOLDER`" in refused(infer(app_server, parameters))


def test_a_bad_image_fails_the_request(server: InProcess) -> None:
    image = IMAGE | {"shape": [2], "data": [BASE64, base64.b64encode(b"no image").decode()]}
    answer = infer(server, ALL, image)
    assert answer.status_code == 415
    assert answer.json()["error"].startswith("image[1]: ")


def test_sets_count_towards_the_size_of_the_response(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BYTES_AN_IMAGE", 100 * 1000 // 32)  # a set of 1000 classes takes 120 bytes each
    best = [{"name": "scores", "parameters": {"classification": 1}}]
    assert infer(server, {"unknown": 0.1}, outputs=best).status_code == 200
    assert infer(server, {"coverage": 0.9}, outputs=best).status_code == 413
    assert "code" in predicted(server, coverage=0.9)
