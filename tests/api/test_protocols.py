"""What all protocols have in common: their errors' shapes, limits, keys, probes, and the paths that they share."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.api.protocols import torchserve
from app.api.service import StartEstimate
from app.classifier import Result, Timing
from app.engine import Row
from app.errors import ModelError
from app.imagenet.labels import Label
from app.main import create_app
from app.readiness import Readiness
from app.settings import PROTOCOLS, Settings
from tests.api.conftest import InProcess, served
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
MODEL = "efficientnet_lite0"
KEY = {"X-API-Key": "first-key"}


def an_input(*images: str) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": list(images)}]}


def instances(*images: str) -> dict[str, Any]:
    return {"instances": [{"b64": image} for image in images]}


def examples(*images: str) -> dict[str, Any]:
    return {"examples": [{"image": {"b64": image}} for image in images]}


def inputs(image: str, *_: str) -> dict[str, Any]:
    return {"inputs": image}


Shape = Callable[[dict[str, Any], int], bool]
Document = Callable[..., dict[str, Any]]


def error_message(body: dict[str, Any], status: int) -> bool:
    return list(body) == ["error"] and isinstance(body["error"], str)


def torchserve_error(body: dict[str, Any], status: int) -> bool:
    return list(body) == ["code", "type", "message"] and body["code"] == status and body["type"].endswith("Exception")


def problem(body: dict[str, Any], status: int) -> bool:
    return body["status"] == status and body["type"].startswith("urn:topk:problem:")


ROUTES: list[tuple[str, str, Document, Shape]] = [
    ("v2", f"/v2/models/{MODEL}/infer", an_input, error_message),
    ("kserve-v1", f"/v1/models/{MODEL}:predict", instances, error_message),
    ("kserve-v1", f"/v1/models/{MODEL}:classify", examples, error_message),
    ("torchserve", f"/predictions/{MODEL}", instances, torchserve_error),
    ("huggingface", f"/models/{MODEL}", inputs, error_message),
    ("huggingface", "/", inputs, error_message),
    ("sagemaker", "/invocations", instances, problem),
    ("vertex", "/aip", instances, error_message),
    ("litserve", "/predict", instances, problem),
]
every = pytest.mark.parametrize(("protocol", "path", "document", "shape"), ROUTES, ids=[s[1] for s in ROUTES])


@pytest.fixture(scope="module")
def open_() -> Iterator[InProcess]:
    with served(model=MODEL, aip_predict_route="/aip", aip_health_route="/aip/health") as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[InProcess]:
    limits: dict[str, Any] = {"max_upload_bytes": 100_000, "max_body_bytes": 300_000, "max_batch_images": 2}
    routes = {"aip_predict_route": "/aip", "aip_health_route": "/aip/health"}
    limits |= {"api_keys": "first-key", "upload_idle_ms": 300, "cors_origins": "*"}
    with served(model=MODEL, **limits, **routes) as server:
        yield server


def refused(answer: httpx2.Response, status: int, shape: Shape) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    kind = "application/problem+json" if shape is problem else "application/json"
    assert answer.headers["content-type"] == kind
    body: dict[str, Any] = answer.json()
    assert shape(body, status), body
    return body


@every
def test_a_document_is_answered(open_: InProcess, protocol: str, path: str, document: Document, shape: Shape) -> None:
    answer = httpx2.post(open_.url + path, json=document(BASE64))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert {"x-request-id", "server-timing"} <= answer.headers.keys()
    assert "inference;dur" in answer.headers["server-timing"]


@every
def test_errors_have_the_protocol_s_shape(
    open_: InProcess, protocol: str, path: str, document: Document, shape: Shape
) -> None:
    url = open_.url + path
    refused(httpx2.delete(url), 405, shape)
    refused(httpx2.post(url), 400, shape)
    body_shape = error_message if document is instances and shape is not error_message else shape
    body = refused(httpx2.post(url, json=document(base64.b64encode(b"text").decode())), 415, body_shape)
    assert "JPEG" in str(body)
    refused(httpx2.post(url, json=document(base64.b64encode(PHOTO[:5000]).decode())), 422, body_shape)
    refused(httpx2.post(url, json=document("?")), 400, body_shape)
    refused(httpx2.post(url, json=document("https://example.com/cat.jpg")), 400, body_shape)
    refused(httpx2.post(url, json=document(5)), 400, body_shape)
    refused(httpx2.post(url, json=[]), 400, shape)
    refused(httpx2.post(url, json={}), 400, shape)
    refused(httpx2.post(url, content=b"{", headers={"Content-Type": "application/json"}), 400, shape)
    refused(httpx2.post(url, content=PHOTO, headers={"Content-Encoding": "gzip"}), 415, shape)
    refused(httpx2.post(url, content=PHOTO, headers={"X-Request-Timeout-Ms": "soon"}), 400, shape)


@every
def test_overload_has_retry_after(open_: InProcess, protocol: str, path: str, document: Document, shape: Shape) -> None:
    assert httpx2.post(open_.url + path, json=document(BASE64)).status_code == 200  # long idle, it would try 1 ms
    answer = httpx2.post(open_.url + path, json=document(BASE64), headers={"X-Request-Timeout-Ms": "1"})
    refused(answer, 503, shape)
    assert answer.headers["retry-after"] == "1"


@every
def test_keys_and_limits_hold(locked: InProcess, protocol: str, path: str, document: Document, shape: Shape) -> None:
    url, body_shape = locked.url + path, error_message if document is instances else shape
    answer = httpx2.post(url, json=document(BASE64))
    refused(answer, 401, shape)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx2.post(url, json=document(BASE64), headers={"Authorization": "Bearer first-key"}).status_code == 200
    large = base64.b64encode(PHOTO + b"\0" * 100_000).decode()
    refused(httpx2.post(url, json=document(large), headers=KEY), 413, body_shape)
    refused(httpx2.post(url, json=document("a" * 300_000), headers=KEY), 413, shape)
    if document is not inputs:
        assert httpx2.post(url, json=document(BASE64, BASE64), headers=KEY).status_code == 200
        refused(httpx2.post(url, json=document(*["a"] * 3), headers=KEY), 413, body_shape)
        body = refused(httpx2.post(url, json=document(BASE64, "?"), headers=KEY), 400, body_shape)
        assert "[1]: " in str(body)


@every
def test_many_values_in_few_bytes_are_refused(
    open_: InProcess, protocol: str, path: str, document: Document, shape: Shape
) -> None:
    more = 32 * 3 * 224 * 224 if protocol == "v2" else 0
    body = b'{"inputs": [' + b"[]," * (10_200 + more) + b"[]]}"
    answer = httpx2.post(open_.url + path, content=body, headers={"Content-Type": "application/json"})
    assert "more than " in str(refused(answer, 400, shape))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v2/models/{}/infer", error_message),
        ("/v2/models/{}/versions/1/infer", error_message),
        ("/v1/models/{}:predict", error_message),
        ("/v1/models/{}/versions/1:classify", error_message),
        ("/predictions/{}", torchserve_error),
        ("/models/{}", error_message),
    ],
)
def test_a_name_is_served_as_it_stands_or_escaped_and_no_other(open_: InProcess, path: str, shape: Shape) -> None:
    for name in ("another", MODEL.upper(), f"{MODEL}%20"):
        refused(httpx2.post(open_.url + path.format(name), content=PHOTO), 404, shape)
    escaped = path.format(MODEL.replace("_", "%5F")).replace(":", "%3A")
    assert httpx2.post(open_.url + escaped, content=b"?").status_code in (400, 415)
    if "versions" in path and not path.startswith("/v2/"):  # v2 answers any version
        refused(httpx2.post(open_.url + path.format(MODEL).replace("/1", "/2"), content=PHOTO), 404, shape)


PROBES = ["/ping", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready", "/aip/health"]
QUESTIONS = ["/v2", f"/v2/models/{MODEL}", "/v1/models", f"/v1/models/{MODEL}"]


def test_probes_need_no_key_and_questions_do(locked: InProcess) -> None:
    for path in PROBES:
        assert httpx2.get(locked.url + path).status_code == 200
    for path in QUESTIONS:
        refused(httpx2.get(locked.url + path), 401, error_message)
        assert httpx2.get(locked.url + path, headers=KEY).status_code == 200


@pytest.mark.parametrize("state", ["loading", "failed", "draining"])
def test_probes_tell_that_it_is_not_ready(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StartEstimate, "seconds", lambda _: 5.0)
    readiness = Readiness(draining=state == "draining")
    settings = Settings(_env_file=None, aip_health_route="/aip/health", aip_predict_route="/aip")
    with TestClient(create_app(settings, readiness, lambda *_: None)) as client:
        readiness.failure = ModelError("no such weights") if state == "failed" else None
        for path in [*PROBES, *QUESTIONS[1:]]:
            answer = client.get(path)
            if path == "/v2/health/live" and state != "failed":
                assert (answer.status_code, answer.json()) == (200, {"live": True})
            else:
                refused(answer, 503, torchserve_error if path == "/ping" else error_message)  # type: ignore[arg-type]
                expected = {"5"} if state == "loading" else {"1", "5"}  # the next process, or its start
                assert answer.headers["retry-after"] in expected
        for _, path, document, shape in ROUTES:
            refused(client.post(path, json=document(BASE64)), 503, shape)  # type: ignore[arg-type]


def test_every_instance_is_charged() -> None:
    with served(model_name=MODEL, rate_limit="5/hour") as server:
        url = f"{server.url}/v1/models/{MODEL}:predict"
        assert httpx2.post(url, json=instances(*[BASE64] * 3)).status_code == 200
        limited = httpx2.post(url, json=instances(*[BASE64] * 3))  # costs one: its body has been read
        refused(limited, 429, error_message)
        assert int(limited.headers["retry-after"]) > 3500
        last, refused_one = (httpx2.put(f"{server.url}/predictions/{MODEL}", content=PHOTO) for _ in range(2))
        assert last.status_code == 200
        refused(refused_one, 429, torchserve_error)


def test_a_shared_path_answers_in_what_its_body_is_in(open_: InProcess) -> None:
    ours = httpx2.post(f"{open_.url}/v1/predict", content=PHOTO).json()
    for path in ("/invocations", "/predict", "/aip"):
        for raw in ({"content": PHOTO}, {"files": {"file": PHOTO}}, {"json": {"image": BASE64}}):
            assert httpx2.post(open_.url + path, **raw).json() == ours
        assert len(httpx2.post(f"{open_.url}{path}?top_k=2", content=PHOTO).json()["predictions"]) == 2
        assert httpx2.post(f"{open_.url}{path}?top_k=1001", json=instances(BASE64)).status_code == 400
    for path in ("/invocations", "/predict", "/aip", "/", f"/predictions/{MODEL}"):
        rows = httpx2.post(open_.url + path, json=instances(BASE64, BASE64)).json()
        assert rows == {"predictions": [ours["predictions"]] * 2}
        entries = httpx2.post(open_.url + path, json=inputs(BASE64)).json()
        assert entries == [{"label": p["label"], "score": p["score"]} for p in ours["predictions"]]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v1/predict", "/v1/info"])
def test_vertex_may_ask_on_any_path(path: str) -> None:
    settings = Settings(_env_file=None, aip_health_route=path, aip_predict_route=path)
    with TestClient(create_app(settings, Readiness(), lambda *_: None)) as client:
        assert client.get(path).status_code == (200 if path == "/livez" else 503)
        refused(client.post(path, json=instances(BASE64)), 503, error_message)


def test_vertex_may_name_a_path_that_there_is() -> None:
    routes = {"aip_predict_route": "/v1/predict", "aip_health_route": "/ping"}
    with served(model=MODEL, cors_origins="*", **routes) as server:
        assert httpx2.get(f"{server.url}/ping").json() == {"status": "Healthy"}
        ours = httpx2.post(f"{server.url}/v1/predict?top_k=1", files={"file": PHOTO}).json()
        assert [p["label"] for p in ours["predictions"]] == ["Egyptian cat"]
        rows = httpx2.post(f"{server.url}/v1/predict", json=instances(BASE64)).json()["predictions"]
        assert rows[0][0] == ours["predictions"][0]
        preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "PUT"}
        allowed = httpx2.options(f"{server.url}/predictions/{MODEL}", headers=preflight)
        assert (allowed.status_code, "PUT" in allowed.headers["access-control-allow-methods"]) == (200, True)


def test_protocols_can_be_left_out() -> None:
    def paths(protocols: str) -> set[str]:
        described = create_app(Settings(_env_file=None, protocols=protocols)).openapi()["paths"]
        tags = {path: next(iter(methods.values()))["tags"][0] for path, methods in described.items()}
        return {path for path, tag in tags.items() if tag in PROTOCOLS}

    assert {path[:4] for path in paths("v2")} == {"/v2", "/v2/"}
    assert paths("sagemaker, litserve") == {"/ping", "/invocations", "/predict"}
    assert len(paths(",".join(PROTOCOLS))) > 15
    with pytest.raises(ValidationError, match="protocols"):
        paths("v2,v3")
    with pytest.raises(ValidationError, match="contains only commas"):
        paths(",")


@pytest.mark.parametrize(("protocols", "enabled"), [("torchserve", False), ("sagemaker,huggingface", True)])
def test_a_body_is_not_read_as_that_of_a_protocol_left_out(protocols: str, enabled: bool) -> None:
    with served(protocols=f"litserve,{protocols}") as server:
        rows = httpx2.post(f"{server.url}/predict", json=instances(BASE64))
        assert (rows.status_code, list(rows.json()) == ["predictions"]) == (200 if enabled else 400, enabled)
        entries = httpx2.post(f"{server.url}/predict", json=inputs(BASE64)).json()
        assert isinstance(entries, list) == enabled  # else the image is taken, as under any name, and answered as ours


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v2/models", error_message),
        ("/v2/models/a%2Fb/infer", error_message),
        (f"/v1/models/{MODEL}/metadata", error_message),
        (f"/predictions/{MODEL}/versions/1", torchserve_error),
        ("/nothing", problem),
    ],
)
def test_below_a_protocol_s_prefix_errors_are_its_own(open_: InProcess, path: str, shape: Shape) -> None:
    refused(httpx2.get(open_.url + path), 404, shape)


@pytest.mark.parametrize("verb", ["explain", "regress", "", "predict/1"])
def test_an_unknown_verb_is_a_404(open_: InProcess, verb: str) -> None:
    for path in (f"/v1/models/{MODEL}", f"/v1/models/{MODEL}/versions/1"):
        body = refused(httpx2.post(f"{open_.url}{path}:{verb}"), 404, error_message)
        assert body["error"] == f"there is no verb :{verb}; use :predict or :classify"
    assert "model another is not served" in httpx2.post(f"{open_.url}/v1/models/another:{verb}").text


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        ({"instances": []}, "instances must be a list of at least one image"),
        ({"inputs": []}, "inputs must be a list of at least one image"),
        ({"inputs": {"a": BASE64, "b": BASE64}}, "inputs must have one column, got 2"),
        ({"instances": [{"b64": BASE64}, {"a": BASE64, "b": "x"}]}, "instances[1]: an object must have one member"),
        ({"instances": [{"image": {}}]}, "instances[0]: an object must have one member"),
    ],
)
def test_what_is_wrong_with_instances_is_named(open_: InProcess, document: dict[str, Any], detail: str) -> None:
    answer = httpx2.post(f"{open_.url}/v1/models/{MODEL}:predict", json=document)
    assert refused(answer, 400, error_message)["error"].startswith(detail)


def test_classes_of_one_label_are_all_in_the_response(app_server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that differ but in what TorchServe writes for a space."""
    classifier = app_server.app.state.service.classifier
    labels = [Label(name) for name in ("a b", "window screen", "a_b", "a_b_2", "a  b")]
    model = replace(classifier.model, labels=tuple(labels))
    monkeypatch.setattr(classifier, "_served", replace(classifier.served, model=model))
    row = Row(np.array([0, 2, 3, 4, 1]), np.array([0.4, 0.3, 0.2, 0.08, 0.02], np.float32))
    answer = torchserve.best(classifier, Result(row, Timing(0, 0, 0, 1, 0, 0, 0)))
    assert list(answer) == ["a_b", "a_b_2", "a_b_2_3", "a__b", "window_screen"]
    assert list(answer.values()) == pytest.approx([0.4, 0.3, 0.2, 0.08, 0.02])
