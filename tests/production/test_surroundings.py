"""A disk that is full, a log that nobody reads, a clock that jumps: the service goes on, or ends in a sentence."""

import email.utils
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.wire import Wire
from tests.conftest import CAT, REPOSITORY, SERVE, Server, environment
from tests.production.test_sockets import Ordinary
from tests.workers.conftest import wait_until

PHOTO = CAT.read_bytes()
MODEL = ("--model", "efficientnet_lite0")
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
DAY_S = 86_400
Start = Callable[..., Server]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("priority")]


@pytest.fixture
def start() -> Iterator[Start]:
    """Servers that end with the test, however that ends."""
    started: list[Server] = []

    def begin(*options: str, **how: Any) -> Server:
        started.append(Server(*options, **how))
        return started[-1]

    yield begin
    for server in started:
        server.stop(signal.SIGKILL)


def small_disk(folder: Path, size: str) -> tuple[str, ...]:
    """What runs a command with a disk of its own at ``folder``; without the right to mount one, with small files."""
    mount = f'mount -t tmpfs -o size={size} none {folder} && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], capture_output=True).returncode == 0:
        return ("unshare", "-m", "sh", "-c", mount, "sh")
    return ("prlimit", f"--fsize={1024 * int(size[:-1])}")


def test_a_model_that_does_not_fit_on_the_disk_is_one_plain_error(tmp_path: Path, resnet18_weights: Path) -> None:
    server = Server(
        *("--model", "resnet18", "--weights", str(resnet18_weights)),
        env={"TOPK_CACHE_DIR": str(tmp_path)},
        under=small_disk(tmp_path, "4000k"),
    )
    assert server.process.wait(120) == 1
    server.stop()
    events = [str(line["event"]) for line in server.log]
    assert events[:3] == ["no API key is required", "loading", "converting the model, once on this machine"]
    assert len(events) == 4
    assert "cannot be written: a file could not be written; the disk may be full" in events[-1]


def test_a_server_that_runs_writes_nothing(embedded_server: Server, tmp_path: Path, start: Start) -> None:
    embedded_server.wait_for("ready")  # its model is in the cache now
    server = start(*MODEL, env={"HOME": str(tmp_path)}, under=("prlimit", "--fsize=0"))
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for path in ("/v1/predict", "/v1/embed"):
            assert client.post(path, content=PHOTO).status_code == 200
            assert client.post(path, files={"file": PHOTO * 5}).status_code == 200
            assert client.post(f"{path}/batch", files=[("file", PHOTO)] * 5).status_code == 200
        for path in ("/", "/docs", "/metrics", "/v1/info", "/openapi.json"):
            assert client.get(path).status_code == 200
    assert server.stop() == 0
    assert not list(tmp_path.iterdir())
    assert not [line for line in server.log if line.get("level") in ("warning", "error")]


class Unheard:
    """A server whose log is read up to the line that says that it is ready, and then no more."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [*SERVE, *MODEL],
            cwd=REPOSITORY,
            env=environment() | {"TOPK_DRAIN_DELAY_MS": "0"},
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr
        self.log = self.process.stderr
        self.url = next(line["address"] for line in map(json.loads, self.log) if line["event"] == "ready")

    def __enter__(self) -> "Unheard":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def ask(self, times: int) -> set[int]:
        """The statuses of so many answers, each of which is a log line."""
        with httpx2.Client(base_url=self.url, timeout=30) as client:
            answers = [client.get("/v1/info") for _ in range(times)]
            return {answer.status_code for answer in (*answers, client.post("/v1/predict", content=PHOTO))}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def test_a_log_that_nobody_reads_any_more_stops_nothing() -> None:
    with Unheard() as server, ThreadPoolExecutor(1) as reader:
        assert server.ask(1000) == {200}  # more lines than the pipe holds
        rest = reader.submit(server.log.read)
        assert server.ask(10) == {200}
        assert server.stop() == 0
        lines = rest.result(60).splitlines()
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    events = [str(json.loads(line)["event"]) for line in whole]
    assert [event for event in events if "log lines before this one were dropped" in event]
    assert events[-1] == "stopped"


def test_a_log_whose_reader_has_gone_stops_nothing() -> None:
    with Unheard() as server:
        server.log.close()
        assert server.ask(50) == {200}
        assert server.stop() == 0


@pytest.mark.skipif(FAKETIME is None, reason="no libfaketime is installed")
def test_clock_jumps_change_no_deadline_and_no_connection(tmp_path: Path, start: Start) -> None:
    offset = tmp_path / "offset"

    def jump(seconds: int) -> None:
        (tmp_path / "next").write_text(f"{seconds:+d}\n")
        os.replace(tmp_path / "next", offset)

    def ahead(client: httpx2.Client) -> float:
        """Seconds that the server's wall clock is ahead of ours."""
        date = email.utils.parsedate_to_datetime(client.get("/livez").headers["date"])
        return date.timestamp() - time.time()

    def batch(url: str) -> list[str]:
        """What becomes of images of which the last wait for a while: 'ok', or the code of an error."""
        document = httpx2.post(f"{url}/v1/predict/batch", files=[("file", PHOTO)] * 16, timeout=60).json()
        return [result.get("error", result).get("code", "ok") for result in document.get("results", [document])]

    jump(0)
    codes: Counter[str] = Counter()
    preload = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset)}
    only_the_wall_clock = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    patient = ("--upload-idle-ms", "60000", "--request-timeout-ms", "300000")  # a jump alone can make anything late
    server = start(*MODEL, *patient, env=preload | only_the_wall_clock)
    with (
        httpx2.Client(base_url=server.url, timeout=60) as kept,
        ThreadPoolExecutor(2) as clients,
        Ordinary(server, 503) as ordinary,
    ):
        for seconds in (DAY_S, -DAY_S, 3600, 365 * DAY_S, 0):
            with Wire(server.port) as upload:
                upload.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
                upload.send(PHOTO[:-2])
                waiting = [clients.submit(batch, server.url) for _ in range(2)]
                wait_until(lambda: server.metric("topk_queue_images") > 0)
                server.process.send_signal(signal.SIGSTOP)  # with images in its queue
                jump(seconds)
                server.process.send_signal(signal.SIGCONT)
                while abs(ahead(kept) - seconds) > 600:  # uvicorn looks at the clock once a second
                    pass
                upload.send(PHOTO[-2:-1])
                wait_until(lambda: server.metric("topk_inflight_bytes") >= len(PHOTO) - 1)
                upload.send(PHOTO[-1:])
                codes[{200: "ok", 503: "overloaded"}.get(upload.status(), "late")] += 1
            codes.update(waiting[0].result() + waiting[1].result())
            ordinary.is_served()
    assert codes.keys() <= {"ok", "overloaded"}  # it is, where others want the cores as well
    assert codes["ok"] > 0
    assert 200 in ordinary.answers
    assert server.metric("topk_predicted_wait_seconds") < 60
    assert server.stop() == 0
    assert not [line for line in server.log if line.get("level") in ("warning", "error")]
