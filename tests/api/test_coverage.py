"""``coverage`` and ``unknown`` over HTTP, with a calibrated tiny model."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from app.imagenet import taxonomy
from app.imagenet.labels import imagenet1k
from app.models import folder
from tests import tiny
from tests.api.wire import multipart
from tests.conftest import CAT, Server
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


@pytest.mark.parametrize("coverage", [1e-13, 0.1, 0.5, 0.9, 0.95, 0.995])
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


def test_scores_are_at_the_temperature(server: Server) -> None:
    plain = Server(*tiny.model(), "--precision", "float32")
    sharp, soft = (ask(one, "top_k=1000").json()["predictions"] for one in (plain, server))
    assert plain.stop() == 0
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
    for coverage in (0.1, 0.6, 0.9):
        answer = ask(server, f"coverage={coverage}&taxonomy=true").json()
        wnids = {one["wnid"] for one in answer["set"]}
        assert answer["answer"]["wnid"] == slow_walk(wnids)
        leaves = leaves_below(answer["answer"]["wnid"])
        assert wnids <= leaves


def leaves_below(wnid: str) -> set[str]:
    tree = taxonomy.of(imagenet1k())
    assert tree
    children = {tree.nodes[i].wnid: [tree.nodes[c].wnid for c in tree.children[i]] for i in range(len(tree.nodes))}
    found, waiting = set(), [wnid]
    while waiting:
        if not (below := children[one := waiting.pop()]):
            found.add(one)
        waiting += below
    return found


def slow_walk(wnids: set[str]) -> str:
    """The node with the fewest classes among all that contain the set; of equals, the one furthest from the root."""
    tree = taxonomy.of(imagenet1k())
    assert tree
    depths: dict[int, int] = {}
    for i in range(len(tree.nodes)):
        depths[i] = 1 + max((depths[parent] for parent in tree.parents[i]), default=-1)
    around = [i for i in range(len(tree.nodes)) if wnids <= leaves_below(tree.nodes[i].wnid)]
    chosen = min(around, key=lambda i: (len(leaves_below(tree.nodes[i].wnid)), -depths[i], tree.nodes[i].wnid))
    return tree.nodes[chosen].wnid


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


@pytest.mark.parametrize("value", [True, "0.9", [], {}, 0, 1, -0.5])
def test_what_is_no_share_in_json_is_refused(server: Server, value: object) -> None:
    assert refused(ask(server, json={"image": photo_base64(), "coverage": value})).startswith("coverage must be ")


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


def test_v2_adds_outputs_in_json_and_binary(server: Server) -> None:
    url = f"{server.url}/v2/models/tiny-calibrated/infer"
    wanted = ask(server, "coverage=0.9&unknown=0.1&explain=3").json()
    parameters = {"coverage": 0.9, "unknown": 0.1, "explain": 3}
    image = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [photo_base64()] * 2}
    found = httpx2.post(url, json={"inputs": [image], "parameters": parameters}).json()["outputs"]
    named = {output["name"]: output for output in found}
    assert list(named) == [
        "scores",
        "set",
        "typicality",
        "unknown",
        *(f"explanation{n}" for n in ("", "_class", "_box")),
    ]
    assert named["set"]["shape"] == [2, len(wanted["set"])]
    assert named["set"]["data"][0].split(":")[1:] == [str(wanted["set"][0]["class_id"]), wanted["set"][0]["label"]]
    assert named["typicality"]["data"] == pytest.approx([wanted["typicality"]] * 2)
    assert named["unknown"] == {"name": "unknown", "datatype": "BOOL", "shape": [2], "data": [wanted["unknown"]] * 2}
    assert named["explanation_class"]["data"] == [3, 3]
    assert named["explanation_box"]["data"][:4] == pytest.approx(wanted["explanation"]["box"], abs=0.1)
    grid = np.array(named["explanation"]["data"]).reshape(named["explanation"]["shape"])
    assert np.allclose(grid[0], wanted["explanation"]["grid"], atol=1e-3)
    answer = httpx2.post(url, json={"inputs": [image], "parameters": parameters | {"binary_data_output": True}})
    head = json.loads(answer.content[: int(answer.headers["Inference-Header-Content-Length"])])
    sizes = {output["name"]: output["parameters"]["binary_data_size"] for output in head["outputs"]}
    assert (sizes["typicality"], sizes["unknown"], sizes["explanation_class"]) == (8, 2, 16)


def test_v2_pads_sets_of_different_sizes(server: Server) -> None:
    url = f"{server.url}/v2/models/tiny-calibrated/infer"
    random = np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float32) * np.array([0, 1, 3, 9]).reshape(
        4, 1, 1, 1
    )
    image = {"name": "image", "datatype": "FP32", "shape": [4, 3, 224, 224], "data": random.ravel().tolist()}
    answer = httpx2.post(url, json={"inputs": [image], "parameters": {"coverage": 0.9}}, timeout=60).json()["outputs"]
    [found] = [output for output in answer if output["name"] == "set"]
    rows = np.array(found["data"], object).reshape(found["shape"])
    assert all(rows[:, 0] != "")
    assert max(sum(text != "" for text in one) for one in rows) == found["shape"][1]


@pytest.mark.parametrize("parameters", [{"coverage": 2}, {"coverage": "0.9"}, {"unknown": 1e-309}, {"explain": "n1"}])
def test_v2_refuses_the_same(server: Server, parameters: dict[str, object]) -> None:
    url = f"{server.url}/v2/models/tiny-calibrated/infer"
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [photo_base64()]}
    answer = httpx2.post(url, json={"inputs": [image], "parameters": parameters})
    assert answer.status_code == 400
    assert next(iter(parameters)) in answer.json()["error"]


def test_a_model_without_a_calibration_says_what_to_run() -> None:
    server = Server(*tiny.model())
    for query in ("coverage=0.9", "unknown=0.1"):
        assert "run `topk calibrate DIR --model MODEL --out FOLDER`" in refused(ask(server, query))
    assert httpx2.get(f"{server.url}/v1/info").json()["calibration"] is None
    assert server.stop() == 0


def test_another_precision_is_refused_and_the_start_warns(tmp_path: Path) -> None:
    copy = copy_of(Path(tiny.model()[1]), tmp_path / "copy")
    tiny.calibrate(copy, "int8")
    server = Server("--model", str(copy), "--precision", "float32")
    assert "needs a calibration in float32" in refused(ask(server, "coverage=0.9"))
    warnings = [str(line["event"]) for line in server.log if line.get("level") == "warning"]
    assert ["coverage and unknown are refused" in warning for warning in warnings] == [True]
    assert server.stop() == 0


@pytest.mark.parametrize("name", ["weights", "labels", "preprocessing", "network"])
def test_a_calibration_of_another_model_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    copy = copy_of(Path(tiny.calibrated()[1]), tmp_path / "copy")
    written = json.loads((copy / "calibration.json").read_text())
    (copy / "calibration.json").write_text(json.dumps(written | {name: "0" * 64}))
    server = Server("--model", str(copy))
    assert server.process.wait(60) == 1
    server.stop()
    assert f"another {name} than this model's" in str(server.log)
