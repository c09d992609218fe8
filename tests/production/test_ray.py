"""Replicas on a real local Ray: the same answers, all at work, one killed, one drained; what is lost is counted."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app import loading
from app.classifier import Classifier
from app.engine import Want
from app.errors import ModelError, NotReady
from app.imagenet.predictions import Prediction
from app.main import create_app
from app.settings import Settings
from tests.api.wire import Wire
from tests.conftest import CAT, REPOSITORY, overloaded_ms

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("priority")]

PHOTO = CAT.read_bytes()
MODEL = "efficientnet_lite0"
TWO: dict[str, Any] = {"autoscaling_config": None, "num_replicas": 2}


def wait_until(holds: Callable[[], object], seconds: float = 180) -> None:
    """Ask again until it holds."""
    pause, until = threading.Event(), time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        pause.wait(0.1)


class Cluster:
    """deploy/ray/serve.yaml on a Ray of this machine's own, on a free port and with what a test changes in it."""

    def __init__(self, folder: Path, address: str, serve: Any) -> None:
        self._file = folder / "serve.yaml"
        self._address = address
        self._serve = serve
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def deploy(self, args: dict[str, Any], options: dict[str, Any]) -> None:
        """``serve run`` it; returns once it is handed over."""
        config = yaml.safe_load((REPOSITORY / "deploy" / "ray" / "serve.yaml").read_text())
        config["http_options"] = {"host": "127.0.0.1", "port": self.port}
        [application] = config["applications"]
        application["args"] |= {"model": MODEL} | args
        [deployment] = application["deployments"]
        deployment |= {"ray_actor_options": {"num_cpus": 0.5}} | options
        application["deployments"] = [{key: value for key, value in deployment.items() if value is not None}]
        self._file.write_text(yaml.safe_dump(config))
        serve_run = [str(Path(sys.executable).parent / "serve"), "run", "--non-blocking", "--address", self._address]
        ran = subprocess.run([*serve_run, str(self._file)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr

    def status(self) -> Any:
        """What ``serve status`` says of the deployment; None while Ray knows of none."""
        application = self._serve.status().applications.get("topk")
        return application and application.deployments.get("Topk")

    def states(self) -> dict[str, int]:
        """Ray's own count of the replicas by state."""
        status = self.status()
        return dict(status.replica_states) if status else {}

    def whole(self, replicas: int = 2) -> bool:
        """Whether so many replicas serve, and none is starting or stopping."""
        running = self._serve.status().applications["topk"].status == "RUNNING"
        return running and self.states() == {"RUNNING": replicas} and len(self.processes()) == replicas

    def processes(self) -> list[psutil.Process]:
        """The replicas' processes."""
        found = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ray::ServeReplica:topk:Topk" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def post(self, content: bytes, path: str = "/v1/predict", **headers: str) -> httpx2.Response:
        return httpx2.post(self.url + path, content=content, headers=headers, timeout=60)

    def metric(self, name: str, **labels: str) -> dict[str, float]:
        """One metric's sum at each replica."""
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(httpx2.get(f"{self.url}/metrics", timeout=30).text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    sums[sample.labels["replica"]] += sample.value
        return dict(sums)


@dataclass(slots=True, eq=False)
class Asked:
    """One request; its status is None while it is under way, and 0 where no answer came."""

    status: int | None = None


class Load:
    """Clients that each ask, wait for the answer and ask again, until the block ends.

    A client that is refused as overloaded retries after the stated time. ``asked`` does not contain such refusals.
    """

    def __init__(self, url: str, clients: int) -> None:
        self._url = url
        self._changed = threading.Condition()
        self._ending = False
        self.asked: list[Asked] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for thread in self._threads:
            thread.join(90)

    def under_way(self) -> list[Asked]:
        with self._changed:
            return [asked for asked in self.asked if asked.status is None]

    def statuses(self) -> Counter[int | None]:
        with self._changed:
            return Counter(asked.status for asked in self.asked)

    def go_on(self, answers: int) -> None:
        """Wait for so many good answers more."""
        until = self.statuses()[200] + answers
        with self._changed:
            assert self._changed.wait_for(lambda: sum(asked.status == 200 for asked in self.asked) >= until, 180)

    def _run(self) -> None:
        with httpx2.Client(timeout=60) as client:
            while not self._ending:
                asked = Asked()
                with self._changed:
                    self.asked.append(asked)
                pause = None
                try:
                    answer = client.post(f"{self._url}/v1/predict", content=PHOTO)
                    status, pause = answer.status_code, overloaded_ms(answer)
                except httpx2.HTTPError:
                    status = 0
                with self._changed:
                    if pause is None:
                        asked.status = status
                        self._changed.notify_all()
                    else:
                        self.asked.remove(asked)
                        self._changed.wait_for(lambda: self._ending, pause / 1000)


@pytest.fixture(scope="module")
def expected() -> list[Prediction]:
    """What the classifier of this process says of the photograph. It converts the model, once for the replicas too."""
    classifier = Classifier(Settings(model=MODEL, _env_file=None))
    loading.load(classifier)
    result = asyncio.run(classifier.classify(PHOTO, Want(k=5), time.monotonic() + 30))
    classifier.close()
    return classifier.predictions(result.row)


@pytest.fixture(scope="module")
def cluster(ray_app: ModuleType, expected: list[Prediction]) -> Iterator[Cluster]:
    """A Ray of 2 CPUs with two replicas. It ends with the module, its processes with it."""
    others = set(psutil.Process().children(recursive=True))  # servers of other tests, say
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a short path: sockets lie below it
    ray, serve = pytest.importorskip("ray"), pytest.importorskip("ray.serve")
    try:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        cluster = Cluster(folder, ray.get_runtime_context().gcs_address, serve)
        cluster.deploy({"upload_idle_ms": 60_000}, TWO)
        wait_until(lambda: cluster.states() == {"RUNNING": 2})
        yield cluster
    finally:
        started = set(psutil.Process().children(recursive=True)) - others
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        _, left = psutil.wait_procs(started, 20)
        for process in left:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    assert left == []


@pytest.mark.parametrize("form", [{"content": PHOTO}, {"files": {"file": PHOTO}}])
def test_the_answer_is_the_classifiers_own(cluster: Cluster, expected: list[Prediction], form: dict[str, Any]) -> None:
    answer = httpx2.post(f"{cluster.url}/v1/predict", timeout=30, **form).json()
    assert [p["label"] for p in answer["predictions"]] == [p.label for p in expected]
    assert [p["score"] for p in answer["predictions"]] == pytest.approx([p.score for p in expected], abs=1e-4)


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/v1/info", "/livez", "/readyz", "/healthz", "/metrics"]
)
def test_every_page_is_there(cluster: Cluster, path: str) -> None:
    assert httpx2.get(cluster.url + path).status_code == 200


def test_headers_come_through_once(cluster: Cluster) -> None:
    answer = cluster.post(PHOTO, **{"X-Request-ID": "trace-42:a/b"})
    assert answer.headers.get_list("x-request-id") == ["trace-42:a/b"]
    assert "inference;dur=" in answer.headers["server-timing"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"no image", 415, "unsupported_media_type"), (PHOTO[:9000], 422, "undecodable_image"), (b"", 400, "empty_body")],
)
def test_a_bad_image_gets_its_code(cluster: Cluster, body: bytes, status: int, code: str) -> None:
    answer = cluster.post(body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_clients_that_leave_are_counted_and_forgotten(cluster: Cluster) -> None:
    before = cluster.metric("topk_requests_total", status="499")
    for _ in range(5):
        with Wire(cluster.port) as wire:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO[:9000])
            wait_until(lambda: sum(cluster.metric("topk_inflight_bytes").values()) == 9000)
        wait_until(lambda: not sum(cluster.metric("topk_inflight_bytes").values()))
    assert sum(cluster.metric("topk_requests_total", status="499").values()) == sum(before.values()) + 5


