"""The report of a training: how the model was made, and an evaluation's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.train import chart, report
from app.commands.train.finetune import Score, Tuning
from app.commands.train.run import Trained
from tests.commands.evaluate.test_report import PIXELS, Balanced
from tests.commands.runner import topk

TUNING = Tuning((Score(0.5, 0.7), Score(0.75, 0.4), Score(0.75, 0.5)), best=1)


def words(page: str) -> str:
    found = Balanced(page)
    assert found.open == []
    return " ".join(" ".join(found.texts).split())


@pytest.mark.slow
def test_it_describes_how_the_model_was_made(trained: tuple[Trained, Path]) -> None:
    page = report.page(trained[0], PIXELS)
    text = words(page)
    for told in (
        "topk train",
        "my-shapes on shapes",
        "12 images of 2 classes",
        "4 images, 20 % of each class",
        "seed 0",
    ):
        assert told in text
    assert "Epochs" not in text
    assert page.count("<svg") == 2  # the choice of C, and the calibration


def test_where_all_are_right_the_axis_ends_at_all() -> None:
    drawn = chart.epochs(Tuning((Score(1.0, 0.1), Score(1.0, 0.05)), best=1))
    assert ">100<" in drawn
    assert ">102<" not in drawn


@pytest.mark.slow
@pytest.mark.parametrize(("best", "kept"), [(1, "2 epochs; kept: 1"), (0, "2 epochs; kept: the linear head")])
def test_epochs_are_drawn(trained: tuple[Trained, Path], best: int, kept: str) -> None:
    found = trained[0]
    tuned = replace(found, learned=replace(found.learned, tuning=replace(TUNING, best=best)))
    page = report.page(tuned, PIXELS)
    assert kept in words(page)
    assert "Epochs" in page
    assert page.count("<svg") == 3
    assert tuned.as_dict()["training"]["fine_tuning"]["best"] == best


@pytest.mark.slow
def test_the_command_writes_it_and_prints_one_object(shapes: Path, tmp_path: Path) -> None:
    place, made = tmp_path / "training.html", tmp_path / "my-shapes"
    ran = topk(
        *("train", str(shapes), "--out", str(made), "--model", "efficientnet_lite0", "--json", "--report", str(place))
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    kept = json.loads((made / "model.json").read_text())
    assert {name: told[name] for name in kept["metrics"]} == kept["metrics"]
    assert told["training"]["parent"] == f"sha256:{kept['parent']}"
    head = told["training"]["head"]
    assert head["log_loss"][f"{head['c']:g}"] == min(head["log_loss"].values())
    assert (told["training"]["learned"], told["n"], told["training"]["fine_tuning"]) == (12, 4, None)
    assert "Regularisation" in place.read_text()
