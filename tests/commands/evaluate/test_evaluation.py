"""The embedded model on known pictures, in-process and beside the reference."""

from pathlib import Path

import pytest
from rich.console import Console

from app.commands.evaluate import table
from app.commands.evaluate.evaluation import Evaluation, EvaluationPlan, evaluated
from app.commands.evaluate.progress import EvaluationProgress
from app.errors import EvaluationError, ModelError
from tests.commands.evaluate.conftest import SETTINGS


def printed(evaluation: Evaluation) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        table.print_evaluation(evaluation, console)
    return capture.get()


@pytest.mark.slow
def test_every_picture_is_counted_or_listed(evaluation: Evaluation, pictures: Path) -> None:
    found = evaluation.as_dict()
    assert (found["n"], found["classes"], found["asked"]) == (5, 5, 7)
    assert {Path(one["file"]).name: one["code"] for one in found["unreadable"]} == {
        "torn.jpg": "undecodable_image",
        "empty.jpg": "empty_body",
    }
    assert found["source"] == str(pictures)
    assert (found["model"], found["engine"]) == ("efficientnet_lite0", "openvino")


@pytest.mark.slow
def test_one_cat_cannot_be_three_classes_but_it_is_always_a_cat(evaluation: Evaluation) -> None:
    """The model's own answer for it is an Egyptian cat, and the other two are next."""
    metrics = evaluation.metrics
    rows = {row.label: row for row in metrics.per_class}
    cats = [rows[name] for name in ("Egyptian cat", "tabby", "tiger cat")]
    assert sorted(row.accuracy for row in cats) == [0, 0, 1]
    assert {row.top5 for row in cats} == {1}
    [cat] = [level for level in metrics.levels if level.label == "cat"]
    assert (cat.n, cat.accuracy) == (3, 1)
    assert cat.exact == pytest.approx(1 / 3)


def test_the_reference_answers_beside_it(evaluation: Evaluation) -> None:
    compared = evaluation.as_dict()["compare"]
    assert (compared["engine"], compared["precision"], compared["fast_decode"]) == ("torch", "float32", False)
    assert compared["n"] == 5
    assert compared["agreement"] == 1 - len(compared["differ"]) / 5
    assert compared["agreement"] >= 0.6
    assert compared["top1"]["evaluated"] == evaluation.metrics.top1
    for one in compared["differ"]:
        assert one["evaluated"]["class_id"] != one["reference"]["class_id"]


def test_the_table_has_all_results(evaluation: Evaluation) -> None:
    table_text = printed(evaluation)
    for words in (
        "efficientnet_lite0",
        "top-5",
        "reference",
        "5 images of 5 classes",
        "agreement: ",
        "every pixel decoded",
        "2 files could not be read",
        "torn.jpg: the JPEG is truncated or corrupt: pixels are missing (undecodable_image)",
        "Most confused",
        "right at level",
    ):
        assert words in table_text


def test_mistakes_come_the_surest_first(evaluation: Evaluation) -> None:
    mistakes = evaluation.mistakes()
    scores = [evaluation.guess(i).score for i in mistakes]
    assert scores == sorted(scores, reverse=True)
    assert len(mistakes) == evaluation.metrics.n - round(evaluation.metrics.top1 * evaluation.metrics.n)
    assert all(evaluation.guess(i).label != evaluation.truth(i) for i in mistakes)


@pytest.mark.slow
def test_the_reference_has_nothing_to_be_compared_with_but_itself(pictures: Path) -> None:
    settings = SETTINGS.model_copy(update={"engine": "torch", "precision": "float32", "fast_decode": False})
    with pytest.raises(EvaluationError, match="the reference itself"):  # noqa: SIM117
        with evaluated(EvaluationPlan(pictures, compare="float32"), settings, EvaluationProgress(Console(stderr=True))):
            pass


@pytest.mark.parametrize(
    "plan", [EvaluationPlan(Path("none")), EvaluationPlan(Path("none"), "http://127.0.0.1:1", compare="float32")]
)
def test_a_misspelt_model_is_refused_before_images_are_listed(plan: EvaluationPlan) -> None:
    settings = SETTINGS.model_copy(update={"model": "resnet5O"})
    with pytest.raises(ModelError, match="resnet50"):  # noqa: SIM117
        with evaluated(plan, settings, EvaluationProgress(Console(stderr=True))):
            pass


def test_if_nothing_can_be_read_the_error_has_the_first_reason(tmp_path: Path) -> None:
    (tmp_path / "tabby").mkdir()
    (tmp_path / "tabby" / "note.jpg").write_text("no picture")
    with pytest.raises(EvaluationError, match=r"none of 1 images.*note\.jpg.*unsupported_media_type"):  # noqa: SIM117
        with evaluated(EvaluationPlan(tmp_path), SETTINGS, EvaluationProgress(Console(stderr=True))):
            pass
