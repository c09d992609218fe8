"""The OpenAPI document: whole, true of the running service, and with examples that work."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import jsonschema_rs
import pytest
from starlette.testclient import TestClient

from app.api import openapi
from app.main import create_app
from app.settings import PROTOCOLS, Settings
from tests import tiny
from tests.api.conftest import InProcess
from tests.conftest import CAT, REPOSITORY, Server, environment

KEY = "my-key"
BOUND = "X-Request-Timeout-Ms"
CONFIG = f"""
hooks = "tests.api.generators"
headers = {{ Authorization = "Bearer {KEY}" }}
parameters = {{ "path.model" = "tiny-calibrated", "path.version" = "1" }}
generation = {{ max-examples = 5, database = "none" }}

# 413 refuses as well: too many images.
[checks]
negative_data_rejection.expected-statuses = ["400", "401", "404", "405", "408", "413", "415", "422"]
"""

Operation = dict[str, Any]
OPTIONS = {"coverage", "unknown", "explain"}


@pytest.fixture(scope="module")
def document(keyed_server: Server) -> dict[str, Any]:
    described: dict[str, Any] = httpx2.get(f"{keyed_server.url}/openapi.json").json()
    return described


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_route_is_described(document: dict[str, Any]) -> None:
    """Its summary, what it answers, and how it fails, each with an example."""
    tags = set()
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        tags |= set(operation["tags"])
        assert operation["summary"], where
        assert operation["description"], where
        assert "200" in operation["responses"], where
        failing = operation["responses"].keys() - {"200"}
        assert failing or path in ("/", "/metrics"), where
        if "requestBody" in operation:
            assert failing >= {"400", "401", "408", "413", "415", "422", "429", "503", "504"}, where
            assert BOUND in [parameter["name"] for parameter in operation["parameters"]], where
        assert ("security" in operation) == ("401" in failing), where
        for status, answer in operation["responses"].items():
            assert answer["description"], where
            for content in answer["content"].values():
                assert content["schema"], (where, status)
                assert "example" in content or content["schema"].get("format") == "binary", (where, status)
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (where, parameter["name"])
    assert tags >= set(PROTOCOLS)


def test_errors_have_their_protocol_s_shape(document: dict[str, Any]) -> None:
    members = {"torchserve": {"code", "type", "message"}, "sagemaker": None, "litserve": None}
    for method, path, operation in operations(document):
        [tag] = operation["tags"]
        shape = members.get(tag, {"error"}) if tag in PROTOCOLS else None
        for status, answer in operation["responses"].items():
            if status == "200":
                continue
            [(kind, content)] = answer["content"].items()
            assert kind == ("application/json" if shape else "application/problem+json"), (method, path)
            assert content["example"].keys() == (shape or {*content["example"], "code", "request_id"}), (method, path)
            stated = {content["example"][name] for name in ("status", "code") if name in content["example"]}
            assert not stated or int(status) in stated, (method, path)


def test_every_example_is_of_its_schema(document: dict[str, Any]) -> None:
    checked = 0
    for _, _, operation in operations(document):
        bodies = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        for contents in (*bodies, *(answer["content"] for answer in operation["responses"].values())):
            for content in contents.values():
                if "example" in content:
                    schema = content["schema"] | {"components": document["components"]}
                    jsonschema_rs.validate(schema, content["example"])
                    checked += 1
    assert checked > 200


def test_every_example_works(keyed_server: Server, document: dict[str, Any]) -> None:
    """What has none, since it is an image's bytes, is tried with a photograph."""
    photo = CAT.read_bytes()
    tried = 0
    with httpx2.Client(base_url=keyed_server.url, headers={"X-API-Key": KEY}) as client:
        for method, path, operation in operations(document):
            given = {p["name"]: example(p) for p in operation.get("parameters", ()) if p["in"] == "path"}
            target = path.format(**given)
            for kind, content in operation.get("requestBody", {"content": {None: {}}})["content"].items():
                sent: dict[str, Any] = {}
                if kind == "multipart/form-data":
                    [field] = content["schema"]["required"]
                    sent = {"files": {field: photo}}
                elif "example" in content:
                    sent = {"json": content["example"]}
                elif kind:
                    sent = {"content": photo, "headers": {"Content-Type": kind}}
                answer = client.request(method, target, **sent)
                assert answer.status_code == 200, (method, target, kind, answer.text)
                assert answer.headers["content-type"].partition(";")[0] in operation["responses"]["200"]["content"]
                tried += 1
    assert tried > 80


