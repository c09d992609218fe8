"""curl, as the documentation of other servers has it."""

import json
import subprocess
from typing import Any

import pytest

from tests.clients.conftest import BASE64, LABELS, MODEL
from tests.conftest import CAT, Server


def curl(*arguments: str, content: str | None = None) -> Any:
    command = ["curl", "--silent", "--show-error", "--max-time", "30", *arguments]
    ran = subprocess.run(command, input=content, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


UNDERSCORED = [label.replace(" ", "_") for label in LABELS]


@pytest.mark.parametrize("upload", [("-T", str(CAT)), ("-F", f"data=@{CAT}"), ("-F", f"body=@{CAT}")])
@pytest.mark.parametrize("version", ["", "/1"])
def test_torchserve(embedded_server: Server, counts: Any, upload: tuple[str, str], version: str) -> None:
    """Its README's `curl http://localhost:8080/predictions/densenet161 -T kitten.jpg`."""
    with counts(embedded_server, "torchserve"):
        answer = curl(f"{embedded_server.url}/predictions/{MODEL}{version}", *upload)
    assert list(answer)[:4] == UNDERSCORED
    assert len(answer) == 5
    assert sorted(answer.values(), reverse=True) == list(answer.values())


def test_torchserve_errors_name_what_is_wrong(embedded_server: Server) -> None:
    answer = curl(f"{embedded_server.url}/predictions/another", "-T", str(CAT))
    assert (answer["code"], answer["type"]) == (404, "ModelNotFoundException")
    answer = curl(f"{embedded_server.url}/predictions/{MODEL}", "-T", __file__)
    assert (answer["code"], answer["type"]) == (415, "UnsupportedMediaTypeException")
    assert curl(f"{embedded_server.url}/ping") == {"status": "Healthy"}


def test_tensorflow_serving(embedded_server: Server, counts: Any) -> None:
    """Its documented requests, which name no content type: curl says that they are forms."""
    predict = f"{embedded_server.url}/v1/models/{MODEL}:predict"
    with counts(embedded_server, "kserve-v1", 5):
        status = curl(f"{embedded_server.url}/v1/models/{MODEL}")
        body = json.dumps({"signature_name": "serving_default", "instances": [{"b64": BASE64}, {"b64": BASE64}]})
        rows = curl("-d", "@-", "-X", "POST", predict, content=body)
        columns = curl("-d", "@-", predict, content=json.dumps({"inputs": {"image": [{"b64": BASE64}]}}))
        versioned = curl("-d", "@-", predict.replace(":predict", "/versions/1:predict"), content=body)
        classified = curl(
            "-d",
            "@-",
            f"{embedded_server.url}/v1/models/{MODEL}/versions/1:classify",
            content=json.dumps({"examples": [{"image": {"b64": BASE64}}]}),
        )
    assert status["model_version_status"] == [
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
    assert [[entry["label"] for entry in row[:4]] for row in rows["predictions"]] == [LABELS, LABELS]
    assert columns["outputs"] == rows["predictions"][:1]
    assert versioned == rows
    assert [label for label, _ in classified["result"][0]][:4] == LABELS


def test_tensorflow_serving_errors_name_the_bad_instance(embedded_server: Server) -> None:
    predict = f"{embedded_server.url}/v1/models/{MODEL}:predict"
    body = json.dumps({"instances": [{"b64": BASE64}, {"b64": BASE64[:1000]}]})
    assert curl("-d", "@-", predict, content=body)["error"].startswith("instances[1]: ")
    assert "model another is not served" in curl("-d", "@-", predict.replace(MODEL, "another"), content=body)["error"]
    assert "instances" in curl("-d", "{}", predict)["error"]


@pytest.mark.parametrize("upload", [("-F", f"file=@{CAT}"), ("-T", str(CAT), "-X", "POST")])
def test_litserve_s_path(embedded_server: Server, counts: Any, upload: tuple[str, ...]) -> None:
    with counts(embedded_server, "litserve"):
        answer = curl(f"{embedded_server.url}/predict?top_k=4", *upload)
    assert [entry["label"] for entry in answer["predictions"]] == LABELS


def test_an_open_inference_request(embedded_server: Server, counts: Any) -> None:
    inputs = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}]
    with counts(embedded_server, "v2"):
        answer = curl(
            "-d", "@-", f"{embedded_server.url}/v2/models/{MODEL}/infer", content=json.dumps({"inputs": inputs})
        )
    assert answer["outputs"][0]["shape"] == [1, 1000]
