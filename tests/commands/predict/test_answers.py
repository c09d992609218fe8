"""Sets, typicality and explanations of ``topk predict``, as JSON."""

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from app.imagenet import taxonomy
from app.imagenet.labels import imagenet1k
from tests import tiny
from tests.commands.predict.conftest import CALIBRATION
from tests.commands.runner import topk
from tests.conftest import CAT, Server, slow

TINY = tiny.model()


def ask(*arguments: object) -> dict[str, Any]:
    ran = topk("predict", CAT, *arguments, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_the_set_is_that_of_the_calibration(calibrated: tuple[str, str]) -> None:
    answer = ask(*calibrated, "--coverage", "0.95", "--top-k", "1000")
    assert answer.keys() == {"file", "model", "weights", "predictions", "set", "typicality"}
    scores = np.zeros(1000)
    for one in answer["predictions"]:
        scores[one["class_id"]] = one["score"]
    wanted = CALIBRATION.set(scores, 0.95).tolist()
    assert [one["class_id"] for one in answer["set"]] == wanted
    assert answer["set"] == answer["predictions"][: len(wanted)]
    assert len(wanted) > 1


def test_unknown_needs_no_coverage(calibrated: tuple[str, str]) -> None:
    answer = ask(*calibrated, "--unknown", "0.99")
    assert answer.keys() == {"file", "model", "weights", "predictions", "typicality", "unknown"}
    assert answer["unknown"] is (answer["typicality"] <= 0.99)


def test_the_answer_in_wordnet_contains_the_set(calibrated: tuple[str, str]) -> None:
    answer = ask(*calibrated, "--coverage", "0.95", "--taxonomy")
    wordnet = taxonomy.of(imagenet1k())
    assert wordnet
    below = wordnet.above[wordnet.index[answer["answer"]["wnid"]]]
    assert below[[one["class_id"] for one in answer["set"]]].all()


@pytest.mark.slow
def test_the_members_are_those_of_the_api(calibrated: tuple[str, str], tmp_path: Path) -> None:
    wanted = ("--coverage", "0.95", "--unknown", "0.01", "--taxonomy", "--explain", tmp_path / "cat.png")
    mine = ask(*calibrated, *wanted, "--explain-class", "N02123045")
    server = Server(*calibrated)
    query = "coverage=0.95&unknown=0.01&taxonomy=true&explain=n02123045"
    theirs = httpx2.post(f"{server.url}/v1/predict?{query}", content=CAT.read_bytes()).json()
    assert server.stop() == 0
    assert list(mine) == ["file", *theirs]
    assert mine["explanation"]["class_id"] == 281
    assert mine["explanation"] == theirs["explanation"]
    assert [one["class_id"] for one in mine["set"]] == [one["class_id"] for one in theirs["set"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coverage", "0.9"], "--coverage needs a calibrated model: run `topk calibrate DIR --model MODEL"),
        slow(["--unknown", "0.9"], "--unknown needs a calibrated model: run `topk calibrate DIR --model MODEL"),
        (["--coverage", "1"], "--coverage must be less than 1, got 1.0"),
        (["--coverage", "nan"], "--coverage must be less than 1, got nan"),
        (["--unknown", "0"], "--unknown must be more than 0, got 0.0"),
        (["--coverage", "0.9", "--taxonomy", "--confidence", "0.5"], "--confidence and --coverage exclude each other"),
        (["--explain-class", "3"], "--explain-class requires --explain"),
        (["--explain", "a.png", "--explain-class", "tabby"], "must be a class id or a wnid, got 'tabby'"),
        slow(["--explain", "a.png", "--explain-class", "1000"], "must be a class id between 0 and 999 or the wnid"),
        (["--explain", "a.png", "--explain-class", "n00000000"], "or the wnid of a class, got 'n00000000'"),
    ],
)
def test_an_option_that_cannot_be_met_is_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = topk("predict", CAT, *TINY, *options)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
    assert message in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "--coverage",
            "0.995",
            "must be at most 0.99, because the model is calibrated on 99 images, got 0.995",
        ),
        (
            "--unknown",
            "0.001",
            "must be at least 0.01, because the model is calibrated on 99 images, got 0.001",
        ),
    ],
)
def test_a_calibration_supports_only_so_much(
    calibrated: tuple[str, str], option: str, value: str, message: str
) -> None:
    ran = topk("predict", CAT, *calibrated, option, value)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"topk: {option} {message}\n")


@pytest.mark.slow
def test_a_network_without_maps_is_one_line(squeezenet_folder: Path, tmp_path: Path) -> None:
    ran = topk("predict", CAT, "--model", squeezenet_folder, "--explain", tmp_path / "a.png")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "--explain is not available: the network of squeezenet1_1 does not end in global pooling" in ran.stderr


def test_explanations_that_are_turned_off_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_EXPLAIN", "false")
    ran = topk("predict", CAT, *TINY, "--explain", tmp_path / "a.png")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "--explain is not available: explanations are turned off" in ran.stderr
