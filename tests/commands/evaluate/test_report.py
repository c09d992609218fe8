"""The report: whole, safe, and in need of nothing else."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from app.commands.evaluate import report
from app.commands.evaluate.evaluation import Evaluation
from app.commands.evaluate.metrics import AccuracyMetrics, Outcomes, score
from app.commands.evaluate.run import Answers
from app.errors import ReportError
from app.imagenet.labels import Label

VOID = {"meta", "img", "br", "link", "input"}
PIXELS = 10**7


class Balanced(HTMLParser):
    """Fails where an element ends that has not begun; ``images`` and ``texts`` are what it saw."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attributes)["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> str:
    return report.page(evaluation, PIXELS)


def test_it_is_whole_html(page: str) -> None:
    seen = Balanced(page)
    assert seen.open == []
    assert len(seen.images) == 4  # two cats and two noises
    assert all(re.fullmatch(r"data:image/webp;base64,[\w+/=]+", image) for image in seen.images)


def test_it_needs_nothing_else(page: str) -> None:
    without = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.findall(r"(?:src|href)=\"(?!#)|@import|url\((?!#)|<script|<link|https?://(?!www\.w3\.org)", without)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "#0102" not in page  # every colour is the page's own


def test_its_drawings_share_no_id(page: str) -> None:
    ids = re.findall(r' id="([^"]+)"', page)
    assert page.count("<svg") == 2
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_names_of_files_are_text(page: str) -> None:
    assert "<b>noise" not in page
    assert "&lt;b&gt;noise &amp; more.png" in page


def test_it_explains_the_figures(page: str, evaluation: Evaluation) -> None:
    text = " ".join(" ".join(Balanced(page).texts).split())
    for words in (
        "top-1 accuracy",
        "Confident mistakes 4 of 4 mistakes",
        "agreement with the float32 reference",
        "Accuracy by WordNet level",
        "2 files could not be read",
        "undecodable_image",
        f"{100 * evaluation.metrics.top1:.1f} %",
    ):
        assert words in text


def few(right: bool) -> tuple[tuple[Label, ...], AccuracyMetrics, Answers]:
    """Three classes that WordNet does not have."""
    labels = (Label("<cat>"), Label("dog"), Label("hen"))
    truth = np.array([0, 0, 1, 1, 2, 2, 2])
    rows = np.eye(3, dtype=np.float32)[truth if right else [0, 1, 1, 1, 2, 1, 0]] * 0.8 + 0.05
    best = np.argsort(-rows, axis=1, kind="stable")
    scores = np.take_along_axis(rows, best, axis=1)
    return labels, score(Outcomes(truth, best, scores), labels), Answers(best, scores)


@pytest.mark.parametrize("right", [True, False])
def test_classes_of_your_own_get_a_matrix_and_no_levels(evaluation: Evaluation, right: bool) -> None:
    labels, metrics, answers = few(right)
    files = tuple(Path(f"{i}.jpg") for i in range(7))
    samples = replace(evaluation.samples, files=files, truth=np.array([0, 0, 1, 1, 2, 2, 2]))
    found = replace(evaluation, labels=labels, metrics=metrics, answers=answers, samples=samples, comparison=None)
    made = report.page(found, PIXELS)
    assert Balanced(made).open == []
    assert "Confusion matrix" in made
    assert "&lt;cat&gt;" in made
    assert "Accuracy by WordNet level" not in made
    assert ("Confident mistakes" in made) == (not right)
    assert ("Every image is right." in made) == right
    assert made.count("<svg") == 1


def test_a_picture_that_is_gone_leaves_a_gap(evaluation: Evaluation) -> None:
    _, _, answers = few(right=False)
    gone = replace(evaluation.samples, files=tuple(Path(f"/none/{i}") for i in range(7)))
    found = replace(evaluation, samples=replace(gone, truth=np.array([0, 0, 1, 1, 2, 2, 2])), answers=answers)
    found = replace(found, metrics=score(answers.outcomes(found.samples), found.labels), comparison=None)
    assert Balanced(report.page(found, PIXELS)).images == []


def test_a_report_that_cannot_be_written_is_one_plain_error(evaluation: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be written"):
        report.write(evaluation, tmp_path, PIXELS)
