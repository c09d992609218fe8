"""From a folder of pictures to a model that is served."""

import shutil
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app import models
from app.commands import inference, training_images
from app.commands.evaluate.evaluation import EvaluationPlan, evaluated
from app.commands.evaluate.progress import EvaluationProgress
from app.commands.train import examples, result
from app.commands.train.learn import learn
from app.commands.train.plan import TrainingPlan
from app.commands.train.run import Trained, run
from app.engine import Row, Want
from app.errors import ModelError, TrainingError
from app.models import embedded, folder
from app.models.openvino import ov
from tests import tiny
from tests.commands.runner import topk
from tests.commands.train.conftest import CONSOLE, PROGRESS, description, make, settings
from tests.conftest import Server

pytestmark = pytest.mark.slow

Found = tuple[Trained, Path]
LABELS = [["disc", None], ["square", None]]


def test_it_classifies_the_held_out_pictures(trained: Found) -> None:
    found, _ = trained
    assert (len(found.learned.sides.learned), found.evaluation.metrics.n) == (12, 4)
    assert found.evaluation.metrics.top1 >= 0.75
    assert found.learned.warnings == []


def test_the_folder_describes_the_model_and_its_origin(trained: Found) -> None:
    found, out = trained
    described = description(out)
    assert (described["labels"], described["weights"], described["architecture"]) == (
        LABELS,
        "trained",
        "efficientnet_lite0",
    )
    assert described["parent"] == embedded.embedded().digest
    assert described["digest"] == described["files"]["model.safetensors"]  # type: ignore[index]
    assert {name: described["metrics"][name] for name in ("n", "top1", "top5")} == {  # type: ignore[index]
        "n": 4,
        "top1": found.evaluation.metrics.top1,
        "top5": 1.0,
    }


def test_evaluating_training_images_is_warned_about(trained: Found, shapes: Path, tmp_path: Path) -> None:
    found, out = trained
    with evaluated(EvaluationPlan(shapes), settings(out), EvaluationProgress(CONSOLE)) as evaluation:
        [warning] = evaluation.notes
    assert warning.startswith("warning: the model was trained on 12 of these 16 images;")
    assert training_images.count(out, found.evaluation.samples.files) == 0
    new = make(tmp_path / "new", count=9)
    for path in new.rglob("[0-7].png"):
        path.unlink()
    with evaluated(EvaluationPlan(new), settings(out), EvaluationProgress(CONSOLE)) as evaluation:
        assert evaluation.notes == []


def test_an_exported_copy_warns_about_training_images_too(trained: Found, shapes: Path, tmp_path: Path) -> None:
    ran = topk("export", trained[1], "--out", tmp_path / "copy")
    assert ran.returncode == 0, ran.stderr
    assert training_images.count(tmp_path / "copy", shapes.rglob("*.png")) == 12


def test_nothing_else_is_left_beside_it(trained: Found) -> None:
    assert [path.name for path in trained[1].parent.iterdir()] == ["my-shapes"]


def test_the_same_seed_gives_the_same_weights(trained: Found, shapes: Path, tmp_path: Path) -> None:
    again = learn(TrainingPlan(shapes, tmp_path / "out"), settings(), PROGRESS).network.state_dict()
    written = load_file(trained[1] / "model.safetensors")
    assert again.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in again.items())


def test_it_is_served_with_its_own_labels(trained: Found, shapes: Path) -> None:
    """By several processes, which hand rows of two classes to each other."""
    server = Server("--model", str(trained[1]), "--workers", "1")
    try:
        content = (shapes / "square" / "0.png").read_bytes()
        answer = httpx2.post(f"{server.url}/v1/predict", content=content).json()
        assert (answer["model"], answer["weights"]) == ("my-shapes", "trained")
        assert [(p["label"], p["wnid"]) for p in answer["predictions"]] == [("square", None), ("disc", None)]
        assert sum(p["score"] for p in answer["predictions"]) == pytest.approx(1, abs=1e-5)
        batch = httpx2.post(f"{server.url}/v1/predict/batch", files=[("file", content)] * 2).json()
        assert [len(item["predictions"]) for item in batch["results"]] == [2, 2]
        refused = httpx2.post(f"{server.url}/v1/predict?top_k=5", content=content)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_parameter")
        assert httpx2.get(f"{server.url}/v1/info").json()["classes"] == 2
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_either_engine_answers_with_all_of_few_classes(trained: Found, shapes: Path, engine: str) -> None:
    held_out = sorted(shapes.rglob("*.png"))[:4]
    found = [
        row.probabilities
        for row in rows_of(trained[1], held_out, engine=engine, precision="float32")
        if row.probabilities is not None and len(row.class_ids) == 2
    ]
    expected = [row.probabilities for row in rows_of(trained[1], held_out, engine="torch", precision="float32")]
    assert np.allclose(found, expected, atol=1e-4)


def rows_of(model: Path, paths: list[Path], **options: object) -> list[Row]:

    classifier = inference.load(settings(model, **options))
    found: dict[int, inference.Outcome] = {}
    try:
        inference.classify_files(classifier, paths, Want(k=5, probabilities=True), found.__setitem__)
    finally:
        classifier.close()
    rows = [found[i] for i in range(len(paths))]
    assert all(isinstance(row, Row) for row in rows)
    return rows  # type: ignore[return-value]


def test_it_is_trained_further(trained: Found, tmp_path: Path) -> None:
    three = make(tmp_path / "three", names=("disc", "ring", "square"))
    found = learn(TrainingPlan(three, tmp_path / "out"), settings(trained[1]), PROGRESS)
    assert found.classes == ("disc", "ring", "square")
    assert found.head.weight.shape == (3, 1280)
    assert found.parent.digest == description(trained[1])["digest"]


