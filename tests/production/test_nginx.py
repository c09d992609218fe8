"""Two topk behind Debian's nginx, with the configuration that docker-compose.yml mounts: only addresses are changed."""

import itertools
import math
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.conftest import CAT, REPOSITORY, RESNET50, Server, free_port, overloaded_ms
from tests.workers.conftest import Service, wait_until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
TRICKLE_S = int(os.environ.get("TRICKLE_S", "12"))
PHOTO = CAT.read_bytes()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("priority"),
    pytest.mark.skipif(not NGINX, reason="nginx is not installed"),
]


class Replica:
    """A topk on a port of its own, which can be started again there."""

    def __init__(self, *options: str, **settings: str) -> None:
        self.port = free_port()
        self._options = options
        self._settings = {
            "TOPK_MODEL": "efficientnet_lite0",
            "TOPK_LISTEN_EARLY": "false",
            "TOPK_TRUSTED_PROXIES": "127.0.0.1",
            "TOPK_DRAIN_DELAY_MS": "1000",
        } | settings
        self.start()

    def start(self) -> None:
        self.server = Server("--port", str(self.port), *self._options, env=self._settings)

    @property
    def served(self) -> int:
        return sum(line["event"] == "request" and line.get("status") == 200 for line in list(self.server.log))


class Workers(Replica):
    """The same with the tiny model and several processes, of which the engine's can be stopped."""

    server: Service

    def start(self) -> None:
        self.server = Service("--port", str(self.port), *self._options, env=self._settings)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing is answered meanwhile."""
        [engine] = self.server.children("engine")
        engine.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            engine.send_signal(signal.SIGCONT)

    def requests(self, status: int) -> int:
        """How many requests ended with this status."""
        return sum(line["event"] == "request" and line.get("status") == status for line in list(self.server.log))


class Nginx:
    """nginx on a port of its own; ``log`` is its access log so far. ``directives`` are added to the configuration."""

    def __init__(self, folder: Path, *replicas: Replica, directives: str = "") -> None:
        assert NGINX
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        text = (REPOSITORY / "deploy" / "nginx" / "nginx.conf").read_text()
        for i, replica in enumerate(replicas, 1):
            assert f"topk-{i}:8080" in text
            text = text.replace(f"topk-{i}:8080", f"127.0.0.1:{replica.port}")
        text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/nginx", f"{folder}/nginx")
        text = text.replace("server_tokens off;", f"server_tokens off; {directives}")
        text = text.replace("/dev/stdout", f"{folder}/access.log").replace("/dev/stderr", f"{folder}/error.log")
        (folder / "nginx.conf").write_text(text)
        self._access = folder / "access.log"
        user = "user root;" if os.getuid() == 0 else ""
        self.process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", f"daemon off; {user}"]
        )
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                assert self.process.poll() is None

    @property
    def log(self) -> str:
        return self._access.read_text()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)


@contextmanager
def balanced(folder: Path, *replicas: Replica, directives: str = "") -> Iterator[Nginx]:
    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(lambda replica=replica: replica.server.stop())
        for replica in replicas:
            replica.server.wait_for("ready")
        nginx = Nginx(folder, *replicas, directives=directives)
        stack.callback(nginx.stop)
        yield nginx


class Load:
    """So many clients that ask without pause: every answer's status, and when it was asked for.

    ``patient`` ones that are told that a server is overloaded ask again when they are told to.
    """

    def __init__(self, url: str, clients: int = 8, patient: bool = False) -> None:
        self._patient = patient
        self.answers: list[tuple[float, int]] = []
        self._url = url
        self._stop = threading.Event()
        self._more = threading.Condition()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Wait for so many more answers."""
        with self._more:
            wanted = len(self.answers) + more
            assert self._more.wait_for(lambda: len(self.answers) >= wanted, 180)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status in self.answers)

    def _ask(self) -> None:
        with httpx2.Client(timeout=30) as client:
            while not self._stop.is_set():
                asked = time.monotonic()
                try:
                    answer = client.post(f"{self._url}/v1/predict", content=PHOTO)
                    while self._patient and (pause := overloaded_ms(answer)) is not None:
                        self._stop.wait(pause / 1000)
                        answer = client.post(f"{self._url}/v1/predict", content=PHOTO)
                    status = answer.status_code
                except httpx2.TransportError:
                    status = 0
                with self._more:
                    self.answers.append((asked, status))
                    self._more.notify_all()


