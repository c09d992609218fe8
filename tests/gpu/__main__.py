"""Measure topk on a GPU, part by part, and print the figures: see README.md."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu import table
from tests.gpu.figures import Context, Outcome
from tests.gpu.material import KIT
from tests.gpu.plan import PARTS, PLAN, QUICK_S
from tests.gpu.run import Steps

_SECONDS = 570.0
_QUICK_SHARE_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu; [default: cuda]")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that every step runs")
    parser.add_argument("--part", type=int, action="append", choices=PARTS, help="repeatable; [default: all]")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the JSON file")
    parser.add_argument("--kit", type=Path, default=KIT, help="folder that `make gpu-kit` filled")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="limit of the whole run; [default: 570]")
    given = parser.parse_args()
    parts = {0, *(given.part or PARTS)}
    steps, result = Steps(time.monotonic() + given.seconds), Result(given.out, given.device, given.quick)
    with tempfile.TemporaryDirectory(prefix="topk-gpu-") as cache:
        os.environ["TOPK_CACHE_DIR"] = cache
        if given.device == "cpu":
            os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other are slow on a busy machine
        for step in (step for step in PLAN if step.part in parts):
            limit, share = (QUICK_S, _QUICK_SHARE_S) if given.quick else (step.seconds, step.seconds)
            _say(f"{step.part} {step.name}")
            outcome = steps.run(step, Context(given.device, given.quick, share, str(given.kit)), limit, result.write)
            result.add(outcome)
            _say(f"{step.part} {step.name}: {outcome.status} {outcome.reason} {outcome.seconds:.1f} s")
    print(table.text(result.outcomes))
    print(f"\n{result.path}")


class Result:
    """The JSON file of a run. It is written after each figure, because the run may be cut off."""

    def __init__(self, folder: Path, device: str, quick: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._started = datetime.now(UTC)
        self._run = {"started": self._started.isoformat(timespec="seconds"), "device": device, "quick": quick}
        self.path = folder / f"{self._started:%Y%m%d-%H%M%S}-{re.sub('[^a-z0-9]+', '-', _card(device).lower())}.json"
        self.outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.write()

    def write(self, unfinished: Outcome | None = None) -> None:
        """Replace the file: the finished steps, and the one that runs."""
        outcomes = [*self.outcomes, unfinished] if unfinished else self.outcomes
        content: dict[str, Any] = self._run | {"steps": [outcome.as_dict() for outcome in outcomes]}
        new = self.path.with_suffix(".part")
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.rename(self.path)


def _card(device: str) -> str:
    """The name of the GPU according to its driver."""
    if device == "cpu":
        return "cpu"
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return device


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