def test_an_export_keeps_the_description_of_the_training(trained: Found, tmp_path: Path) -> None:
    model = models.resolve(settings(trained[1]))
    folder.write(model, tmp_path / "copy", network=ov.Core().read_model(model.openvino))
    names = ("parent", "metrics", "labels", "digest", "weights")
    copied, described = description(tmp_path / "copy"), description(trained[1])
    assert {name: copied[name] for name in names} == {name: described[name] for name in names}


def test_the_whole_network_is_trained_from_the_linear_head_on(trained: Found, shapes: Path, tmp_path: Path) -> None:
    plan = TrainingPlan(shapes, tmp_path / "out", fine_tune=True, epochs=1, batch_size=6)
    found = learn(plan, settings(), PROGRESS)
    assert found.tuning
    assert len(found.tuning.scores) == 2
    linear = trained[0].evaluation.metrics.top1
    assert found.tuning.scores[0].top1 == pytest.approx(linear, abs=0.26)  # in another precision
    assert any("fine-tuned for 1 epoch" in line for line in replace(trained[0], learned=found).summary())


def test_other_images_are_held_out_where_they_are_named(shapes: Path, tmp_path: Path) -> None:
    val = make(tmp_path / "val", count=10)
    for path in [val / name / f"{seed}.png" for name in ("disc", "square") for seed in range(7)]:
        path.unlink()  # what was learned from, but for one of each
    found = learn(TrainingPlan(shapes, tmp_path / "out", val=val), settings(), PROGRESS)
    assert (len(found.sides.learned), len(found.sides.held_out)) == (14, 6)
    assert found.warnings == [f"ignored 2 training images, also in {val}"]


def test_a_class_that_is_not_measured_is_named(shapes: Path, tmp_path: Path) -> None:
    val = make(tmp_path / "val", count=9, names=("disc",))
    for seed in range(8):
        (val / "disc" / f"{seed}.png").unlink()  # what is learned from
    found = learn(TrainingPlan(shapes, tmp_path / "out", val=val), settings(), PROGRESS)
    assert found.warnings[-1] == f"not evaluated, because {val} has no images of: square"


def test_unreadable_images_are_reported_and_left_out(shapes: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shapes, tmp_path / "copy"))
    (copy / "disc" / "Thumbs.db").write_bytes(b"thumbs")
    (copy / "disc" / "notes.txt").write_text("no picture")
    (copy / "disc" / "torn.jpg").write_bytes(b"no picture")
    found = learn(TrainingPlan(copy, tmp_path / "out"), settings(), PROGRESS)
    assert (len(found.sides.learned), len(found.sides.held_out)) == (12, 4)
    skipped, unreadable = found.warnings
    assert skipped == "skipped 1 file that is not an image, 1 system file or folder (Thumbs.db)"
    assert unreadable.startswith("ignored 1 unreadable file: ")
    assert "disc/torn.jpg (" in unreadable


def test_unreadable_files_may_leave_too_few(shapes: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shapes, tmp_path / "copy"))
    for seed in range(4):
        (copy / "disc" / f"{seed}.png").write_bytes(b"%d" % seed)
    with pytest.raises(TrainingError, match="disc has 4 and 4 that cannot be read"):
        learn(TrainingPlan(copy, tmp_path / "out"), settings(), PROGRESS)


def test_interrupted_it_leaves_nothing(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        place = arguments[-1]
        assert isinstance(place, Path)
        place.mkdir()
        (place / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(result, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(TrainingPlan(shapes, tmp_path / "out"), settings(), PROGRESS)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_model_is_refused_before_images_are_read(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "read", pytest.fail)
    with pytest.raises(ModelError, match="resnet50"):
        run(TrainingPlan(shapes, tmp_path / "out"), settings("resnet5O"), PROGRESS)


def test_one_class_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "one", names=("disc",))
    with pytest.raises(TrainingError, match="has only one class, disc: training needs two or more"):
        learn(TrainingPlan(tmp_path / "one", tmp_path / "out"), settings(), PROGRESS)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (TrainingPlan(Path("nowhere"), Path("out")), "no such folder: nowhere"),
        (TrainingPlan(Path("shapes"), Path("out"), val=Path("nowhere")), "no such folder: nowhere"),
        (
            TrainingPlan(Path("shapes"), Path("out"), holdout=1.0),
            "must be more than 0 and less than 1, got 1",
        ),
        (TrainingPlan(Path("shapes"), Path("out"), val=Path("shapes/disc")), "overlap"),
        (TrainingPlan(Path("shapes/disc"), Path("out"), val=Path("shapes")), "overlap"),
        (TrainingPlan(Path("shapes"), Path("shapes/out")), "is inside shapes, where it would become a class"),
        (TrainingPlan(Path("shapes"), Path("full")), "full is not empty"),
        (TrainingPlan(Path("shapes"), Path("full/file")), "full/file cannot be written"),
    ],
    ids=lambda value: "" if isinstance(value, TrainingPlan) else value[:20],
)
def test_an_impossible_plan_is_refused_before_anything_is_read(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: TrainingPlan, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes").symlink_to(shapes)
    Path("full").mkdir()
    Path("full/file").touch()
    with pytest.raises((TrainingError, ModelError), match=words):
        plan.check()


def test_a_folder_for_openvino_alone_cannot_be_trained_from(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        learn(TrainingPlan(shapes, tmp_path / "out"), settings(tiny.model()[1]), PROGRESS)
