"""Many requests of every kind against one server, good, bad and abandoned: afterwards all is as it was.

``SOAK_REQUESTS`` (3 000) is how many; from 20 000 on ResNet-50 gets a fifth as many.
"""

import base64
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.images.decoder import default_lanes
from tests.api.wire import Wire, multipart
from tests.conftest import CAT, RESNET50, Server
from tests.production import mutants
from tests.workers.conftest import wait_until

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "4000"))
MODELS = {
    "efficientnet_lite0": (REQUESTS, ("--model", "efficientnet_lite0")),
    "resnet50": (REQUESTS // 5, ("--model", "resnet50", "--weights", str(RESNET50))),
}
CLIENTS = 8
WARM_UP = 2500  # requests, or a third of more: each thread of a pool has had its first costly picture by then
GROWTH = 1.1  # resident memory at the end, to that after the warm-up: it varies by 3 % without growing
POOLED = 8  # threads that pools may still start when they first have that much to do
PHOTO = CAT.read_bytes()
MIB = 2**20
OUTCOMES = {
    "unsupported_media_type": "rejected",
    "undecodable_image": "rejected",
    "too_many_pixels": "rejected",
    "overloaded": "shed",
    "deadline_exceeded": "expired",
}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("priority"), pytest.mark.timeout(300 + REQUESTS // 5)]


LARGE = [pytest.param("resnet50", marks=pytest.mark.shared)] if REQUESTS >= 20_000 else []


@pytest.fixture(params=["efficientnet_lite0", *LARGE])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(model: str) -> Iterator[Server]:
    server = Server(*MODELS[model][1])
    yield server
    assert server.stop() == 0
    assert not [line for line in server.log if line.get("level") in ("warning", "error")]


@dataclass
class Tally:
    """What clients were told: answers by status, images by outcome, and how many left in mid-upload and in mid-wait."""

    statuses: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, answer: httpx2.Response, of_images: bool = True) -> None:
        with self.lock:
            self.statuses[str(answer.status_code)] += 1
            if of_images and answer.status_code != 413:  # there was no image yet
                document = answer.json()
                for result in document.get("results", [document]):
                    code = result.get("error", result).get("code", "accepted")
                    self.images[OUTCOMES.get(code, code)] += 1

    def gone(self, when: str) -> None:
        with self.lock:
            self.left[when] += 1


class Client:
    """One of those that send; each has its connection, and its own luck."""

    def __init__(self, server: Server, tally: Tally, seed: int) -> None:
        self.chance = random.Random(seed)
        self.port = server.port
        self.http = httpx2.Client(base_url=server.url, timeout=60)
        self.tally = tally
        self.kinds: list[tuple[int, Callable[[], None]]] = [
            (20, lambda: self._send("/v1/predict?top_k=3", PHOTO)),
            (10, lambda: self._send("/v1/predict", *self._form(PHOTO))),
            (5, lambda: self._send("/v1/predict", *self._json(PHOTO))),
            (10, lambda: self._send("/v1/embed?encoding=base64", PHOTO)),
            (10, lambda: self._send("/v1/predict/batch", *self._form(PHOTO, self._mutant(), PHOTO))),
            (5, lambda: self._send("/v1/embed/batch", *self._json_list(PHOTO, self._mutant()))),
            (20, lambda: self._send("/v1/predict", self._mutant())),
            (10, lambda: self._send("/v1/predict", PHOTO, **{"X-Request-Timeout-Ms": str(self.chance.randint(1, 30))})),
            (5, self._refused),
            (3, lambda: self.tally.answered(self.http.get("/v1/info"), of_images=False)),
            (8, lambda: self._leave("in mid-upload", PHOTO[: self.chance.randrange(len(PHOTO))])),
            (8, lambda: self._leave("in mid-wait", PHOTO)),
        ]

    def run(self, count: int) -> None:
        weights, kinds = zip(*self.kinds, strict=True)
        for kind in self.chance.choices(kinds, weights, k=count):
            kind()

    def _send(self, path: str, body: bytes, kind: str = "application/octet-stream", **headers: str) -> None:
        self.tally.answered(self.http.post(path, content=body, headers={"Content-Type": kind, **headers}))

    def _refused(self) -> None:
        """Refused before there is an image."""
        answer = self.chance.choice(
            (
                lambda: self.http.post("/v1/predict"),
                lambda: self.http.post("/v1/predict?top_k=0", content=PHOTO),
                lambda: self.http.post("/v1/predict", content=b"{", headers={"Content-Type": "application/json"}),
                lambda: self.http.post("/v1/predict", content=b"x" * 2**20, headers={"Content-Encoding": "gzip"}),
                lambda: self.http.post("/v1/nothing", content=PHOTO),
                lambda: self.http.delete("/v1/predict"),
            )
        )()
        assert 400 <= answer.status_code < 500
        self.tally.answered(answer, of_images=False)

    def _leave(self, when: str, sent: bytes) -> None:
        with Wire(self.port) as wire:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(sent)
        self.tally.gone(when)

    def _mutant(self) -> bytes:
        mutant = mutants.mutant(self.chance)
        return mutant if mutant and mutant.lstrip()[:1] != b"{" else b"\0"  # what looks like JSON is no image

    def _form(self, *images: bytes) -> tuple[bytes, str]:
        kind, body = multipart(*(("file", "a.jpg", data) for data in images), boundary="a-boundary-in-no-image")
        return body, kind

    def _json(self, image: bytes) -> tuple[bytes, str]:
        return json.dumps({"image": base64.b64encode(image).decode()}).encode(), "application/json"

    def _json_list(self, *images: bytes) -> tuple[bytes, str]:
        return json.dumps({"images": [base64.b64encode(i).decode() for i in images]}).encode(), "application/json"


def counted(server: Server, metric: str, label: str) -> Counter[str]:
    """A counter's samples, summed by one label; what was asked for health and metrics is left out."""
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx2.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            if sample.name == metric and sample.labels.get("route") != "/metrics":
                sums[sample.labels[label]] += int(sample.value)
    return sums


def test_after_a_soak_all_is_as_it_was(server: Server, model: str) -> None:
    process = psutil.Process(server.process.pid)
    tally = Tally()
    clients = [Client(server, tally, seed) for seed in range(CLIENTS)]
    count = MODELS[model][0] // CLIENTS

    def soak(each: int) -> tuple[int, int, int]:
        """Bytes, files and threads of the server once it has come to rest."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda client: client.run(each), clients))
        for client in clients:
            client.http.close()
            client.http = httpx2.Client(base_url=server.url, timeout=60)
        for gauge in ("topk_queue_images", "topk_inflight_bytes"):
            wait_until(lambda gauge=gauge: server.metric(gauge) == 0)  # type: ignore[misc]
        wait_until(lambda: len(process.net_connections()) == 1)
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    warm_up = max(count // 3, WARM_UP // CLIENTS)
    soak(warm_up)
    before = soak(1)
    after = soak(count - warm_up - 1)
    sent = sum(tally.statuses.values()) + sum(tally.left.values())
    print(f"\n{model}: {sent} requests: {dict(tally.statuses)}, left {dict(tally.left)}, images {dict(tally.images)}")
    print(f"resident {before[0] / MIB:.0f} -> {after[0] / MIB:.0f} MiB, files {before[1]} -> {after[1]}", end="")
    print(f", threads {before[2]} -> {after[2]}")
    assert sent == CLIENTS * count
    assert after[0] < GROWTH * before[0]
    assert abs(after[1] - before[1]) <= 2 * default_lanes()  # connections to the sandbox's children come and go
    assert after[2] <= before[2] + POOLED

    requests = counted(server, "topk_requests_total", "status")
    assert sum(requests.values()) == sent
    unanswered = requests - tally.statuses
    assert not tally.statuses - requests
    assert set(unanswered) <= {"499", "200", "503"}  # who left in mid-wait may have been answered
    assert unanswered["499"] >= tally.left["in mid-upload"]

    images = counted(server, "topk_images_total", "outcome")
    assert not tally.images - images
    assert sum((images - tally.images).values()) <= tally.left["in mid-wait"]
    assert images["abandoned"] > 0
    assert images["failed"] == 0
    assert {"accepted", "rejected"} <= tally.images.keys()
