"""Without PyTorch, as in the slim container image: a model folder is served, all else ends in one plain sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import CAT, REPOSITORY, environment, slow

# Python's own way to say that a module cannot be imported.
START = (
    "import sys; sys.modules |= dict.fromkeys(('torch', 'torchvision', 'timm'));"
    " from app.commands.cli import main; main()"
)


def topk(*arguments: str | Path, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", START, *map(str, arguments)]
    variables = environment() | {"COLUMNS": "200", "TOPK_LOG_FORMAT": "text"} | env
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=120)


def test_a_model_folder_is_served() -> None:
    ran = topk("predict", CAT, *tiny.model(), "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert '"model":"tiny"' in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("serve", "--port", "0", "--model", "resnet50"), "the model resnet50"),
        slow(("serve", "--port", "0", "--model", "efficientnet_lite0"), "the model efficientnet_lite0"),
        slow(("serve", "--port", "0", "--model", "auto"), "the model auto"),
        slow(("predict", CAT, "--model", "resnet50", "--engine", "torch"), "the model resnet50"),
        slow(("predict", CAT, "--model", "timm:resnet10t"), "the model timm:resnet10t"),
        slow(("predict", CAT, "--model", "yolo11n-cls.pt", "--trust-checkpoint"), "the checkpoint yolo11n-cls.pt"),
        (("export", "resnet50", "--out", "nowhere"), "an export"),
        (("models",), "the list of models"),
    ],
    ids=["serve", "embedded", "auto", "predict", "timm", "checkpoint", "export", "models"],
)
def test_what_needs_torch_fails_with_the_reason(arguments: tuple[str | Path, ...], what: str) -> None:
    ran = topk(*arguments)
    assert ran.returncode == 1
    assert f"{what} needs PyTorch, which is not installed; without it, topk serves model folders" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("choice", [("--engine", "torch"), slow(("--device", "cuda"))])
def test_a_folder_on_the_torch_engine_fails_with_the_reason(choice: tuple[str, str]) -> None:
    ran = topk("predict", CAT, *tiny.model(), *choice)
    assert ran.returncode == 1
    assert "the engine torch needs PyTorch" in ran.stderr
    assert "Traceback" not in ran.stderr