def test_each_restarted_in_turn_under_load_no_request_fails(tmp_path: Path) -> None:
    pair = Replica(), Replica()
    with balanced(tmp_path, *pair) as nginx, Load(nginx.url) as load:
        load.wait_for(50)
        for replica in pair:
            assert replica.server.stop(signal.SIGTERM) == 0
            load.wait_for(50)
            replica.start()
            replica.server.wait_for("request")  # nginx has found it again
            load.wait_for(50)
    print(f"rolling restart of 2: {load.statuses.total()} requests, {dict(load.statuses)}")
    assert load.statuses.keys() == {200}


def test_one_killed_under_load_the_service_is_whole_within_a_second(tmp_path: Path) -> None:
    pair = Replica(), Replica()
    with balanced(tmp_path, *pair) as nginx, Load(nginx.url) as load:
        load.wait_for(50)
        killed = time.monotonic()
        pair[0].server.stop(signal.SIGKILL)
        while not any(asked > killed + 1 for asked, _ in list(load.answers)):
            load.wait_for(1)
        pair[0].start()
        pair[0].server.wait_for("request")
        load.wait_for(50)
    failed = [(asked - killed, status) for asked, status in load.answers if status != 200]
    print(f"one of 2 killed: {load.statuses.total()} requests, {dict(load.statuses)}, failed {failed}")
    assert len(failed) <= 8  # what it may have held: a request a client
    assert not [since for since, _ in failed if since > 1]


def test_a_refusal_is_not_tried_elsewhere(tmp_path: Path) -> None:
    pair = tuple(Replica("--max-inflight-bytes", "1") for _ in range(2))
    with balanced(tmp_path, *pair) as nginx:
        refused = httpx2.post(f"{nginx.url}/v1/predict", content=PHOTO)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"]
        for replica in pair:
            replica.server.stop()  # all is logged by then
    lines = [line for replica in pair for line in replica.server.log if line["event"] == "request"]
    assert [line["status"] for line in lines] == [503]


def test_under_a_prefix_the_page_the_docs_and_the_api_work(tmp_path: Path) -> None:
    pair = tuple(Replica(TOPK_ROOT_PATH="/vision") for _ in range(2))
    with balanced(tmp_path, *pair) as nginx, httpx2.Client(base_url=nginx.url, follow_redirects=True) as client:
        page = client.get("/vision")
        assert page.url.path == "/vision/"
        assert 'src="web/app.js"' in page.text
        for path in ("web/app.js", "web/style.css", "docs", "docs-assets/swagger-ui-bundle.js", "openapi.json"):
            assert client.get(f"/vision/{path}").status_code == 200
        assert client.get("/vision/openapi.json").json()["servers"] == [{"url": "/vision"}]
        answer = client.post("/vision/v1/predict", content=PHOTO)
        assert answer.json()["predictions"][0]["wnid"] == "n02124075"


@pytest.mark.shared
def test_a_slow_replica_gets_less(tmp_path: Path) -> None:
    slow = Replica(
        *("--model", "resnet50", "--weights", str(RESNET50)),
        *("--engine", "torch", "--precision", "float32"),
    )
    fast = Replica()
    with balanced(tmp_path, fast, slow) as nginx, Load(nginx.url, patient=True) as load:
        load.wait_for(200)
    print(f"fast {fast.served}, slow {slow.served}")
    assert 0 < slow.served < fast.served / 2
    assert load.statuses.keys() == {200}