def test_too_large_a_body_is_refused_and_the_refusal_arrives(cluster: Cluster) -> None:
    answer = cluster.post(bytes(21 * 2**20))
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


def test_batches_form_in_both_replicas(cluster: Cluster) -> None:
    """Ray chooses how many requests each replica gets, so the load goes on until both have had two at once."""
    sums = [cluster.metric(f"topk_batch_size_{name}") for name in ("count", "sum")]

    def since() -> list[dict[str, float]]:
        return [
            {replica: count - before[replica] for replica, count in cluster.metric(f"topk_batch_size_{name}").items()}
            for name, before in zip(("count", "sum"), sums, strict=True)
        ]

    def formed() -> bool:
        batches, images = since()
        return all(images[replica] >= batches[replica] + 20 for replica in images)

    with Load(cluster.url, 32) as load:
        wait_until(formed)
    batches, images = since()
    print(f"{load.statuses()}, batches {batches}, images {images}")
    assert set(load.statuses()) == {200}
    assert sum(images.values()) == len(load.asked)
    assert len(images) == len(cluster.processes()) == 2


def test_overload_is_refused_with_the_time_to_come_back(cluster: Cluster) -> None:
    answers = []

    def ask() -> None:
        url, impatient = f"{cluster.url}/v1/predict/batch", {"X-Request-Timeout-Ms": "500"}
        answers.append(httpx2.post(url, files=[("file", PHOTO)] * 32, headers=impatient, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) == 48
    assert refused
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(503, "overloaded")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["retry_after_ms"] > 0 for answer in refused)


