"""The benchmark of a request's CPU time runs."""

import re
import subprocess
import sys

import pytest

from tests.conftest import environment


@pytest.mark.slow
def test_the_benchmark_of_requests_prints_both_services_and_their_ratio() -> None:
    command = [sys.executable, "-m", "tests.load.http", "--seconds", "1", "--rounds", "1"]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout + ran.stderr
    assert re.fullmatch(r" +FastAPI +\d+ us .*\n +topk +\d+ us .*\nratio \d+\.\d\n", ran.stdout), printed
