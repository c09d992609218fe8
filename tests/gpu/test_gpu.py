"""The kit's parts, and the whole run on a CPU, so that time on a GPU is not spent on typos."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.gpu import kit, table
from tests.gpu.figures import DONE, FAILED, SKIPPED, UNFINISHED, Context, Figure, Outcome, Report
from tests.gpu.plan import PARTS, PLAN, Step
from tests.gpu.run import Steps

SECONDS = 60.0


def succeed(context: Context, report: Report) -> None:
    report("speed", 12.345678, "img/s", ">= 12")


def fail(context: Context, report: Report) -> None:
    report("speed", 1.0)
    raise ValueError("the reason")


def crash(context: Context, report: Report) -> None:
    os._exit(7)


def hang(context: Context, report: Report) -> None:
    report("speed", 1.0)
    subprocess.run(["sleep", "600"])


def run(name: str, *, seconds: float = SECONDS, left: float = SECONDS, cuda: bool = False) -> Outcome:
    step = Step(1, name, f"test_gpu:{name}", seconds, cuda)
    steps = Steps(time.monotonic() + left)
    return steps.run(step, Context("cpu", quick=True, seconds=1, kit=""), seconds, lambda _: None)


@pytest.mark.slow
def test_a_step_reports_its_figures() -> None:
    outcome = run("succeed")
    assert (outcome.status, outcome.figures) == (DONE, [Figure("speed", 12.346, "img/s", ">= 12")])


@pytest.mark.slow
def test_a_step_that_fails_keeps_its_figures_and_says_why() -> None:
    outcome = run("fail")
    assert (outcome.status, outcome.reason) == (FAILED, "ValueError: the reason")
    assert [figure.value for figure in outcome.figures] == [1.0]


@pytest.mark.slow
def test_a_step_whose_process_ends_says_so() -> None:
    outcome = run("crash")
    assert (outcome.status, outcome.reason) == (UNFINISHED, "its process ended with code 7")


@pytest.mark.slow
def test_a_step_that_hangs_is_stopped_and_keeps_its_figures() -> None:
    outcome = run("hang", seconds=2)
    assert (outcome.status, outcome.reason) == (UNFINISHED, "exceeded its 2 s and was stopped")
    assert [figure.value for figure in outcome.figures] in ([1.0], [])  # a busy machine may not have started it


def test_a_step_that_does_not_exist_is_a_failure() -> None:
    assert run("missing").status == FAILED


def test_steps_are_skipped_with_the_reason() -> None:
    assert run("succeed", cuda=True).reason == "needs CUDA"
    assert run("succeed", left=0).reason == "no time left"


@pytest.mark.parametrize(
    ("value", "expected", "met"),
    [
        (15000, ">= 15000", True),
        (14999.9, ">= 15000", False),
        (0, "== 0", True),
        (1e-3, "< 1e-3", False),
        (None, "<= 50", False),
        (5, "", None),
    ],
)
def test_a_figure_is_compared_with_its_expectation(value: float | None, expected: str, met: bool | None) -> None:
    assert Figure("any", value, "", expected).met is met


def test_the_table_shows_expectations_and_reasons_and_leaves_out_details() -> None:
    figures = [Figure("speed", 12000.5, "img/s", ">= 15000"), Figure("batch", 4.0, detail=True)]
    outcomes = [Outcome(1, "lanes", DONE, figures=figures), Outcome(4, "kernels", SKIPPED, "needs CUDA")]
    _, _, speed, skipped = table.text(outcomes).splitlines()
    assert speed.split() == ["1", "lanes", "speed", "12,000.5", "img/s", ">=", "15000", "MISSED"]
    assert skipped.split() == ["4", "kernels", "skipped:", "needs", "CUDA"]


def test_each_part_fits_into_one_command_on_the_machine() -> None:
    for part in PARTS:
        assert sum(step.seconds for step in PLAN if step.part in (0, part)) <= 570


def test_the_kit_has_what_serving_imports_and_not_what_the_machine_has() -> None:
    packages = {requirement.partition("==")[0] for requirement in kit.packages()}
    assert {"fastapi", "uvicorn", "uvloop", "httptools", "pydantic-core", "starlette", "httpcore2"} <= packages
    assert not {"torch", "torchvision", "numpy", "openvino", "matplotlib"} & packages


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1200)
def test_the_whole_run_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    ran = subprocess.run([*command, "--seconds", "1100"], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    [file] = tmp_path.iterdir()
    steps = json.loads(file.read_text())["steps"]
    assert [step["step"] for step in steps] == [step.name for step in PLAN]
    needing = {step.name for step in PLAN if step.cuda}
    assert {step["step"] for step in steps if step["reason"] == "needs CUDA"} == needing
    assert [step for step in steps if step["status"] != DONE and step["step"] not in needing] == []
    figures = [figure for step in steps for figure in step["figures"]]
    assert [figure for figure in figures if figure["expected"] == "== 0" and not figure["met"]] == []
    assert ran.stdout.splitlines()[0].split() == ["part", "step", "figure", "value", "expected"]
