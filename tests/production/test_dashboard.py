"""The dashboard's every query, asked of a real Prometheus that scrapes two real services under mixed load.

``TOPK_DASHBOARD_PNG`` names a file for the picture of what the queries answered.
"""

import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from app.models import cache
from tests import tiny
from tests.api.wire import Wire, multipart
from tests.conftest import CAT, REPOSITORY, Server, convert_embedded
from tests.production import picture
from tests.production.photographs import photograph
from tests.workers.conftest import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus is installed"),
]

DEPLOY = REPOSITORY / "deploy"
SHIPPED = DEPLOY / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "topk.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_DCGM = [panel for row in DASHBOARD["panels"] for panel in row.get("panels", [])]
ON_GPUS_ONLY = "topk_device_memory_bytes"
PHOTO = CAT.read_bytes()
CALM_S, CROWDED_S = 6.0, 10.0
STEP_S = 1
WINDOW = "5s"  # what Grafana makes of $__rate_interval with a scrape a second, and one more


class Prometheus:
    """A real one that answers queries, on a port of its own choosing."""

    def __init__(self, config: Path, data: Path) -> None:
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={data}",
                "--web.listen-address=127.0.0.1:0",
                "--log.format=json",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        lines = (json.loads(line) for line in self.process.stderr)
        address = next(line["address"] for line in lines if line.get("msg") == "Listening on")
        assert any(line.get("msg") == "Server is ready to receive web requests." for line in lines)
        self._draining = threading.Thread(target=lambda: list(lines), daemon=True)
        self._draining.start()
        self.client = httpx2.Client(base_url=f"http://{address}", timeout=30)

    def query(self, expression: str, **when: float) -> list[dict[str, Any]]:
        """The series that an expression has: over a range where ``start`` is given, else now."""
        path = "/api/v1/query_range" if "start" in when else "/api/v1/query"
        answer = self.client.post(path, data={"query": expression} | when).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return list(answer["data"]["result"])

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(30)
        self._draining.join(10)
        assert self.process.stderr
        self.process.stderr.close()


def scraping(ports: list[int], path: Path) -> Path:
    """The shipped configuration with these ports for the replicas, a scrape a second, and no rules."""
    config = yaml.safe_load(SHIPPED.read_text())
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    config["global"] |= {"scrape_interval": f"{STEP_S}s", "scrape_timeout": f"{STEP_S}s"}
    del config["rule_files"]
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass(frozen=True)
class Run:
    """Two services that were under load from ``start`` to ``end`` (seconds since 1970), and who watched them."""

    prometheus: Prometheus
    servers: tuple[Server, ...]
    start: float
    end: float

    def filled(self, expression: str) -> str:
        """An expression of the dashboard with its variables' values."""
        replicas = "|".join(f"127.0.0.1:{server.port}" for server in self.servers)
        values = {"$instance": replicas, "$__rate_interval": WINDOW, "$gpu_host": ".*"}
        return re.sub(r"\$\w+", lambda variable: values[variable[0]], expression)

    def ask(self, target: dict[str, Any]) -> list[dict[str, Any]]:
        """What a panel's query has, as Grafana would ask it."""
        over = {} if target.get("instant") else {"start": self.start, "end": self.end, "step": STEP_S}
        return self.prometheus.query(self.filled(target["expr"]), **over)


def answers(server: Server, until: float, ask: Callable[[httpx2.Client], httpx2.Response], pause_s: float) -> set[int]:
    """Ask this again and again until the time has come; the statuses."""
    statuses, waiting = set(), threading.Event()
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        while time.monotonic() < until:
            statuses.add(ask(client).status_code)
            waiting.wait(pause_s)
    return statuses


def abandon(server: Server, until: float) -> set[int]:
    """Send a photograph, and leave before it is answered."""
    waiting = threading.Event()
    while time.monotonic() < until:
        with Wire(server.port) as wire:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO)
            waiting.wait(0.002)  # long enough to be admitted
        waiting.wait(0.2)
    return set()


