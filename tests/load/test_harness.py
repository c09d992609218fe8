"""A short run of ``../shared/bench/run.py``, which compares image servers, with topk as the only peer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PHOTOGRAPHS, REPOSITORY, SHARED, environment, free_port

BENCH = SHARED / "bench"
COUNT = 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (BENCH / "run.py").is_file(), reason=f"no harness in {BENCH}"),
    pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed"),
]


def python(code: str, *arguments: str, **variables: str) -> str:
    """What the code prints that imports modules of the harness."""
    env = environment() | {"PYTHONPATH": str(BENCH), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=800)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_topk_answers_correctly_in_the_harness(tmp_path: Path) -> None:
    images, weights, peers = tmp_path / "images", tmp_path / "r50.pth", tmp_path / "peers.json"
    for kind in ("small", "phone"):
        (images / kind).mkdir(parents=True)
    for number, photograph in enumerate(PHOTOGRAPHS[:: len(PHOTOGRAPHS) // COUNT][:COUNT]):
        shutil.copy(photograph, images / "small" / f"{number:02}.jpg")
    # Weights of their own: with real ones, several classes of a photograph score almost the same.
    prepare = "import sys, prep; prep.build_weights(*sys.argv[1:]); prep.build_ref(*sys.argv[1:])"
    python(prepare, str(images), str(weights))
    topk = {
        "cmd": [sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", "{port}"],
        "path": "/v1/predict",
        "payload": "raw",
        "env": {"PYTHONPATH": str(REPOSITORY), "TOPK_MODEL": "resnet50", "TOPK_WEIGHTS": str(weights)},
    }
    peers.write_text(json.dumps({"topk": topk}))
    options = "--peers topk --variants default --rounds 1 --warm 1 --seconds 2 --conc 1,16 --overload 3 --phone="
    report = python(
        f"import run; run.PORT = {free_port()}; run.main()",
        *options.split(),
        BENCH_HOME=str(tmp_path),
        BENCH_PEERS_JSON=str(peers),
    )
    print(report)
    [row] = map(json.loads, (tmp_path / "out" / "rows.jsonl").read_text().splitlines())
    assert "error" not in row, row["error"]
    assert row["correct"] == f"{COUNT}/{COUNT}"
    assert "200-wrong" not in row["overload"]["outcomes"]
