"""The samples of the least certain images, on disk."""

import dataclasses
import json
import os
import shutil
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from app.commands.evaluate.read import find, match
from app.drift.samples import ANSWERS, Certainties, SampleStore, class_folder, suffix, total_bytes
from app.engine.base import Row
from app.errors import ModelError
from app.imagenet.labels import Label, imagenet1k
from app.imagenet.predictions import Prediction
from app.models import folder
from app.models.model import Model
from app.telemetry.metrics import Metrics
from tests import tiny
from tests.conftest import CAT
from tests.hostile import encode
from tests.images.test_pillow import sharp as picture

PHOTO = CAT.read_bytes()


@pytest.fixture(scope="module")
def model() -> Model:
    return folder.load(Path(tiny.model()[1]))


def row(class_id: int = 285, score: float = 0.4) -> Row:
    return Row(np.array([class_id, 281]), np.array([score, 0.1], np.float32))


def stored(metrics: Metrics, outcome: str = "stored") -> float:
    return metrics.registry.get_sample_value("topk_samples_total", {"outcome": outcome}) or 0.0


def test_the_lowest_scores_of_the_recent_images_are_uncertain() -> None:
    certainties = Certainties(0.1)
    for score in np.linspace(0.3, 1, 999):
        certainties.is_uncertain(float(score))
    assert certainties.is_uncertain(0.2)
    assert certainties.is_uncertain(0.35)
    assert not certainties.is_uncertain(0.5)


def test_old_images_no_longer_count() -> None:
    certainties = Certainties(0.01)
    for _ in range(1000):
        certainties.is_uncertain(0.1)
    for _ in range(1000):
        certainties.is_uncertain(0.9)
    assert certainties.is_uncertain(0.5)


@pytest.mark.parametrize("others", [1.0, 0.5])
def test_no_more_than_the_rate_are_uncertain_if_scores_tie(others: float) -> None:
    certainties = Certainties(0.01)
    assert not any(certainties.is_uncertain(score) for score in [others, 1.0] * 2000)
    assert certainties.is_uncertain(0.4)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_about_the_rate_of_images_are_uncertain(rate: float) -> None:
    certainties = Certainties(rate)
    scores = np.random.default_rng(0).random(10_000)
    share = np.mean([certainties.is_uncertain(score) for score in scores.tolist()])
    assert share == pytest.approx(rate, rel=0.2)


def test_the_first_images_are_not_uncertain() -> None:
    certainties = Certainties(0.01)
    assert not any(certainties.is_uncertain(score) for score in np.linspace(0.9, 0.5, 99).tolist())
    assert certainties.is_uncertain(0.4)


@pytest.mark.parametrize(("rate", "stores"), [(0.0, False), (1.0, True)])
def test_the_rate_may_be_0_or_1(rate: float, stores: bool) -> None:
    certainties = Certainties(rate)
    assert {certainties.is_uncertain(score) for score in [0.5, 0.5, 0.1, 1.0] * 500} == {stores}


def test_a_tiny_rate_is_that_of_the_lowest_score() -> None:
    certainties = Certainties(1e-9)
    assert not any(certainties.is_uncertain(0.5) for _ in range(1001))
    assert certainties.is_uncertain(0.4)
    assert not certainties.is_uncertain(0.45)


def test_a_sample_is_what_evaluate_and_train_read(tmp_path: Path, model: Model) -> None:
    samples = SampleStore(tmp_path / "new", 1.0, 10**9, metrics := Metrics())
    samples.offer(PHOTO, 0.4, row(), model)
    samples.offer(encode(picture((40, 30)), "PNG"), 0.3, row(281), model)
    samples.close()
    found = match(find(tmp_path / "new"), imagenet1k())
    assert found.truth.tolist() == [281, 285]
    assert [file.suffix for file in found.files] == [".png", ".jpg"]
    assert found.files[1].read_bytes() == PHOTO
    assert stored(metrics) == 2


def test_the_answers_are_beside_the_samples(tmp_path: Path, model: Model) -> None:
    samples = SampleStore(tmp_path, 1.0, 10**9, Metrics())
    samples.offer(PHOTO, 0.4, row(), model)
    samples.close()
    [line] = (tmp_path / ANSWERS).read_text().splitlines()
    answer = json.loads(line)
    assert (tmp_path / answer["file"]).read_bytes() == PHOTO
    assert [p["class_id"] for p in answer["predictions"]] == [285, 281]
    assert answer["model"] == model.name


def test_only_the_owner_can_read_them(tmp_path: Path, model: Model) -> None:
    samples = SampleStore(tmp_path / "new", 1.0, 10**9, Metrics())
    samples.offer(PHOTO, 0.4, row(), model)
    samples.close()
    paths = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}


def test_the_folder_stays_below_its_limit_also_after_a_restart(tmp_path: Path, model: Model) -> None:
    with capture_logs() as logs:
        for _ in range(2):
            samples = SampleStore(tmp_path, 1.0, len(PHOTO) + 2000, metrics := Metrics())
            samples.offer(PHOTO, 0.4, row(), model)
            samples.offer(PHOTO + b"\0" * 3000, 0.4, row(), model)
            samples.offer(PHOTO + b"\1" * 3000, 0.4, row(), model)
            samples.close()
    assert len(list(tmp_path.rglob("*.jpg"))) == 1
    assert (stored(metrics, "known"), stored(metrics, "dropped")) == (1, 2)
    assert len(logs) == 2


def test_a_file_that_vanishes_while_sizes_are_added_counts_nothing(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).write_bytes(b"12345")
    listed = sorted(str(path) for path in tmp_path.iterdir())
    (tmp_path / "three").unlink()
    assert total_bytes(listed) == 10