def test_a_killed_replica_takes_only_what_it_held_along(cluster: Cluster) -> None:
    doomed, other = cluster.processes()
    with Load(cluster.url, 24) as load:
        load.go_on(100)
        doomed.suspend()  # so that what it holds is known: what stays unanswered while the other goes on answering
        sent = load.under_way()
        load.go_on(48)
        held = [asked for asked in sent if asked.status is None]
        doomed.kill()
        wait_until(lambda: cluster.whole() and doomed not in cluster.processes())
        load.go_on(100)
    failed = [asked for asked in load.asked if asked.status != 200]
    print(f"{load.statuses()}, held by the killed replica {len(held)}, failed {len(failed)}")
    assert held
    assert set(failed) <= set(held)
    assert {asked.status for asked in failed} <= {500}
    assert other in cluster.processes()
    wait_until(lambda: len(cluster.metric("topk_requests_total")) == 2)


def test_a_redeploy_under_load_loses_nothing(cluster: Cluster) -> None:
    old = cluster.processes()
    with Load(cluster.url, 8) as load, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(cluster.port)) for _ in range(8)]
        for wire in wires:  # half an upload each, at both replicas
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO[:9000])
        load.go_on(50)
        cluster.deploy({"max_pixels": 40_000_000}, TWO)
        wait_until(lambda: cluster.states().get("STOPPING"))
        for wire in wires:
            wire.send(PHOTO[9000:])
        assert [wire.status() for wire in wires] == [200] * len(wires)
        wait_until(lambda: cluster.whole() and not set(old) & set(cluster.processes()), 90)
        load.go_on(50)
    print(load.statuses())
    assert set(load.statuses()) == {200}
    assert httpx2.get(f"{cluster.url}/v1/info").json()["limits"]["max_pixels"] == 40_000_000


def test_a_setting_that_is_none_is_refused(ray_app: ModuleType) -> None:
    with pytest.raises(ValueError, match="no such settings: modle"):
        ray_app.build({"modle": MODEL})


def test_a_redeploy_that_cannot_load_is_reported_and_keeps_the_old_replicas(cluster: Cluster) -> None:
    cluster.deploy({"model": "nonsense"}, TWO)
    wait_until(lambda: "no model 'nonsense'" in getattr(cluster.status(), "message", ""))
    assert {cluster.post(PHOTO).status_code for _ in range(10)} == {200}
    cluster.deploy({}, TWO)
    wait_until(cluster.whole)


def test_a_replica_is_healthy_while_its_model_serves(ray_app: ModuleType) -> None:
    app = create_app(Settings(model=MODEL, _env_file=None))
    replica = ray_app.Topk.func_or_class
    with pytest.raises(NotReady):
        asyncio.run(replica.check_health(SimpleNamespace(app=app)))
    app.state.service.readiness.serve()
    asyncio.run(replica.check_health(SimpleNamespace(app=app)))
    app.state.service.readiness.failure = ModelError("the device hangs")
    with pytest.raises(ModelError):
        asyncio.run(replica.check_health(SimpleNamespace(app=app)))


def test_replicas_come_and_go_with_the_load(cluster: Cluster) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 4}
    quick = {"upscale_delay_s": 0, "downscale_delay_s": 0}
    cluster.deploy({"max_pixels": 40_000_000}, {"autoscaling_config": scaling | quick})
    wait_until(lambda: cluster.whole(1))
    with Load(cluster.url, 2) as little:
        with Load(cluster.url, 14) as much:
            wait_until(lambda: cluster.whole(2))
            much.go_on(100)
        wait_until(lambda: cluster.whole(1))
        little.go_on(50)
    print(little.statuses(), much.statuses())
    assert set(little.statuses() + much.statuses()) == {200}
