"""``topk calibrate`` from end to end: a model and photographs in, a calibrated model folder out."""

import hashlib
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
from rich.console import Console

from app.calibration import stored
from app.commands import training_images
from app.commands.calibrate.run import run
from app.commands.evaluate.progress import EvaluationProgress
from app.models import folder
from app.models.openvino import native_precisions
from tests import tiny
from tests.commands.calibrate.conftest import PICTURES, WRONG, settings
from tests.commands.runner import topk
from tests.conftest import Server

FLOAT32 = ("--precision", "float32")


def calibrate(*arguments: object) -> dict[str, Any]:
    ran = topk("calibrate", *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def refusal(*arguments: object) -> str:
    """What a command says that ends with an error."""
    ran = topk("calibrate", *arguments, columns=1000)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("topk: ")
    return ran.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny.model()[1], tmp_path / "copy"))


@pytest.mark.slow
def test_each_native_precision_is_calibrated(photographs: Path, copy: Path) -> None:
    before = set(copy.iterdir())
    found = calibrate(photographs, "--model", copy)
    assert [one["precision"] for one in found["precisions"]] == list(native_precisions())
    assert found["out"] == str(copy)
    assert set(copy.iterdir()) - before == {copy / stored.FILE}
    assert {name: one.images for name, one in folder.load(copy).calibrations.items()} == dict.fromkeys(
        native_precisions(), PICTURES
    )


def test_the_figures_are_those_of_the_photographs(photographs: Path, copy: Path) -> None:
    (one,) = calibrate(photographs, "--model", copy, *FLOAT32)["precisions"]
    assert one["images"] == PICTURES
    assert one["mistakes"] == WRONG
    assert one["accuracy"] == 1 - WRONG / PICTURES
    assert [row["coverage"] for row in one["covered"]] == [0.9, 0.95]  # 32 images in each fold do not support 0.99
    assert all(row["interval"][0] <= row["share"] <= row["interval"][1] for row in one["covered"])
    assert one["most_coverage"] == pytest.approx(40 / 41)
    assert folder.load(copy).calibrations["float32"].temperature == one["temperature"]


def test_a_new_folder_has_the_model_and_its_calibration(calibrated: Path) -> None:
    source = Path(tiny.model()[1])
    assert {path.name for path in calibrated.iterdir()} == {path.name for path in source.iterdir()} | {stored.FILE}
    assert folder.identity(calibrated) == folder.identity(source)
    assert not folder.load(source).calibrations


@pytest.mark.slow
def test_the_list_of_training_images_is_copied(photographs: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "training-images.sha256").write_text("0123456789abcdef\n")
    calibrate(photographs, "--model", copy, *FLOAT32, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "training-images.sha256").read_text() == "0123456789abcdef\n"


@pytest.mark.slow
def test_images_of_the_training_are_reported(photographs: Path, copy: Path) -> None:
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in list(photographs.rglob("*.png"))[:3]]
    training_images.write(copy, digests)
    ran = topk("calibrate", photographs, "--model", copy, *FLOAT32)
    assert "the model was trained on 3 of these 40 photographs" in " ".join(ran.stderr.split())


@pytest.mark.slow
def test_a_csv_file_gives_the_same(photographs: Path, listing: Path, copy: Path, calibrated: Path) -> None:
    calibrate(listing, "--model", copy, *FLOAT32)
    mine, other = (folder.load(path).calibrations["float32"] for path in (copy, calibrated))
    assert mine.temperature == other.temperature
    assert np.array_equal(mine.scores, other.scores)


@pytest.mark.slow
def test_an_earlier_calibration_does_not_change_the_measurement(
    photographs: Path, calibrated: Path, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(calibrated, tmp_path / "again"))
    tiny.calibrate(again, "float32")  # with a temperature of 1.5
    calibrate(photographs, "--model", again, *FLOAT32)
    mine, other = (folder.load(path).calibrations["float32"] for path in (again, calibrated))
    assert mine.temperature == other.temperature
    assert np.array_equal(mine.energies, other.energies)


@pytest.mark.slow
def test_other_precisions_are_kept(photographs: Path, copy: Path, tmp_path: Path) -> None:
    tiny.calibrate(copy, "float32", "float16")
    calibrate(photographs, "--model", copy, *FLOAT32)
    found = folder.load(copy).calibrations
    assert {name: one.images for name, one in found.items()} == {"float32": PICTURES, "float16": 200}


@pytest.mark.slow
def test_a_new_folder_has_only_what_was_measured(photographs: Path, copy: Path, tmp_path: Path) -> None:
    tiny.calibrate(copy, "float16")
    calibrate(photographs, "--model", copy, *FLOAT32, "--out", tmp_path / "out")
    assert set(folder.load(tmp_path / "out").calibrations) == {"float32"}


def test_the_tables_name_what_was_measured(photographs: Path, copy: Path) -> None:
    ran = topk("calibrate", photographs, "--model", copy, *FLOAT32, columns=120)
    assert "float32: top-1 accuracy 75.0 %" in ran.stdout
    assert "of 40 photographs of" in ran.stdout
    assert "40 photographs support a coverage of up to 0.9756, and unknown from 0.024" in ran.stdout
    assert "a coverage of 99 % needs at least 99" in ran.stderr
    assert "Coverage requested" in ran.stdout
    assert f"topk serve --model {copy}" in ran.stdout.replace("\n", "")


