"""Fuzzing of the image path: Hypothesis, a coverage-guided fuzzer, and the same files over HTTP.

``FUZZ_SECONDS`` (20) is how long the coverage-guided fuzzer runs; the others do as much more for it.
"""

import base64
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.images.sandbox import ENVIRONMENT
from tests.api.wire import multipart
from tests.conftest import CAT, REPOSITORY, Server, environment
from tests.production import mutants

SECONDS = int(os.environ.get("FUZZ_SECONDS", "20"))
MIB = 2**20
MEMORY_MIB = 1024
PHOTO = CAT.read_bytes()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * SECONDS + 300)]


@pytest.mark.parametrize("name", mutants.seeds())
def test_a_seed_is_whole(name: str) -> None:
    assert mutants.judge(mutants.seeds()[name]) == "ok"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not report the peak of memory")
def test_a_mutant_is_a_crop_or_an_error_of_ours() -> None:
    @settings(
        max_examples=50 * SECONDS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def judge(chance: random.Random) -> None:
        outcomes[mutants.judge(mutants.mutant(chance))] += 1

    outcomes: Counter[str] = Counter()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on its peak is ours
    judge()
    print(f"\nHypothesis: {dict(outcomes)}, peak +{(_memory('VmHWM') - before) // MIB} MiB")
    assert outcomes.keys() >= {"ok", "undecodable_image", "unsupported_media_type", "too_many_pixels"}
    assert _memory("VmHWM") - before < MEMORY_MIB * MIB


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def assert_within_bounds(*arguments: str) -> None:
    """Measure the cost of files in a process of its own: it stays below 10 times what is predicted."""
    command = [sys.executable, "-m", "tests.production.costs", *arguments]
    env = environment() | ENVIRONMENT
    run = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    print(f"\n{summary['measured']} decodes measured; slowest {summary['slowest']}; largest {summary['largest']}")
    assert summary["beyond"] == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not report the peak of memory")
def test_no_mutant_costs_more_than_ten_times_what_is_predicted() -> None:
    assert_within_bounds("--mutants", str(100 * SECONDS))


def fuzz(corpus: Path, seconds: int, program: tuple[str, ...] = ("-m", "tests.production.fuzz")) -> tuple[int, str]:
    """Exit code and output of a fuzzing process."""
    limits = (f"-rss_limit_mb={MEMORY_MIB}", "-timeout=30", "-max_len=65536")
    bounds = (*limits, f"-max_total_time={seconds}", f"-artifact_prefix={corpus}/")
    # A shell's child, for the peak of memory that Linux tells of a process begins with that of the one it came from:
    # here pytest, with the models of other tests.
    result = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, *program, str(corpus), *bounds],
        cwd=REPOSITORY,
        env=environment() | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + 200,
    )
    return result.returncode, result.stdout


def test_the_fuzzer_finds_no_crash(tmp_path: Path) -> None:
    for name, data in mutants.seeds().items():
        (tmp_path / name).write_bytes(data)
    code, log = fuzz(tmp_path, SECONDS)
    found = [path for path in tmp_path.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-", "slow-"))]
    kept = {path.name: base64.b64encode(path.read_bytes()).decode() for path in found}
    assert (code, kept) == (0, {}), log[-5000:]
    runs = re.search(r"Done (\d+) runs in (\d+) second", log)
    assert runs
    assert int(runs[1]) > len(mutants.seeds())
    assert_within_bounds(str(tmp_path))  # what the fuzzer kept, since it covers or costs more
    coverage = re.findall(r"cov: (\d+)", log)
    print(f"\nfuzzer: {runs[1]} executions in {runs[2]} s, coverage {coverage[0]} -> {coverage[-1]}, crashes 0")


@pytest.mark.parametrize(
    "finding", ["faulthandler._sigsegv()", "raise ValueError", "bytearray(1 << 31)[:] = b'x' * (1 << 31)"]
)
def test_the_fuzzer_would_say_so(tmp_path: Path, finding: str) -> None:
    program = "import faulthandler\nfrom tests.production import fuzz\ndef judge(data):\n    "
    code, _ = fuzz(tmp_path, 5, ("-c", f"{program}{finding}\nfuzz.run(judge)"))
    assert code != 0


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("--model", "efficientnet_lite0", "--request-timeout-ms", "60000")
    yield server
    assert server.stop() == 0
    assert not [line for line in server.log if line.get("level") == "error"]


def test_mutants_over_http_are_answered_and_never_with_a_defect(server: Server) -> None:
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        right = client.post("/v1/predict", content=PHOTO)
        assert right.status_code == 200
        memory = psutil.Process(server.process.pid).memory_info
        before = memory().rss

        def ask(number: int) -> str:
            return _asked(client, random.Random(number))

        with ThreadPoolExecutor(4) as clients:
            answers = Counter(clients.map(ask, range(30 * SECONDS)))
        after = client.post("/v1/predict", content=PHOTO)
    shed = answers.pop("503 overloaded", 0)
    print(f"\nover HTTP: {dict(answers)}, {shed} shed, resident +{(memory().rss - before) // MIB} MiB")
    assert {answer for answer in answers if answer[0] not in "24"} == set()
    assert "200 ok" in answers
    assert after.json() == right.json()
    assert memory().rss - before < MEMORY_MIB * MIB


def _asked(client: httpx2.Client, chance: random.Random) -> str:
    """The answer to one or several mutants, sent in one of the ways there are: status, and a code of the images'."""
    images = [mutants.mutant(chance) for _ in range(chance.choice((1, 1, 1, 3)))]
    path = chance.choice(("/v1/predict", "/v1/embed"))
    kind, body = chance.choice((_raw, _form, _json))(images)
    if len(images) > 1:
        path += "/batch"
        kind, body = chance.choice((_form, _json))(images)
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    document = answer.json()
    codes = [result.get("error", {}).get("code", "ok") for result in document.get("results", [])]
    return f"{answer.status_code} {'+'.join(sorted(set(codes))) or document.get('code', 'ok')}"


def _raw(images: list[bytes]) -> tuple[str, bytes]:
    return "application/octet-stream", images[0]


def _form(images: list[bytes]) -> tuple[str, bytes]:
    parts = (("file", name, data) for name, data in zip(itertools.cycle(("a.jpg", None)), images, strict=False))
    return multipart(*parts, boundary="a-boundary-that-no-image-holds")


def _json(images: list[bytes]) -> tuple[str, bytes]:
    encoded = [base64.b64encode(data).decode() for data in images]
    return "application/json", json.dumps({"images": encoded} if len(images) > 1 else {"image": encoded[0]}).encode()