def test_a_link_to_nothing_counts_nothing(tmp_path: Path, model: Model) -> None:
    (tmp_path / "n02124075").mkdir()
    (tmp_path / "n02124075" / "gone.jpg").symlink_to(tmp_path / "nothing")
    samples = SampleStore(tmp_path, 1.0, len(PHOTO) + 2000, metrics := Metrics())
    samples.offer(PHOTO, 0.4, row(), model)
    samples.close()
    assert stored(metrics) == 1


def test_an_image_is_stored_once(tmp_path: Path, model: Model) -> None:
    samples = SampleStore(tmp_path, 1.0, 10**9, Metrics())
    for _ in range(3):
        samples.offer(PHOTO, 0.4, row(), model)
    samples.close()
    assert len((tmp_path / ANSWERS).read_text().splitlines()) == 1


def test_several_processes_share_a_folder(tmp_path: Path, model: Model) -> None:
    several = [SampleStore(tmp_path, 1.0, 10**9, Metrics()) for _ in range(4)]
    images = [[PHOTO + bytes([place, number]) for number in range(20)] for place in range(4)]

    def offer(samples: SampleStore, own: list[bytes]) -> None:
        for image in own:
            samples.offer(image, 0.4, row(), model)

    threads = [threading.Thread(target=offer, args=pair) for pair in zip(several, images, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for samples in several:
        samples.close()
    lines = (tmp_path / ANSWERS).read_text().splitlines()
    assert len(lines) == len(list(tmp_path.rglob("*.jpg")))
    assert all((tmp_path / json.loads(line)["file"]).exists() for line in lines)


@pytest.mark.parametrize("wnid", ["../outside", "n0212407", "n02124075/..", "/etc", "", None])
def test_a_label_never_leads_out_of_the_folder(wnid: str | None) -> None:
    assert class_folder(Prediction(7, wnid, "../../label", 0.5), [Label("../../label", wnid)]) == "7"


def test_all_folders_are_class_ids_if_a_class_has_no_wnid(tmp_path: Path, model: Model) -> None:
    labels = (Label("none of them"), *imagenet1k()[1:])
    samples = SampleStore(tmp_path, 1.0, 10**9, Metrics())
    samples.offer(PHOTO, 0.4, row(), dataclasses.replace(model, labels=labels))
    samples.offer(PHOTO + b"\0", 0.4, row(0), dataclasses.replace(model, labels=labels))
    samples.close()
    assert sorted(match(find(tmp_path), labels).truth.tolist()) == [0, 285]


def test_samples_may_be_deleted_meanwhile(tmp_path: Path, model: Model) -> None:
    samples = SampleStore(tmp_path / "new", 1.0, 10**9, Metrics())
    shutil.rmtree(tmp_path / "new")
    samples.offer(PHOTO, 0.4, row(), model)
    samples.close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / ANSWERS).stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="TOPK_SAMPLE_DIR"):
        SampleStore(tmp_path / "file" / "below", 1.0, 10**9, Metrics())


def test_a_write_that_fails_is_told_once_and_loses_no_request(tmp_path: Path, model: Model) -> None:
    samples = SampleStore(tmp_path, 1.0, 10**9, metrics := Metrics())
    (tmp_path / "n02124075").touch()  # where the folder of the class should be
    with capture_logs() as logs:
        samples.offer(PHOTO, 0.4, row(), model)
        samples.offer(PHOTO + b"\0", 0.4, row(), model)
        samples.close()
    assert [entry["event"] for entry in logs] == ["a sample could not be stored"]
    assert stored(metrics, "dropped") == 2


def test_a_sample_that_cannot_be_described_does_not_end_the_writing(tmp_path: Path, model: Model) -> None:
    labels = (Label("\ud800", "n01440764"), *model.labels[1:])  # half of a character: there is no JSON of it
    samples = SampleStore(tmp_path, 1.0, 10**9, metrics := Metrics())
    with capture_logs() as logs:
        samples.offer(PHOTO, 0.4, row(0), dataclasses.replace(model, labels=labels))
        samples.offer(PHOTO, 0.4, row(), model)
        samples.close()
    assert [entry["event"] for entry in logs] == ["a sample could not be stored"]
    assert (stored(metrics), stored(metrics, "dropped")) == (1, 1)


@pytest.mark.parametrize("count", [1, 20])
def test_a_folder_that_hangs_does_not_keep_the_store_from_closing(tmp_path: Path, model: Model, count: int) -> None:
    """Nobody reads the pipe, so the thread waits for it. Of 20 images, most fill the queue."""
    samples = SampleStore(tmp_path, 1.0, 10**9, metrics := Metrics(), patience=0.01)
    (tmp_path / ANSWERS).unlink()
    os.mkfifo(tmp_path / ANSWERS)
    with capture_logs() as logs:
        for number in range(count):
            samples.offer(PHOTO + bytes([number]), 0.4, row(), model)
        samples.close()
    assert [entry["event"] for entry in logs] == ["samples were not stored: the folder does not respond"]
    assert stored(metrics) == 0
    with (tmp_path / ANSWERS).open() as answers:  # the thread goes on
        assert json.loads(answers.readline())["model"] == model.name


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_sample_has_a_suffix_that_the_commands_know(tmp_path: Path, format: str) -> None:
    from app.images.files import find_images

    data = encode(picture((40, 30)), format)
    (tmp_path / f"image.{suffix(data)}").write_bytes(data)
    assert len(find_images(tmp_path).paths) == 1