def mixed(pool: ThreadPoolExecutor, server: Server, until: float, crowd: int) -> list[Any]:
    """Good, bad and abandoned requests, and as many impatient clients as the crowd has."""
    kind, batch = multipart(*[("file", f"{n}.jpg", PHOTO) for n in range(4)])
    asked: list[tuple[Callable[[httpx2.Client], httpx2.Response], float]] = [
        (lambda c: c.post("/v1/predict", content=PHOTO), 0.05),
        (lambda c: c.post("/v1/predict?coverage=0.9", content=photograph(random.randrange(1000))), 0.1),
        (lambda c: c.post("/v1/embed", content=PHOTO), 0.1),
        (lambda c: c.post("/v1/predict/batch", content=batch, headers={"Content-Type": kind}), 0.3),
        (lambda c: c.post("/v1/predict", content=b"no image at all"), 0.2),
        (lambda c: c.post("/v1/predict", content=PHOTO[: len(PHOTO) // 2]), 0.3),
        (lambda c: c.post("/v1/predict?top_k=0", content=PHOTO), 0.5),
        (lambda c: c.get("/"), 0.5),
        (lambda c: c.get("/no/such/path"), 0.5),
    ]
    impatient = {"X-Request-Timeout-Ms": "150"}
    asked += [(lambda c: c.post("/v1/predict", content=PHOTO, headers=impatient), 0.1)] * crowd
    return [pool.submit(answers, server, until, *one) for one in asked] + [pool.submit(abandon, server, until)]


def calibrated(path: Path) -> Path:
    """The embedded model with a calibration whose energies are about those of the photographs."""
    convert_embedded()
    source = cache.converted("efficientnet_lite0", None, Path(os.environ["TOPK_CACHE_DIR"])).openvino
    assert source
    shutil.copytree(source.parent, path)
    tiny.calibrate(path, energy=10.6, spread=0.55)
    return path


def hang_up(service: Service) -> None:
    """A client that states no deadline and loses patience after half a second."""
    with contextlib.suppress(httpx2.ReadTimeout):
        httpx2.post(f"{service.url}/v1/predict", content=PHOTO, timeout=0.5)


def expire(service: Service) -> None:
    """Requests that are accepted while the engine stands still: deadlines pass, and clients hang up."""
    [engine] = service.children("engine")
    engine.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(12) as pool:
            leaving = [pool.submit(hang_up, service) for _ in range(8)]
            statuses = set(
                pool.map(lambda _: service.predict(**{"X-Request-Timeout-Ms": "2000"}).status_code, range(4))
            )
            for future in leaving:
                future.result()
        assert 504 in statuses
    finally:
        engine.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        model = ("--model", str(calibrated(folder / "efficientnet_lite0")))
        samples = {"TOPK_SAMPLE_DIR": str(folder / "samples"), "TOPK_SAMPLE_RATE": "0.1"}
        single, several = Server(*model, env=samples), Service(*model, env=samples)
        servers = (single, several)
        for server in servers:
            stack.callback(server.stop)
        config = scraping([server.port for server in servers], folder / "prometheus.yml")
        prometheus = Prometheus(config, folder / "data")
        stack.callback(prometheus.stop)
        start = time.time()
        with ThreadPoolExecutor(128) as pool:
            for seconds, crowd in ((CALM_S, 0), (CROWDED_S, 24), (CALM_S, 0)):
                until = time.monotonic() + seconds
                done = [future for server in servers for future in mixed(pool, server, until, crowd)]
                statuses = set().union(*(future.result() for future in done))
                assert {200, 400, 404, 415, 422} <= statuses <= {200, 400, 404, 415, 422, 503, 504}
                if not crowd:
                    expire(several)
        yield Run(prometheus, servers, start, time.time())


def numbers(series: dict[str, Any]) -> list[float]:
    points = series["values"] if "values" in series else [series["value"]]
    return [number for _, value in points if math.isfinite(number := float(value))]


TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title} {target['refId']}" for title, target in TARGETS])
def test_a_query_of_the_dashboard_is_answered(run: Run, title: str, target: dict[str, Any]) -> None:
    series = run.ask(target)
    if ON_GPUS_ONLY in target["expr"] and run.servers[0].wait_for("ready")["device"] == "cpu":
        assert not series
        return
    assert any(numbers(one) for one in series)
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        assert all(label in one["metric"] for one in series)


@pytest.mark.parametrize("panel", OF_DCGM, ids=[panel["title"] for panel in OF_DCGM])
def test_a_query_of_gpus_is_understood_where_there_is_none(run: Run, panel: dict[str, Any]) -> None:
    assert [run.ask(target) for target in panel["targets"]] == [[]] * len(panel["targets"])


def test_the_load_ended_in_every_outcome_but_a_defect(run: Run) -> None:
    counted = run.prometheus.query(
        f"sum by (outcome) (max_over_time(topk_images_total[{round(run.end - run.start)}s]))"
    )
    ended = {one["metric"]["outcome"]: float(one["value"][1]) for one in counted}
    assert ended.pop("failed") == 0
    assert all(ended.values()), ended


def test_the_replicas_are_those_of_the_variable(run: Run) -> None:
    found = run.prometheus.client.get("/api/v1/label/instance/values", params={"match[]": "topk_ready"}).json()["data"]
    assert set(found) == {f"127.0.0.1:{server.port}" for server in run.servers}


def test_the_answers_can_be_drawn(run: Run, tmp_path: Path) -> None:
    path = Path(os.environ.get("TOPK_DASHBOARD_PNG", tmp_path / "dashboard.png"))
    drawn = picture.draw(DASHBOARD, run.ask, path)
    assert drawn == len(PANELS)
    assert path.stat().st_size > 50_000


def test_the_shipped_configuration_is_valid(tmp_path: Path) -> None:
    for file in SHIPPED.parent.glob("*.yml"):
        shutil.copy(file, tmp_path)
    checked = subprocess.run(["promtool", "check", "config", tmp_path / SHIPPED.name], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