def test_who_uploads_a_byte_a_second_starves_nobody(tmp_path: Path) -> None:
    pair = Replica(), Replica()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: topk\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode()
    with balanced(tmp_path, *pair) as nginx, ExitStack() as stack:
        port = int(nginx.url.rsplit(":", 1)[1])
        tricklers = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(500)]
        for trickler in tricklers:
            trickler.sendall(head)
        over = threading.Event()

        def trickle() -> None:
            for i in itertools.takewhile(lambda _: not over.wait(1), itertools.count()):
                for trickler in tricklers:
                    trickler.sendall(PHOTO[i : i + 1])

        thread = threading.Thread(target=trickle)
        thread.start()
        begun = time.monotonic()
        with Load(nginx.url, clients=4) as load:
            while time.monotonic() < begun + TRICKLE_S:
                load.wait_for(1)
                assert [replica.server.metric("topk_inflight_bytes") < 8 * len(PHOTO) for replica in pair] == [True] * 2
        over.set()
        thread.join()
        print(f"beside 500 slow uploads for {TRICKLE_S} s: {dict(load.statuses)}")
        assert load.statuses.keys() == {200}
        for trickler in tricklers:
            trickler.setblocking(False)
            with pytest.raises(BlockingIOError):  # waited for as well: a byte a second is slow, not idle
                trickler.recv(1)


def test_ids_and_addresses_pass_through_and_only_the_proxy_is_believed(tmp_path: Path) -> None:
    pair = Replica(), Replica()
    with balanced(tmp_path, *pair) as nginx:
        given = {"X-Request-ID": "through-nginx", "X-Forwarded-For": "203.0.113.9"}
        with httpx2.Client(transport=httpx2.HTTPTransport(local_address="127.0.0.2")) as client:
            answer = client.post(f"{nginx.url}/v1/predict", content=PHOTO, headers=given)
            assert answer.headers["x-request-id"] == "through-nginx"
            direct = client.post(
                f"http://127.0.0.1:{pair[0].port}/v1/predict", content=PHOTO, headers=given | {"X-Request-ID": "direct"}
            )
            assert direct.status_code == 200
        for replica in pair:
            replica.server.stop()  # all is logged by then
        lines = [line for replica in pair for line in replica.server.log if line["event"] == "request"]
        clients = {line["request_id"]: line["client"] for line in lines}
        assert clients == {"through-nginx": "127.0.0.2", "direct": "127.0.0.2"}
    assert '"request_id":"through-nginx","client":"127.0.0.2"' in nginx.log


def hang_up(nginx: Nginx, count: int, **headers: str) -> None:
    """So many clients, each with an address of its own, that wait for a second and leave."""

    def leave(number: int) -> None:
        transport = httpx2.HTTPTransport(local_address=f"127.0.0.{number + 2}")
        with httpx2.Client(transport=transport) as client, pytest.raises(httpx2.ReadTimeout):
            client.post(f"{nginx.url}/v1/predict", content=PHOTO, headers=headers, timeout=httpx2.Timeout(30, read=1.0))

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(leave, range(count)))


def test_clients_that_hang_up_lower_the_patience(tmp_path: Path) -> None:
    topk = Workers()
    with balanced(tmp_path, topk, topk) as nginx:
        assert topk.server.metric("topk_patience_seconds") == math.inf
        with topk.stalled():
            hang_up(nginx, 8)
            wait_until(lambda: topk.requests(499) == 8)
        wait_until(lambda: topk.server.metric("topk_patience_seconds") < math.inf)


def test_hang_ups_that_nginx_hides_do_not_and_a_stated_deadline_limits_the_wait(tmp_path: Path) -> None:
    topk = Workers()
    with balanced(tmp_path, topk, topk, directives="proxy_ignore_client_abort on;") as nginx:
        with topk.stalled():
            hang_up(nginx, 8)
            hang_up(nginx, 1, **{"X-Request-Timeout-Ms": "1500"})
            wait_until(lambda: topk.requests(504) == 1)  # although nothing was answered yet
            assert topk.requests(200) == topk.requests(499) == 0
        wait_until(lambda: topk.requests(200) == 8)
        assert topk.server.metric("topk_patience_seconds") == math.inf
