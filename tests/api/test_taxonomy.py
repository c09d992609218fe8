"""WordNet over HTTP: where a photograph stands, and the nodes themselves."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from app.imagenet.labels import imagenet1k
from app.main import create_app
from app.models.folder import DESCRIPTION
from app.settings import Settings
from tests import tiny
from tests.api.conftest import InProcess, served
from tests.api.wire import Wire, multipart
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
DOG, ROOT, SAMOYED = "n02084071", "n00001740", "n02111889"


@pytest.fixture(scope="module")
def without_wnids(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Somebody's own classes."""
    folder = shutil.copytree(tiny.model()[1], tmp_path_factory.mktemp("own") / "own")
    description = json.loads((folder / DESCRIPTION).read_text())
    description["labels"] = [[label, None] for label, _ in description["labels"]]
    (folder / DESCRIPTION).write_text(json.dumps(description))
    with served(model=str(folder)) as server:
        yield server


def predict(server: InProcess, query: str) -> dict[str, Any]:
    answer = httpx2.post(f"{server.url}/v1/predict?{query}", content=PHOTO, timeout=60)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def node(server: InProcess, wnid: str) -> dict[str, Any]:
    answer = httpx2.get(f"{server.url}/v1/taxonomy/{wnid}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_photograph_stands_on_a_way_from_the_root_to_its_best_class(app_server: InProcess) -> None:
    body = predict(app_server, "taxonomy=true&top_k=1000")
    path = body["taxonomy"]
    assert path[0] == {"wnid": ROOT, "label": "entity", "score": pytest.approx(1, abs=1e-3)}
    assert path[-1] == {key: pytest.approx(body["predictions"][0][key]) for key in ("wnid", "label", "score")}
    scores = {prediction["class_id"]: prediction["score"] for prediction in body["predictions"]}
    for place in path:
        leaves = node(app_server, place["wnid"])["leaves"]
        assert place["score"] == pytest.approx(sum(scores[leaf["class_id"]] for leaf in leaves), abs=1e-5)
    for parent, child in pairwise(path):
        assert parent["wnid"] in {above["wnid"] for above in node(app_server, child["wnid"])["parents"]}
    assert [place["score"] for place in path] == sorted((place["score"] for place in path), reverse=True)


def test_a_model_that_hesitates_between_cats_answers_cat(app_server: InProcess) -> None:
    body = predict(app_server, "taxonomy=true")
    assert body["predictions"][0]["score"] < 0.5
    assert body["answer"]["label"] in ("domestic cat", "cat")
    assert body["answer"]["score"] >= 0.9
    assert body["answer"] in body["taxonomy"]


@pytest.mark.parametrize("confidence", [0.2, 0.5, 0.9, 0.99, 1])
def test_the_answer_has_the_fewest_classes_of_all_that_reach_the_confidence(
    app_server: InProcess, confidence: float
) -> None:
    body = predict(app_server, f"taxonomy=1&confidence={confidence}")
    answer = body["answer"]
    assert answer["score"] >= min(confidence, body["taxonomy"][0]["score"])
    size = len(node(app_server, answer["wnid"])["leaves"])
    for place in body["taxonomy"]:
        assert place["score"] < confidence or len(node(app_server, place["wnid"])["leaves"]) >= size


def test_nothing_is_added_unasked(app_server: InProcess) -> None:
    for query in ("", "taxonomy=false"):
        assert predict(app_server, query).keys() == {"model", "weights", "predictions"}


def test_each_image_of_a_batch_has_its_own_place(app_server: InProcess) -> None:
    kind, body = multipart(("file", "a.jpg", PHOTO), ("file", "b.txt", b"no image"), ("file", "c.jpg", PHOTO))
    url = f"{app_server.url}/v1/predict/batch?taxonomy=true&confidence=0.2&top_k=1"
    first, second, third = httpx2.post(url, content=body, headers={"Content-Type": kind}).json()["results"]
    assert first.keys() == {"filename", "predictions", "taxonomy", "answer"}
    assert second.keys() == {"filename", "error"}
    for result in (first, third):
        assert result["answer"]["wnid"] == result["predictions"][0]["wnid"] == result["taxonomy"][-1]["wnid"]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
@pytest.mark.parametrize(
    "query",
    [
        "taxonomy=true&confidence=0",
        "taxonomy=true&confidence=1.01",
        "taxonomy=true&confidence=nan",
        "confidence=0.8",
        "taxonomy=perhaps",
    ],
)
def test_a_parameter_out_of_range_is_named(app_server: InProcess, path: str, query: str) -> None:
    answer = httpx2.post(f"{app_server.url}{path}?{query}", content=PHOTO)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    assert query.split("&")[-1].split("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_a_model_without_wnids_refuses_before_the_body_arrives(without_wnids: InProcess, path: str) -> None:
    with Wire(without_wnids.port) as wire:
        wire.head(f"{path}?taxonomy=true", "Content-Type: image/jpeg", "Content-Length: 100000")
        assert wire.status() == 400
        assert b'"invalid_parameter"' in wire.read_all()
    assert predict(without_wnids, "")["predictions"][0]["wnid"] is None


def test_a_model_without_wnids_has_no_nodes(without_wnids: InProcess) -> None:
    answer = httpx2.get(f"{without_wnids.url}/v1/taxonomy/{DOG}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_node_has_its_label_gloss_parents_children_and_classes(app_server: InProcess) -> None:
    dog = node(app_server, DOG)
    assert dog.keys() == {"wnid", "label", "gloss", "parents", "children", "leaves"}
    assert (dog["wnid"], dog["label"]) == (DOG, "dog")
    assert "domesticated by man since prehistoric times" in dog["gloss"]
    assert [parent["label"] for parent in dog["parents"]] == ["canine", "domestic animal"]
    assert {"wnid": "n02112497", "label": "Pomeranian"} not in dog["children"]
    assert {"wnid": "n02111626", "label": "spitz"} in dog["children"]
    assert [leaf["class_id"] for leaf in dog["leaves"]] == list(range(151, 269))
    assert dog["leaves"][107] == {"class_id": 258, "wnid": SAMOYED, "label": "Samoyed"}


def test_a_class_is_its_own_only_leaf_and_the_root_has_all(app_server: InProcess) -> None:
    samoyed = node(app_server, SAMOYED)
    assert (samoyed["children"], [leaf["class_id"] for leaf in samoyed["leaves"]]) == ([], [258])
    root = node(app_server, ROOT)
    assert root["parents"] == []
    assert [leaf["wnid"] for leaf in root["leaves"]] == [label.wnid for label in imagenet1k()]


@pytest.mark.parametrize("wnid", ["n99999999", "dog", "N02084071", "n00001740%0A", "%00"])
def test_an_unknown_wnid_is_not_found(app_server: InProcess, wnid: str) -> None:
    answer = httpx2.get(f"{app_server.url}/v1/taxonomy/{wnid}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_node_needs_a_key_where_keys_are_asked_for(small_limits: InProcess) -> None:
    url = f"{small_limits.url}/v1/taxonomy/{DOG}"
    assert httpx2.get(url).status_code == 401
    assert httpx2.get(url, headers={"Authorization": "Bearer first-key"}).status_code == 200


def test_the_openapi_document_describes_it() -> None:
    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    for path in ("/v1/predict", "/v1/predict/batch"):
        assert {"taxonomy", "confidence"} <= {parameter["name"] for parameter in paths[path]["post"]["parameters"]}
    assert {"200", "401", "404", "503"} <= paths["/v1/taxonomy/{wnid}"]["get"]["responses"].keys()