def example(parameter: dict[str, Any]) -> str:
    given: str = parameter["example"] if "example" in parameter else parameter["schema"]["examples"][0]
    return given


def test_without_keys_none_is_described(embedded_server: Server) -> None:
    document = httpx2.get(f"{embedded_server.url}/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    for _, _, operation in operations(document):
        assert "security" not in operation


def test_the_model_is_described(document: dict[str, Any]) -> None:
    described = document["components"]["schemas"]["TopK"]
    assert (described["type"], described["minimum"], described["maximum"]) == ("integer", 1, 1000)
    [top_k] = [p for p in document["paths"]["/v1/predict"]["post"]["parameters"] if p["name"] == "top_k"]
    assert top_k["schema"]["$ref"] == "#/components/schemas/TopK"
    body = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert body["multipart/form-data"]["schema"]["properties"]["top_k"]["$ref"] == "#/components/schemas/TopK"


def test_a_path_of_several_protocols_lists_all_its_methods(keyed_server: Server) -> None:
    for path, allowed in (("/", "GET, HEAD, POST"), ("/predictions/efficientnet_lite0", "POST, PUT")):
        answer = httpx2.delete(keyed_server.url + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_options_of_a_calibrated_model_are_described_wherever_they_are_read(document: dict[str, Any]) -> None:
    for path in ("/v1/predict", "/v1/predict/batch"):
        operation = document["paths"][path]["post"]
        assert {parameter["name"] for parameter in operation["parameters"]} > OPTIONS
        for kind in ("multipart/form-data", "application/json"):
            assert operation["requestBody"]["content"][kind]["schema"]["properties"].keys() > OPTIONS
    schemas = document["components"]["schemas"]
    assert schemas["RequestParameters"]["properties"].keys() > OPTIONS
    assert schemas["PredictAnswer"]["properties"].keys() > {"set", "typicality", "unknown", "explanation"}


@pytest.fixture
def calibrated_server() -> Iterator[Server]:
    """A calibrated model with an API key, Vertex AI's routes and a long request timeout."""
    env = {"TOPK_API_KEYS": KEY, "TOPK_REQUEST_TIMEOUT_MS": "60000"}
    env |= {"AIP_HEALTH_ROUTE": "/aip/health", "AIP_PREDICT_ROUTE": "/aip/predict"}
    server = Server(*tiny.calibrated(), env=env)
    yield server
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.usefixtures("priority")
def test_schemathesis_finds_nothing(calibrated_server: Server, tmp_path: Path) -> None:
    """All of its checks: what is valid is taken and answered as described, what is not is refused, keys are asked."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run"]
    # One worker: in Python 3.11, ast.parse fails now and then if two threads call it (python/cpython#106905).
    options = ["--checks", "all", "--seed", "1", "--workers", "1", "--continue-on-failure", "--no-shrink"]
    env = environment() | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
    run = [*command, *options, f"{calibrated_server.url}/openapi.json"]
    ran = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout[-20_000:]
    assert "No issues found" in ran.stdout
    counted = httpx2.get(f"{calibrated_server.url}/metrics", headers={"X-API-Key": KEY}).text
    assert float(re.findall(r"^topk_set_size_count (.*)", counted, re.MULTILINE)[0]) > 0


def test_the_document_is_rendered_once(app_server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    first = httpx2.get(f"{app_server.url}/openapi.json")
    head = httpx2.head(f"{app_server.url}/openapi.json")
    rendered: list[object] = []
    monkeypatch.setattr(openapi.orjson, "dumps", rendered.append)
    assert httpx2.get(f"{app_server.url}/openapi.json").content == first.content
    assert not rendered
    assert first.headers["content-type"] == "application/json"
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(first.content)))
    assert first.json()["components"]["schemas"]["TopK"]["maximum"] == 1000


def test_what_is_rendered_before_the_model_is_known_is_not_kept() -> None:
    app = create_app(Settings(_env_file=None, model="efficientnet_lite0"))
    client = TestClient(app)  # without a lifespan: nothing is loaded
    before = client.get("/openapi.json").json()
    assert "maximum" not in before["components"]["schemas"]["TopK"]
    classifier = app.state.service.classifier
    classifier._served = SimpleNamespace(model=SimpleNamespace(name="mine", labels=("a", "b")))
    classifier.readiness.serve()
    after = client.get("/openapi.json").json()
    assert after["components"]["schemas"]["TopK"]["maximum"] == 2
    assert "servers" not in after
    below = TestClient(app, root_path="/vision").get("/vision/openapi.json").json()
    assert below["servers"] == [{"url": "/vision"}]
