"""The benchmark of the hand-over runs, and its clients get the right answers."""

import re
import subprocess
import sys

import pytest

from tests.conftest import environment

pytestmark = pytest.mark.slow

SHORT = ["--http", "2", "--in-flight", "64", "--crop", "8", "--seconds", "1", "--rounds", "1"]


def test_the_benchmark_of_the_hand_over_answers_correctly() -> None:
    command = [sys.executable, "-m", "tests.load.handover", *SHORT]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"engine +\d.*http +\d.*wrong answers 0\n", ran.stdout), ran.stdout + ran.stderr
