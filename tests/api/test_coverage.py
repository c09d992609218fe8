"""``coverage`` and ``unknown`` over HTTP, with a calibrated tiny model."""

import base64
import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from app.imagenet import wordnet
from app.imagenet.labels import imagenet1k
from app.models import folder
from tests import tiny
from tests.api.wire import multipart
from tests.conftest import CAT, Server, slow
from tests.imagenet.test_taxonomy import above
from tests.models.folders import copy_of

PHOTO = CAT.read_bytes()
MODEL = folder.load(Path(tiny.calibrated()[1]))
CALIBRATION = MODEL.calibrations["float32"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(*tiny.calibrated(), "--precision", "float32")
    server.wait_for("ready")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    """The same model without a calibration."""
    server = Server(*tiny.model(), "--precision", "float32")
    yield server
    assert server.stop() == 0


def ask(server: Server, query: str = "", path: str = "/v1/predict", **form: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}{path}?{query}", timeout=60, **(form or {"content": PHOTO}))


def refused(answer: httpx2.Response) -> str:
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), answer.text
    return str(answer.json()["detail"])


def row(server: Server) -> tuple[np.ndarray[Any, Any], float]:
    """The calibrated probabilities of the photograph, and the log-sum-exp of its logits minus their mean."""
    outputs = [{"name": "scores"}, {"name": "logits"}]
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 224, 224], "data": [0.1] * 150528}]}
    url = f"{server.url}/v2/models/tiny-calibrated/infer"
    found = httpx2.post(url, json=body | {"outputs": outputs}, timeout=60).json()["outputs"]
    scores, logits = (np.array(output["data"]) for output in found)
    return scores, float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits.mean())


@pytest.mark.parametrize("coverage", [1e-309, 1e-13, 0.1, 0.5, 0.9, 0.95, 0.995])
def test_a_set_is_what_the_calibration_says(server: Server, coverage: float) -> None:
    answer = ask(server, f"coverage={coverage}&top_k=1000").json()
    scores = np.zeros(1000, np.float32)
    for one in answer["predictions"]:
        scores[one["class_id"]] = one["score"]
    assert [one["class_id"] for one in answer["set"]] == CALIBRATION.set(scores, coverage).tolist()
    assert answer["set"] == answer["predictions"][: len(answer["set"])]
    assert "unknown" not in answer


def test_a_set_grows_with_the_coverage_and_is_never_empty(server: Server) -> None:
    sizes = [len(ask(server, f"coverage={c}").json()["set"]) for c in (0.001, 0.5, 0.9, 0.99)]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)


def test_scores_are_at_the_temperature(server: Server, plain: Server) -> None:
    sharp, soft = (ask(one, "top_k=1000").json()["predictions"] for one in (plain, server))
    odds = [np.log(found[0]["score"] / found[1]["score"]) for found in (sharp, soft)]
    assert odds[1] == pytest.approx(odds[0] / CALIBRATION.temperature, rel=1e-3)


def test_typicality_is_the_p_value_of_the_energy(server: Server) -> None:
    _, energy = row(server)
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 224, 224], "data": [0.1] * 150528}]}
    url = f"{server.url}/v2/models/tiny-calibrated/infer"
    outputs = httpx2.post(url, json=body | {"parameters": {"unknown": 0.5}}, timeout=60).json()["outputs"]
    [typicality] = [output["data"][0] for output in outputs if output["name"] == "typicality"]
    assert typicality == pytest.approx((1 + (CALIBRATION.energies <= energy).sum()) / 201)


def test_unknown_is_a_typicality_of_at_most_that(server: Server) -> None:
    typicality = ask(server, "unknown=0.5").json()["typicality"]
    assert 0.1 < typicality < 0.9
    assert ask(server, f"unknown={typicality}").json()["unknown"] is True
    answer = ask(server, f"unknown={typicality - 0.001}").json()
    assert answer["unknown"] is False
    assert "set" not in answer


def test_the_answer_is_the_most_specific_node_above_the_set(server: Server) -> None:
    """Of the nodes above the whole set, the one with the fewest classes; checked by a walk over WordNet's file."""
    hypernyms = hypernyms_of_wordnet()
    counts = Counter(node for label in imagenet1k() for node in above(str(label.wnid), hypernyms))
    for coverage in (0.1, 0.6, 0.9):
        answer = ask(server, f"coverage={coverage}&taxonomy=true").json()
        common = set.intersection(*(above(one["wnid"], hypernyms) for one in answer["set"]))
        assert answer["answer"]["wnid"] in common
        assert counts[answer["answer"]["wnid"]] == min(counts[wnid] for wnid in common)
        assert answer["answer"]["score"] >= sum(one["score"] for one in answer["set"]) - 1e-5


def hypernyms_of_wordnet() -> dict[str, list[str]]:
    with wordnet.TREE.open(encoding="utf-8") as file:
        return {row["wnid"]: row["parents"].split() for row in csv.DictReader(file)}


def test_a_set_of_one_class_is_answered_with_that_class(server: Server) -> None:
    answer = ask(server, "coverage=0.001&taxonomy=true&top_k=1").json()
    assert answer["answer"] == {name: answer["set"][0][name] for name in ("wnid", "label", "score")}


def test_top_k_and_min_score_do_not_change_the_set(server: Server) -> None:
    whole = ask(server, "coverage=0.95&top_k=1000").json()["set"]
    answer = ask(server, "coverage=0.95&top_k=1&min_score=1").json()
    assert (answer["predictions"], answer["set"]) == ([], whole)
    assert len(whole) > 1


