"""The command itself: its exit codes and what it says."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.commands.train.run import Trained
from tests.commands.runner import topk
from tests.commands.train.conftest import make
from tests.conftest import REPOSITORY, environment

MODEL = ("--model", "efficientnet_lite0")


@pytest.mark.slow
def test_a_bad_folder_is_one_plain_line(tmp_path: Path) -> None:
    make(tmp_path / "few", count=5)
    ran = topk("train", str(tmp_path / "few"), "--out", str(tmp_path / "out"), *MODEL)
    assert ran.returncode == 1
    message = " ".join(ran.stderr.split())
    assert message.startswith("topk: each class needs 6 images")
    assert message.endswith("disc has 5, square has 5")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_predict_prints_all_of_few_classes(trained: tuple[Trained, Path], shapes: Path) -> None:
    picture, model = str(shapes / "disc" / "0.png"), str(trained[1])
    ran = topk("predict", picture, "--model", model, "--json")
    assert [p["label"] for p in json.loads(ran.stdout)["predictions"]] == ["disc", "square"]
    refused = topk("predict", picture, "--model", model, "--top-k", "5")
    assert refused.returncode == 1
    assert "--top-k 5 is more than the model's 2 classes" in refused.stderr


@pytest.mark.slow
def test_ctrl_c_ends_it_with_nothing_written(tmp_path: Path) -> None:
    make(tmp_path / "many", count=60)
    command = [sys.executable, "-m", "app", "train", str(tmp_path / "many"), "--out", str(tmp_path / "out"), *MODEL]
    command += ["--no-fast-decode"]  # features of which there are none yet
    stores = Path(os.environ["TOPK_CACHE_DIR"]) / "features"
    before = {*stores.glob("*.sqlite")}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and before == {*stores.glob("*.sqlite")}:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; nothing was written" in message
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["many"]
