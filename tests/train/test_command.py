"""The command itself: its exit codes and what it says."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY, environment
from tests.test_cli import topk
from tests.train.conftest import make

MODEL = ("--model", "efficientnet_lite0")


def test_a_bad_folder_is_one_plain_line(tmp_path: Path) -> None:
    make(tmp_path / "few", count=5)
    ran = topk("train", str(tmp_path / "few"), "--out", str(tmp_path / "out"), *MODEL)
    assert ran.returncode == 1
    said = " ".join(ran.stderr.decode().split())
    assert said.startswith("topk: each class needs 6 images")
    assert said.endswith("disc has 5, square has 5")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_it_with_nothing_written(tmp_path: Path) -> None:
    make(tmp_path / "many", count=60)
    command = [sys.executable, "-m", "app", "train", str(tmp_path / "many"), "--out", str(tmp_path / "out"), *MODEL]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment() | {"TOPK_CACHE_DIR": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "cache" / "features").exists():
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; nothing was written" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "many"]