def test_options_in_any_place(server: Server) -> None:
    wanted = ask(server, "coverage=0.9&unknown=0.2").json()
    form = ask(server, files={"file": PHOTO}, data={"coverage": "0.9", "unknown": "0.2"}).json()
    document = {"image": photo_base64(), "coverage": 0.9, "unknown": 0.2}
    assert ask(server, json=document).json() == form == wanted


def test_a_bad_image_of_a_batch_fails_alone(server: Server) -> None:
    kind, body = multipart(("file", "a.jpg", PHOTO), ("file", "b.txt", b"no image"), ("file", "c.jpg", PHOTO))
    url = f"{server.url}/v1/predict/batch?coverage=0.9&unknown=0.1"
    first, second, third = httpx2.post(url, content=body, headers={"Content-Type": kind}).json()["results"]
    assert list(second) == ["filename", "error"]
    assert first["set"] == third["set"] != []
    assert {"typicality", "unknown"} <= first.keys()


@pytest.mark.parametrize("value", ["0", "1", "-1", "nan", "inf", "-inf", "true", "x", "1e400"])
@pytest.mark.parametrize("name", ["coverage", "unknown"])
def test_what_is_no_share_is_refused(server: Server, name: str, value: str) -> None:
    assert refused(ask(server, f"{name}={value}")).startswith(f"{name} must be ")


@pytest.mark.parametrize("name", ["coverage", "unknown"])
def test_what_is_no_share_is_refused_in_a_form_and_in_json(server: Server, name: str) -> None:
    for value in ("0", "1", "nan", "1e400", "true", "x"):
        answer = ask(server, files={"file": PHOTO}, data={name: value})
        assert refused(answer).startswith(f"{name} must be "), value
    for other in (True, "0.9", [], {}, 0, 1, -0.5):
        answer = ask(server, json={"image": photo_base64(), name: other})
        assert refused(answer).startswith(f"{name} must be "), other


def photo_base64() -> str:
    return base64.b64encode(PHOTO).decode()


@pytest.mark.parametrize(
    "query", ["coverage=0.9951", "coverage=0.999999999", "unknown=0.0049", "unknown=1e-300", "unknown=1e-309"]
)
def test_what_200_images_do_not_support_is_refused(server: Server, query: str) -> None:
    detail = refused(ask(server, query))
    assert "because the model is calibrated on 200 images" in detail
    assert len(detail) < 150


def test_what_200_images_just_support_is_answered(server: Server) -> None:
    assert ask(server, f"coverage={200 / 201}&unknown={1 / 201}").status_code == 200


def test_confidence_and_coverage_exclude_each_other(server: Server) -> None:
    for query in ("coverage=0.9&taxonomy=true&confidence=0.9", "coverage=0.9&confidence=0.9"):
        assert "confidence" in refused(ask(server, query))


def test_contradictions_are_refused(server: Server) -> None:
    answer = ask(server, "coverage=0.9", files={"file": PHOTO}, data={"coverage": "0.95"})
    assert "coverage is given twice" in refused(answer)


def test_info_describes_the_calibration(server: Server) -> None:
    found = httpx2.get(f"{server.url}/v1/info").json()["calibration"]
    assert (found["images"], found["precision"], found["temperature"]) == (200, "float32", 1.5)
    assert found["most_coverage"] == pytest.approx(200 / 201)
    assert found["least_unknown"] == pytest.approx(1 / 201)
    assert found["digest"] == f"sha256:{MODEL.digest}"


def test_answers_without_the_options_have_no_new_members(server: Server) -> None:
    assert list(ask(server).json()) == ["model", "weights", "predictions"]


def test_a_model_without_a_calibration_says_what_to_run(plain: Server) -> None:
    for query in ("coverage=0.9", "unknown=0.1"):
        detail = refused(ask(plain, query))
        assert detail.startswith(f"{query.partition('=')[0]} needs a calibrated model: run `topk calibrate DIR --model")
    url = f"{plain.url}/v1/predict/batch?coverage=0.9"
    assert "topk calibrate" in refused(httpx2.post(url, files={"file": PHOTO}))
    assert httpx2.get(f"{plain.url}/v1/info").json()["calibration"] is None


@pytest.mark.slow
def test_another_precision_is_refused_and_the_start_warns(tmp_path: Path) -> None:
    copy = copy_of(Path(tiny.model()[1]), tmp_path / "copy")
    tiny.calibrate(copy, "int8")
    server = Server("--model", str(copy), "--precision", "float32")
    assert "needs a calibration in float32" in refused(ask(server, "coverage=0.9"))
    warnings = [str(line["event"]) for line in server.log if line.get("level") == "warning"]
    assert ["coverage and unknown are refused" in warning for warning in warnings] == [True]
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("name", "other"),
    [
        slow("weights", "other weights"),
        slow("labels", "other labels"),
        slow("network", "another network"),
        ("preprocessing", "other preprocessing"),
    ],
)
def test_a_calibration_of_another_model_is_refused_at_the_start(tmp_path: Path, name: str, other: str) -> None:
    copy = copy_of(Path(tiny.calibrated()[1]), tmp_path / "copy")
    written = json.loads((copy / "calibration.json").read_text())
    (copy / "calibration.json").write_text(json.dumps(written | {name: "0" * 64}))
    server = Server("--model", str(copy))
    assert server.process.wait(60) == 1
    server.stop()
    assert f"measured with {other} than this model's" in str(server.log)
