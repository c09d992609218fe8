"""Options in the query, in form fields and as JSON members."""

import base64
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.api.conftest import InProcess
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()

Send = Callable[..., httpx2.Response]


def as_form(url: str, **options: Any) -> httpx2.Response:
    fields = {name: str(value).lower() for name, value in options.items()}
    return httpx2.post(url, files={"file": PHOTO}, data=fields, timeout=60)


def as_json(url: str, **options: Any) -> httpx2.Response:
    image = {"images": [BASE64]} if "batch" in url else {"image": BASE64}
    return httpx2.post(url, json=image | options, timeout=60)


def in_query(url: str, **options: Any) -> httpx2.Response:
    return httpx2.post(url, params=options, files={"file": PHOTO}, timeout=60)


body = pytest.mark.parametrize("send", [as_form, as_json])
anywhere = pytest.mark.parametrize("send", [as_form, as_json, in_query])


def first(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found["results"][0] if "results" in found else found


def refused(answer: httpx2.Response) -> str:
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    detail: str = answer.json()["detail"]
    return detail


@anywhere
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_every_option_of_a_prediction_is_accepted(app_server: InProcess, path: str, send: Send) -> None:
    url = app_server.url + path
    assert len(first(send(url, top_k=3))["predictions"]) == 3
    likely = first(send(url, top_k=1000, min_score=0.3))["predictions"]
    assert [prediction["label"] for prediction in likely] == ["Egyptian cat", "tiger cat"]
    placed = first(send(url, taxonomy=True, confidence=0.2))
    assert placed["answer"]["wnid"] == placed["predictions"][0]["wnid"]
    assert first(send(url, explain="n02124075"))["explanation"]["class_id"] == 285


@anywhere
@pytest.mark.parametrize("path", ["/v1/embed", "/v1/embed/batch"])
def test_every_option_of_an_embedding_is_accepted(app_server: InProcess, path: str, send: Send) -> None:
    url = app_server.url + path
    numbers = first(send(url, normalize=True))["embedding"]
    assert sum(number * number for number in numbers) == pytest.approx(1, abs=1e-4)
    assert isinstance(first(send(url, encoding="base64"))["embedding"], str)


@anywhere
@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_paths_of_other_servers_accept_them_too(app_server: InProcess, path: str, send: Send) -> None:
    assert len(first(send(app_server.url + path, top_k=2))["predictions"]) == 2


@body
def test_one_option_may_be_in_the_query_and_another_in_the_body(app_server: InProcess, send: Send) -> None:
    placed = first(send(f"{app_server.url}/v1/predict?confidence=0.2&top_k=1", taxonomy=True))
    assert (len(placed["predictions"]), "answer" in placed) == (1, True)


@body
def test_the_same_value_twice_is_no_contradiction(app_server: InProcess, send: Send) -> None:
    assert len(first(send(f"{app_server.url}/v1/predict?top_k=3&top_k=03", top_k=3))["predictions"]) == 3


@body
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_different_values_are_refused(app_server: InProcess, path: str, send: Send) -> None:
    detail = refused(send(f"{app_server.url}{path}?top_k=3", top_k=4))
    assert detail == "top_k is given twice, as 3 and 4; give it once"
    assert "normalize is given twice" in refused(send(f"{app_server.url}/v1/embed?normalize=0", normalize=True))


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch", "/predict"])
def test_different_values_in_the_query_are_refused(app_server: InProcess, path: str) -> None:
    assert "twice" in refused(httpx2.post(f"{app_server.url}{path}?top_k=3&top_k=4", content=PHOTO))


def test_different_values_in_a_form_are_refused(app_server: InProcess) -> None:
    fields = [("top_k", (None, "3")), ("file", ("cat.jpg", PHOTO)), ("top_k", (None, "4"))]
    assert "twice" in refused(httpx2.post(f"{app_server.url}/v1/predict", files=fields))


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_k": "3"}, "top_k must be a whole number, got '3'"),
        ({"top_k": 1.5}, "top_k must be a whole number, got 1.5"),
        ({"top_k": True}, "top_k must be a whole number, got true"),
        ({"top_k": [3]}, "top_k must be a whole number, got a list"),
        ({"top_k": 1001}, "top_k must be between 1 and 1000, the number of classes, got 1001"),
        ({"min_score": 2}, "min_score must be at most 1, got 2"),
        ({"taxonomy": "perhaps"}, "taxonomy must be true or false, got 'perhaps'"),
        ({"taxonomy": True, "confidence": 0}, "confidence must be more than 0, got 0"),
        ({"confidence": 0.5}, "confidence requires taxonomy, which adds the answer that it applies to"),
        ({"coverage": 1}, "coverage must be less than 1, got 1"),
        ({"unknown": "few"}, "unknown must be a number, got 'few'"),
        ({"explain": 1.5}, "explain must be true, false, a class id or a wnid, got 1.5"),
        ({"explain": True, "explain_png": 1}, "explain_png must be true or false, got 1"),
    ],
)
def test_a_wrong_value_in_json_is_named(app_server: InProcess, options: dict[str, Any], detail: str) -> None:
    assert refused(as_json(f"{app_server.url}/v1/predict", **options)) == detail


@pytest.mark.parametrize(("name", "value"), [("top_k", "many"), ("min_score", "nan"), ("taxonomy", "perhaps")])
def test_a_wrong_value_in_a_form_is_named(app_server: InProcess, name: str, value: str) -> None:
    detail = refused(as_form(f"{app_server.url}/v1/predict", **{name: value}))
    assert detail.startswith(f"{name} must be ")
    assert detail.endswith(f", got '{value}'")


def test_a_whole_number_may_be_written_as_a_fraction_in_json(app_server: InProcess) -> None:
    assert len(first(as_json(f"{app_server.url}/v1/predict", top_k=3.0))["predictions"]) == 3


@body
def test_what_is_left_out_or_unknown_changes_nothing(app_server: InProcess, send: Send) -> None:
    url = f"{app_server.url}/v1/predict"
    plain = httpx2.post(url, content=PHOTO).json()
    assert send(url, csrf="x", submit="Send").json() == plain
    assert as_json(url, top_k=None, taxonomy=None, coverage=None, explain=None).json() == plain
    assert (
        as_form(url, top_k="", confidence="", unknown="", explain="", explain_png="").json() == plain
    )  # a web form's empty inputs


@pytest.mark.parametrize(("name", "meant"), [("k", "top_k"), ("limit", "top_k"), ("K", "top_k"), ("topk", "top_k")])
def test_another_name_in_the_query_is_refused_with_the_right_one(app_server: InProcess, name: str, meant: str) -> None:
    detail = refused(httpx2.post(f"{app_server.url}/v1/predict?{name}=3", content=PHOTO))
    assert detail == f"unknown parameter {name}; use {meant}"
    assert httpx2.post(f"{app_server.url}/v1/embed?{name}=3", content=PHOTO).status_code == 200  # it has no top_k


def test_the_documentation_shows_form_fields_and_json_members(app_server: InProcess) -> None:
    document = httpx2.get(f"{app_server.url}/openapi.json").json()
    added = {"taxonomy", "confidence", "coverage", "unknown", "explain", "explain_png"}
    expected = {"predict": {"top_k", "min_score", *added}, "embed": {"encoding", "normalize"}}
    for path, operation in document["paths"].items():
        if not path.startswith(("/v1/predict", "/v1/embed")):
            continue
        options = expected[path.split("/")[2]]
        content = operation["post"]["requestBody"]["content"]
        assert options < content["multipart/form-data"]["schema"]["properties"].keys()
        assert options < content["application/json"]["schema"]["properties"].keys()