@pytest.mark.slow
def test_unreadable_files_are_left_out_and_named(photographs: Path, copy: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(photographs, tmp_path / "mine"))
    torn = next(mine.rglob("00.png"))
    torn.write_bytes(torn.read_bytes()[:200])
    ran = topk("calibrate", mine, "--model", copy, *FLOAT32, "--json", columns=1000)
    assert json.loads(ran.stdout)["precisions"][0]["images"] == PICTURES - 1
    assert f"not readable, and left out: {torn}" in ran.stderr


@pytest.fixture
def cache(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without logits."""
    monkeypatch.setenv("TOPK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The finished photographs at each step of the progress. The first run gets a real SIGINT after ten."""
    seen: list[int] = []
    count = EvaluationProgress.__call__

    def interrupt(self: EvaluationProgress, done: int) -> None:
        count(self, done)
        seen.append(done)
        if len(seen) == 11:  # the first step counts those of an earlier run
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EvaluationProgress, "__call__", interrupt)
    return seen


def test_an_interrupted_run_resumes(photographs: Path, copy: Path, cache: Path, seen: list[int]) -> None:
    ran = topk("calibrate", photographs, "--model", copy, *FLOAT32, columns=200)
    assert ran.returncode == 130
    assert "of 40 images are done; run the same command again to resume" in ran.stderr
    assert not (copy / stored.FILE).exists()
    steps = len(seen)
    calibrate(photographs, "--model", copy, *FLOAT32)
    assert seen[steps] == seen[steps - 1] >= 10
    assert seen[-1] == PICTURES


def test_the_stored_logits_are_deleted_when_the_calibration_is_written(
    photographs: Path, copy: Path, cache: Path, seen: list[int]
) -> None:
    assert topk("calibrate", photographs, "--model", copy, *FLOAT32).returncode == 130
    assert len(list(cache.rglob("logits-*.sqlite"))) == 1
    calibrate(photographs, "--model", copy, *FLOAT32)
    assert list(cache.rglob("logits-*")) == []


def test_the_logits_of_another_int8_network_are_not_used(
    photographs: Path, cache: Path, seen: list[int], tmp_path: Path
) -> None:
    """Two quantisations of the same weights, in folders of the same name."""
    for parent, network in (("first", tiny.network()), ("second", tiny.network(hidden=True))):
        (tmp_path / parent / "model").mkdir(parents=True)
        tiny.write_int8(tmp_path / parent / "model", network)
    assert topk("calibrate", photographs, "--model", tmp_path / "first" / "model").returncode == 130
    steps = len(seen)
    found = calibrate(photographs, "--model", tmp_path / "second" / "model")
    assert [one["precision"] for one in found["precisions"]] == ["int8"]
    assert seen[steps] == 0


def test_the_fit_is_shown_on_a_terminal(photographs: Path, copy: Path) -> None:
    file = io.StringIO()
    progress = EvaluationProgress(Console(file=file, force_terminal=True, width=100))
    run(photographs, settings(model=str(copy), precision="float32"), None, progress)
    assert "fitting the calibration" in file.getvalue()


@pytest.mark.slow
def test_the_calibrated_folder_is_served(photographs: Path, calibrated: Path) -> None:
    picture = next(photographs.rglob("11.png"))
    server = Server("--model", str(calibrated), *FLOAT32)
    answer = httpx2.post(f"{server.url}/v1/predict?coverage=0.9&unknown=0.05", content=picture.read_bytes()).json()
    info = httpx2.get(f"{server.url}/v1/info").json()
    assert server.stop() == 0
    assert info["calibration"]["images"] == PICTURES
    assert answer["set"][0]["class_id"] == int(picture.parent.name)
    assert answer["typicality"] > 0


@pytest.mark.slow
def test_a_model_that_is_no_folder_is_exported(photographs: Path, squeezenet_weights: Path, tmp_path: Path) -> None:
    model = ("--model", "squeezenet1_1", "--weights", squeezenet_weights)
    assert "--out is needed" in refusal(photographs, *model)
    calibrate(photographs, *model, *FLOAT32, "--out", tmp_path / "out")
    found = folder.load(tmp_path / "out")
    assert found.architecture == "squeezenet1_1"
    assert set(found.calibrations) == {"float32"}


def test_impossible_photographs_are_refused(photographs: Path, copy: Path, tmp_path: Path) -> None:
    one, few = tmp_path / "one" / "7", tmp_path / "few"
    one.mkdir(parents=True)
    for path in photographs.rglob("*.png"):
        shutil.copy(path, one)
    shutil.copytree(photographs, few)
    for path in list(few.rglob("*.png"))[19:]:
        path.unlink()
    assert "all photographs are of one class" in refusal(one.parent, "--model", copy)
    assert "at least 20 labelled photographs are needed, got 19" in refusal(few, "--model", copy)
    shutil.move(one, one.with_name("no such class"))
    assert "no such class" in refusal(one.parent, "--model", copy)
    assert "no such folder" in refusal(tmp_path / "absent", "--model", copy)
    assert not (copy / stored.FILE).exists()


def test_impossible_targets_are_refused_at_once(photographs: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    model = ("--model", copy)
    assert "full is not empty; choose a new folder" in refusal(photographs, *model, "--out", tmp_path / "full")
    assert "where it would become a class" in refusal(photographs, *model, "--out", photographs / "out")
    assert not (photographs / "out").exists()


@pytest.mark.slow
def test_the_calibration_of_other_weights_is_refused_at_once(photographs: Path, copy: Path) -> None:
    tiny.calibrate(copy, "float32")
    document = orjson.loads((copy / stored.FILE).read_bytes())
    (copy / stored.FILE).write_bytes(orjson.dumps(document | {"weights": "0" * 64}))
    assert "was measured with other weights than this model's; delete the file" in refusal(photographs, "--model", copy)
