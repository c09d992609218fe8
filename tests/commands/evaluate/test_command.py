"""``topk evaluate``: over HTTP, and, as a process, interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.commands.evaluate.service import Problem, Service
from tests.commands.runner import topk
from tests.conftest import REPOSITORY, Server, environment
from tests.names import HUMAN

COMMAND = [sys.executable, "-m", "app", "evaluate"]
AT_ONCE = 32  # that many are under way over HTTP


def evaluate(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    return topk("evaluate", *arguments, *(("--cache-dir", cache) if cache else ()))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Files of one byte, which the known service takes for pictures: 18 cats and 18 dogs."""
    root = tmp_path / "many"
    for class_id, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(18):
            (root / name / f"{i:02}.jpg").write_bytes(bytes([class_id + 6 * i]))
    return root


class Held:
    """Answers the first ``through`` images and holds all others; ``full`` is set when no more can come."""

    def __init__(self, through: int) -> None:
        self.full = threading.Event()
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._through, self._seen = through, 0

    def __call__(self, content: bytes) -> Problem | None:
        if len(content) != 1:  # the square from whose answer the classes come
            return None
        with self._lock:
            self._seen += 1
            mine = self._seen
            if mine == self._through + AT_ONCE:
                self.full.set()  # each that was answered made room for another: it is in the journal
        if mine > self._through:
            self.released.wait(60)
        return None


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_stopped(sent: signal.Signals, many: Path, tmp_path: Path) -> None:
    held, cache = Held(through=4), tmp_path / "cache"
    with Service(first=lambda content: content[0] % 6 if len(content) == 1 else 0, problem=held) as service:
        command = [*COMMAND, str(many), "--url", service.url, "--json"]
        env = environment() | {"TOPK_CACHE_DIR": str(cache)}
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert held.full.wait(60)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert out == ""
        if sent == signal.SIGINT:
            assert process.returncode == 130
            printed = "interrupted; evaluating: 4 of 36 images are done; run the same command again to resume"
            assert " ".join(err.split()) == printed
        assert ".sqlite" in {path.suffix for path in (cache / "evaluate").iterdir()}
        held.released.set()
        asked = len(service.images)
        ran = evaluate(str(many), "--url", service.url, "--json", cache=cache)
    found = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (found["n"], found["top1"], found["asked"]) == (36, 1.0, 32)
    assert len(service.images) - asked == 32
    assert list((cache / "evaluate").iterdir()) == []


def test_a_service_that_fails_leaves_the_rest_for_later(many: Path, tmp_path: Path) -> None:
    def refuse(content: bytes) -> Problem | None:
        last = content == bytes([1 + 6 * 17])  # asked when others have their answer, since not all are asked at once
        return (401, {"detail": "no key"}, {}) if last and not late.is_set() else None

    late = threading.Event()
    with Service(problem=refuse) as service:
        first = evaluate(str(many), "--url", service.url, cache=tmp_path / "cache")
        late.set()
        second = evaluate(str(many), "--url", service.url, "--json", cache=tmp_path / "cache")
    assert first.returncode == 1
    assert "401 Unauthorized: no key" in " ".join(first.stderr.split())
    assert json.loads(second.stdout)["asked"] < 36
    assert json.loads(second.stdout)["n"] == 36


@pytest.mark.slow
def test_topk_itself_is_evaluated_over_http(embedded_server: Server, pictures: Path, tmp_path: Path) -> None:
    """As in-process: the same model, the same files, by another way."""
    page = tmp_path / "report.html"
    ran = evaluate(str(pictures), "--url", embedded_server.url, "--json", "--report", str(page))
    assert (ran.returncode, ran.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ran.stdout)
    assert (found["n"], found["model"]) == (5, "efficientnet_lite0")
    assert found["url"] == embedded_server.url
    assert {Path(one["file"]).name for one in found["unreadable"]} == {"torn.jpg", "empty.jpg"}
    assert [level["accuracy"] for level in found["levels"] if level["label"] == "cat"] == [1.0]
    assert embedded_server.url in page.read_text()


@HUMAN
def test_json_has_the_real_names_of_files(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "1.jpg").write_bytes(b"\0")
    empty = root / "cat" / f"{name}.jpg"
    empty.touch()
    with Service(first=lambda content: 0) as service:
        ran = evaluate(str(root), "--url", service.url, "--json", cache=tmp_path)
    found = json.loads(ran.stdout)
    assert (found["source"], [one["file"] for one in found["unreadable"]]) == (str(root), [str(empty)])


def test_a_source_that_is_not_utf_8_is_evaluated(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "1.jpg").write_bytes(b"\0")
    with Service(first=lambda content: 0) as service:
        ran = evaluate(str(root), "--url", service.url, "--json", cache=tmp_path)
    assert json.loads(ran.stdout)["source"] == f"{tmp_path}/caf\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("/none/at/all",), "no such folder or CSV file: /none/at/all"),
        (("docs", "--report", "/none/report.html"), "no such folder for the report: /none"),
        (("tests", "--url", "ftp://host"), "not an http or https URL"),
    ],
)
def test_what_cannot_be_done_is_one_plain_line(arguments: tuple[str, ...], words: str) -> None:
    ran = evaluate(*arguments)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert words in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr
