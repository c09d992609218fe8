"""Traces as a collector gets them: a receiver of OTLP over HTTP in this process, behind a real socket."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.errors import ModelError
from app.main import create_app
from app.settings import Settings
from app.telemetry.tracing import Traces
from tests import tiny
from tests.api.wire import Wire, multipart
from tests.conftest import CAT, REPOSITORY, Server, environment, slow

PHOTO = CAT.read_bytes()
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"upload", "decode", "queue", "inference"}
MODEL = tiny.model()
EMBEDDED = ("--model", "efficientnet_lite0")


class Collector(ThreadingHTTPServer):
    """Keeps every span it is sent, and answers with ``status``; where ``silent`` is set, it does not answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.status = 200
        self.silent = threading.Event()
        self.over = threading.Event()
        self.asked = threading.Event()
        self.resources: list[dict[str, str]] = []
        self.spans: list[Span] = []
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    @property
    def variables(self) -> dict[str, str]:
        """What leads a server's spans here, at once."""
        return {
            "TOPK_TRACES": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def take(self, request: ExportTraceServiceRequest) -> None:
        with self._came:
            for spans in request.resource_spans:
                self.resources.append({a.key: a.value.string_value for a in spans.resource.attributes})
                for scope in spans.scope_spans:
                    self.spans += scope.spans
            self._came.notify_all()

    def request(self, request_id: str) -> Span:
        """The span of this request, waited for."""

        def find() -> Span | None:
            return next((s for s in self.spans if attributes(s).get("topk.request_id") == request_id), None)

        with self._came:
            span = self._came.wait_for(find, 30)
        assert span, f"no span of {request_id}"
        return span

    def below(self, parent: Span) -> dict[str, Span]:
        """The spans below it by name; they were sent no later than it."""
        children = [span for span in self.spans if span.parent_span_id == parent.span_id]
        assert {span.trace_id for span in children} <= {parent.trace_id}
        return {span.name: span for span in children}

    def seconds_below(self, parent: Span, name: str) -> float:
        """The sum of the spans of this name below it."""
        spans = [span for span in self.spans if span.parent_span_id == parent.span_id and span.name == name]
        return sum(span.end_time_unix_nano - span.start_time_unix_nano for span in spans) / 1e9

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.set()
        if self.server.silent.is_set():
            self.server.over.wait(60)
            return
        assert self.path == "/v1/traces"
        if self.server.status == 200:
            self.server.take(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module", params=["one process", slow("workers")])
def server(request: pytest.FixtureRequest, collector: Collector) -> Iterator[Server]:
    workers = ("--workers", "2") if request.param == "workers" else ()
    server = Server(*EMBEDDED, *workers, env=collector.variables)
    yield server
    assert server.stop() == 0


def traced(server: Server, path: str = "/v1/predict", content: bytes = PHOTO, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{server.url}{path}", content=content, headers=headers, timeout=60)


def span_of(answer: httpx2.Response, collector: Collector) -> Span:
    return collector.request(answer.headers["x-request-id"])


def test_a_request_is_a_span_named_by_its_route_with_a_span_a_stage(server: Server, collector: Collector) -> None:
    answer = traced(server)
    assert answer.status_code == 200
    span = span_of(answer, collector)
    assert (span.name, span.kind, span.status.code) == (
        "POST /v1/predict",
        Span.SPAN_KIND_SERVER,
        Status.STATUS_CODE_UNSET,
    )
    known = attributes(span)
    assert known["http.request.method"] == "POST"
    assert (known["http.route"], known["url.path"]) == ("/v1/predict", "/v1/predict")
    assert known["http.response.status_code"] == 200
    assert known["http.request.body.size"] == len(PHOTO)
    assert known["topk.images"] == known["topk.batch_size"] == 1
    assert "topk.error_code" not in known
    assert set(collector.below(span)) == STAGES


def test_stages_lie_within_their_request_in_their_order(server: Server, collector: Collector) -> None:
    span = span_of(traced(server), collector)
    stages = collector.below(span)
    for stage in stages.values():
        assert span.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= span.end_time_unix_nano
    order = sorted(stages, key=lambda name: stages[name].end_time_unix_nano)
    ahead = httpx2.get(f"{server.url}/v1/info").json()["decode"]["ahead_of_queue"]
    middle = ["decode", "queue"] if ahead else ["queue", "decode"]
    assert order == ["upload", *middle, "inference"]
    for before, after in pairwise(order):  # to within what rounding makes of them
        assert stages[before].end_time_unix_nano <= stages[after].start_time_unix_nano + 1_000


def test_stages_take_as_long_as_in_server_timing(server: Server, collector: Collector) -> None:
    answer = traced(server)
    durations = dict(entry.split(";dur=") for entry in answer.headers["server-timing"].split(", ") if ";dur=" in entry)
    span = span_of(answer, collector)
    for name in collector.below(span):
        assert collector.seconds_below(span, name) * 1000 == pytest.approx(float(durations[name]), abs=0.01)


def test_the_trace_of_the_caller_is_continued(server: Server, collector: Collector) -> None:
    answer = traced(server, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=opaque")
    span = span_of(answer, collector)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=opaque"
    line = server.wait_for("request", request_id=answer.headers["x-request-id"])
    assert line["trace_id"] == TRACE


def test_a_caller_that_does_not_sample_has_no_span_but_its_trace_in_the_log(
    server: Server, collector: Collector
) -> None:
    with httpx2.Client(base_url=server.url, timeout=60) as client:  # one connection: the same process answers
        unsampled = client.post("/v1/predict", content=PHOTO, headers={"traceparent": f"00-{'1' * 32}-{PARENT}-00"})
        line = server.wait_for("request", request_id=unsampled.headers["x-request-id"])
        assert line["trace_id"] == "1" * 32
        span_of(client.post("/v1/predict", content=PHOTO), collector)  # what was exported before it is here by now
    assert "1" * 32 not in {span.trace_id.hex() for span in collector.spans}


@pytest.mark.parametrize(
    "parent", ["", "00-zz-zz-01", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "x" * 9000]
)
def test_a_broken_parent_begins_a_trace_of_its_own(server: Server, collector: Collector, parent: str) -> None:
    answer = traced(server, traceparent=parent)
    assert answer.status_code == 200
    span = span_of(answer, collector)
    assert not span.parent_span_id
    assert span.trace_id.hex() != TRACE


def test_a_refused_image_has_its_code_and_is_no_failure_of_the_server(server: Server, collector: Collector) -> None:
    span = span_of(traced(server, content=b"no image at all"), collector)
    known = attributes(span)
    assert (known["http.response.status_code"], known["topk.error_code"]) == (415, "unsupported_media_type")
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert set(collector.below(span)) == {"upload"}


def test_what_the_server_failed_to_do_is_an_error_with_its_code(server: Server, collector: Collector) -> None:
    assert traced(server).status_code == 200  # a service that was idle for long would try 1 ms
    span = span_of(traced(server, **{"X-Request-Timeout-Ms": "1"}), collector)
    known = attributes(span)
    assert (known["http.response.status_code"], known["topk.error_code"]) == (503, "overloaded")
    assert span.status.code == Status.STATUS_CODE_ERROR


def test_what_no_route_serves_has_no_name_of_its_own(server: Server, collector: Collector) -> None:
    span = span_of(traced(server, "/some/random/path"), collector)
    assert (span.name, attributes(span)["topk.error_code"]) == ("POST", "not_found")


def test_several_images_share_the_spans_of_their_stages(server: Server, collector: Collector) -> None:
    kind, body = multipart(("file", "a.jpg", PHOTO), ("file", "b.txt", b"no image"), ("file", "c.jpg", PHOTO))
    span = span_of(traced(server, "/v1/predict/batch", body, **{"Content-Type": kind}), collector)
    assert (span.name, attributes(span)["topk.images"]) == ("POST /v1/predict/batch", 3)
    assert set(collector.below(span)) == STAGES


def test_a_disconnected_client_has_a_span_too(server: Server, collector: Collector) -> None:
    with Wire(server.port) as wire:
        wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "X-Request-ID: gone", "Content-Type: image/jpeg")
        wire.send(PHOTO[:100])
    span = collector.request("gone")
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert "http.response.status_code" not in attributes(span)


def test_the_service_names_itself(server: Server, collector: Collector) -> None:
    span_of(traced(server), collector)
    assert {resource["service.name"] for resource in collector.resources} == {"topk"}


def test_probes_have_no_span(server: Server, collector: Collector) -> None:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for path in ("/livez", "/readyz", "/healthz", "/metrics"):
            assert client.get(path, headers={"X-Request-ID": "probe"}).status_code == 200
        span_of(client.post("/v1/predict", content=PHOTO), collector)
    assert "probe" not in {attributes(span).get("topk.request_id") for span in collector.spans}


@pytest.mark.slow
def test_the_prefix_of_a_proxy_is_in_the_path_and_not_in_the_name(collector: Collector) -> None:
    server = Server(*MODEL, "--root-path", "/vision", env=collector.variables)
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        client.get("/readyz", headers={"X-Request-ID": "prefixed-probe"})
        answer = client.post("/v1/predict", content=PHOTO)
    span = span_of(answer, collector)
    assert (span.name, attributes(span)["url.path"]) == ("POST /v1/predict", "/vision/v1/predict")
    assert "prefixed-probe" not in {attributes(span).get("topk.request_id") for span in collector.spans}
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_is_not_sent_yet_is_sent_at_the_end(workers: str) -> None:
    with collecting() as collector:
        variables = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_SERVICE_NAME": "vision"}
        server = Server(*MODEL, "--workers", workers, env=collector.variables | variables)
        answers = [traced(server) for _ in range(3)]
        assert not collector.asked.is_set()
        assert server.stop() == 0
        for answer in answers:
            assert set(collector.below(span_of(answer, collector))) == STAGES
        assert {resource["service.name"] for resource in collector.resources} == {"vision"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "failing", "silent"])
def test_a_collector_that_takes_nothing_disturbs_nobody(how: str) -> None:
    with collecting() as collector:
        collector.status = 503
        if how == "silent":
            collector.silent.set()
        if how == "gone":
            collector.close()
        server = Server(*MODEL, env=collector.variables)
        assert traced(server).status_code == 200
        if how != "gone":
            assert collector.asked.wait(30)
        answers = [traced(server) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        assert server.stop() == 0
        assert "Traceback" not in str(server.log)


@pytest.mark.slow
def test_the_end_does_not_wait_for_a_collector_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        collector.silent.set()
        for name, value in (collector.variables | {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}).items():
            monkeypatch.setenv(name, value)
        traces = Traces(exclude=lambda _: False)
        provider = traces.of_requests["tracer_provider"]
        assert provider
        provider.get_tracer("test").start_span("held").end()
        assert collector.asked.wait(30)
        traces.close()
        [flushing] = [thread for thread in threading.enumerate() if thread.name == "topk-traces"]
        assert flushing.is_alive()  # it is left behind
        collector.over.set()


def test_without_the_extra_the_error_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "app.telemetry.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ModelError, match=r"^traces need the extra otel: pip install '\.\[otel\]'$"):
        create_app(Settings(traces=True, _env_file=None))


def test_an_invalid_variable_stops_the_start_with_exit_code_1() -> None:
    server = Server(*MODEL, env={"TOPK_TRACES": "true", "OTEL_BSP_MAX_QUEUE_SIZE": "0"})
    assert server.process.wait(60) == 1
    server.stop()
    assert "a variable OTEL_* is invalid" in str(server.log)
    assert "Traceback" not in str(server.log)


def test_where_traces_are_not_asked_for_nothing_is_imported() -> None:
    code = "import sys, app.server.serving; from app.main import create_app; create_app(); print(sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "app.main" in ran.stdout, ran.stderr
    for module in ("opentelemetry.sdk", "opentelemetry.exporter", "app.telemetry.tracing"):
        assert f"'{module}" not in ran.stdout


@pytest.mark.slow
def test_where_traces_are_not_asked_for_nothing_is_sent_whatever_else_is_set() -> None:
    with collecting() as collector:
        variables = collector.variables | {"TOPK_TRACES": "false", "FASTAPI_OTEL_AUTO_CONFIGURE": "true"}
        server = Server(*MODEL, env=variables)
        answer = traced(server, traceparent=f"00-{TRACE}-{PARENT}-01")
        assert "trace_id" not in server.wait_for("request", request_id=answer.headers["x-request-id"])
        assert server.stop() == 0
        assert not collector.asked.is_set()
