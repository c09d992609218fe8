"""The process: how it starts, what it says, how it drains and ends."""

import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest
import torch
import torchvision

from app.main import create_app
from app.readiness import Readiness
from app.server import serving as listening
from app.settings import Settings
from tests import tiny
from tests.api.wire import Wire
from tests.conftest import CAT, REPOSITORY, RESNET50, Server, slow
from tests.workers.conftest import wait_until

PHOTO = CAT.read_bytes()
MODEL = tiny.model()
EMBEDDED = ("--model", "efficientnet_lite0")


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def test_ready_is_logged_with_model_device_address_and_a_curl(embedded_server: Server) -> None:
    ready = embedded_server.wait_for("ready")
    assert (ready["model"], ready["device"]) == ("efficientnet_lite0", "cpu")
    assert ready["address"] == embedded_server.url
    assert ready["try_it"] == f"curl -F file=@docs/cat.jpg {embedded_server.url}/v1/predict"


def test_the_curl_has_a_place_for_the_key_where_one_is_asked_for(keyed_server: Server) -> None:
    curl = f"curl -H 'X-API-Key: YOUR_KEY' -F file=@docs/cat.jpg {keyed_server.url}/v1/predict"
    assert keyed_server.wait_for("ready")["try_it"] == curl


def test_a_request_is_one_line_of_json_without_its_bytes(embedded_server: Server) -> None:
    answer = httpx2.post(f"{embedded_server.url}/v1/predict", content=PHOTO, headers={"X-Request-ID": "one-line"})
    assert answer.status_code == 200
    line = embedded_server.wait_for("request", request_id="one-line")
    assert (line["status"], line["bytes"], line["images"], line["path"]) == (200, len(PHOTO), 1, "/v1/predict")
    assert len([entry for entry in embedded_server.log if entry.get("request_id") == "one-line"]) == 1


def test_a_broken_form_is_one_line_in_the_log(embedded_server: Server) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n1\r\n--x--\r\nwhat comes after it'
    headers = {"Content-Type": "multipart/form-data; boundary=x", "X-Request-ID": "broken-form"}
    before = len(embedded_server.log)
    for content in (b"no boundary", form):
        httpx2.post(f"{embedded_server.url}/v1/predict", content=content, headers=headers)
        embedded_server.wait_for("request", request_id="broken-form")
    assert {str(entry["event"]) for entry in embedded_server.log[before:]} == {"request"}


def test_sigterm_with_50_requests_in_flight_answers_all_of_them() -> None:
    server = Server(*MODEL)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.port)) for _ in range(50)]
        for wire in wires:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO[:-1])
        wait_until(lambda: server.metric("topk_inflight_bytes") == 50 * (len(PHOTO) - 1))
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        for wire in wires:
            wire.send(PHOTO[-1:])
        assert [wire.status() for wire in wires] == [200] * 50
    assert server.stop() == 0


@pytest.mark.slow
def test_while_draining_late_requests_are_served_with_connection_close() -> None:
    server = Server(*MODEL, env={"TOPK_DRAIN_DELAY_MS": "8000"})
    with Wire(server.port) as idle, httpx2.Client(base_url=server.url) as client:
        assert client.get("/readyz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        unready = client.get("/readyz")
        assert (unready.status_code, unready.json()["code"]) == (503, "not_ready")
        late = httpx2.post(f"{server.url}/v1/predict", content=PHOTO)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        idle.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
        idle.send(PHOTO)
        assert idle.status() == 200
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        port = server.port
        assert server.process.wait(30) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    server.stop()


def test_ctrl_c_ends_with_zero_and_no_trace() -> None:
    server = Server(*MODEL)
    server.wait_for("ready")
    assert server.stop(signal.SIGINT) == 0
    assert not [entry for entry in server.log if "Traceback" in str(entry) or "KeyboardInterrupt" in str(entry)]


@pytest.mark.slow
def test_a_closed_terminal_ends_it_as_sigterm_does() -> None:
    server = Server(*MODEL)
    server.wait_for("ready")
    assert server.stop(signal.SIGHUP) == 0
    assert [entry["event"] for entry in server.log[-2:]] == ["draining", "stopped"]


@pytest.mark.slow
@pytest.mark.parametrize(("origins", "warned"), [("https://page.example,null", True), ("*", False)])
def test_null_among_the_origins_is_warned_of(origins: str, warned: bool) -> None:
    server = Server(*MODEL, "--cors-origins", origins)
    server.wait_for("ready")
    assert server.stop() == 0
    warnings = [str(entry["event"]) for entry in server.log if entry.get("level") == "warning"]
    assert any(event.startswith("TOPK_CORS_ORIGINS contains null") for event in warnings) == warned


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_under_nohup_a_closed_terminal_ends_nothing(workers: str) -> None:
    nohup = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    server = Server(*MODEL, "--workers", workers, under=nohup)
    server.wait_for("ready")
    server.process.send_signal(signal.SIGHUP)
    assert httpx2.get(f"{server.url}/readyz").status_code == 200
    assert server.stop() == 0


@pytest.mark.parametrize("sig", [slow(signal.SIGINT), signal.SIGTERM])
def test_a_signal_while_loading_ends_at_once(sig: signal.Signals) -> None:
    server = Server(*MODEL)
    server.wait_for("loading")
    assert server.stop(sig) == 0
    assert server.log[-1]["event"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sig", "workers"),
    [(signal.SIGINT, "0"), (signal.SIGTERM, "0"), (signal.SIGHUP, "0"), (signal.SIGTERM, "1")],
)
def test_a_signal_to_all_processes_while_converting_ends_at_once_and_leaves_nothing(
    sig: signal.Signals, workers: str, tmp_path: Path
) -> None:
    server = Server(*EMBEDDED, "--workers", workers, env={"TOPK_CACHE_DIR": str(tmp_path)})
    server.wait_for("converting the model, once on this machine")
    while not (converting := [child for child in children(server) if "conversion" in " ".join(child.cmdline())]):
        pass
    for child in children(server):
        child.send_signal(sig)
    assert server.stop(sig) == 0
    assert [entry for entry in server.log if entry.get("level") != "info"] == []
    assert psutil.wait_procs(converting, 30)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_until_the_model_is_warm_the_service_is_not_ready() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    server = Server("--port", str(port), *EMBEDDED)
    wait_until(lambda: listens(port))
    answer = httpx2.post(f"http://127.0.0.1:{port}/v1/predict", content=PHOTO)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert httpx2.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    assert httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
    server.wait_for("ready")
    assert httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_nobody_may_connect_before_it_is_ready_where_so_set(workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = Server("--port", str(port), "--workers", workers, "--no-listen-early", *MODEL)
    wait_until(lambda: listens(port))
    assert httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    assert server.stop() == 0


def test_ready_is_logged_once_requests_are_accepted() -> None:
    settings = Settings(model=MODEL[1], host="127.0.0.1", port=0, listen_early=False, _env_file=None)
    refused: list[bool] = []

    def ask() -> None:
        with socket.socket() as client:
            refused.append(client.connect_ex(listener.getsockname()) != 0)
        server.stop()

    listener = listening.bind(settings.host, settings.port)
    readiness = Readiness(on_ready=ask)
    server = listening.Server(listening.config(create_app(settings, readiness), settings), readiness, 0)
    server.run([listener])
    assert refused == [False]


def test_a_signal_before_it_listens_ends_at_once() -> None:
    server = Server("--no-listen-early", *MODEL)
    server.wait_for("loading")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        slow(["--model", "nonesuch"], "no model 'nonesuch'"),
        slow(["--weights", "nowhere.safetensors"], "weights need the architecture"),
        slow(["--model", "resnet50", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        slow(["--model", "resnet50:IMAGENET1K_V9"], "has no weights 'IMAGENET1K_V9'"),
        slow([*MODEL, "--device", "cuda:99"], "device cuda:99 is not available"),
        ([*MODEL, "--port", "70000"], "--port: '70000' is too large; the maximum is 65535"),
        ([*MODEL, "--api-keys-file", "nowhere"], "cannot read the API keys"),
    ],
)
def test_what_cannot_be_served_is_one_error_with_exit_code_1(options: list[str], words: str) -> None:
    server = Server(*options)
    assert server.process.wait(60) == 1
    server.stop()
    logged = " ".join(str(entry["event"]) for entry in server.log)
    assert words in logged
    assert "Traceback" not in logged


def test_a_port_in_use_is_reported_at_once(embedded_server: Server) -> None:
    taken = embedded_server.port
    second = Server("--port", str(taken), *MODEL)
    assert second.process.wait(60) == 1
    second.stop()
    assert any(f"cannot listen on 127.0.0.1:{taken}" in str(entry["event"]) for entry in second.log)


def test_the_port_comes_from_the_first_of_its_names() -> None:
    script = "from app.settings import Settings; print(Settings(_env_file=None).port)"
    names = {"PORT": "9003", "AIP_HTTP_PORT": "9002", "TOPK_PORT": "9001"}
    for name in ("TOPK_PORT", "AIP_HTTP_PORT", "PORT"):
        got = subprocess.run([sys.executable, "-c", script], env=names, cwd=REPOSITORY, capture_output=True, text=True)
        assert got.stdout.strip() == names.pop(name)


@pytest.mark.slow
def test_api_keys_are_never_logged(tmp_path: object) -> None:
    server = Server(*MODEL, "--log-level", "debug", env={"TOPK_API_KEYS": "hush-hush"})
    assert httpx2.get(f"{server.url}/v1/info", headers={"X-API-Key": "hush-hush"}).status_code == 200
    assert server.stop() == 0
    assert "hush" not in str(server.log)


@pytest.mark.shared
def test_memory_stays_where_it_is_over_a_thousand_requests(resnet_server: Server) -> None:
    process = psutil.Process(resnet_server.process.pid)
    with httpx2.Client(base_url=resnet_server.url, timeout=60) as client:

        def run(count: int) -> None:
            for _ in range(count):
                assert client.post("/v1/predict", content=b"no image at all").status_code == 415
                assert client.post("/v1/predict", content=b"\xff\xd8\xff" + PHOTO[3:2000]).status_code == 422

        run(100)
        before = process.memory_info().rss
        run(500)
    assert RESNET50.is_file()
    assert process.memory_info().rss < before * 1.05


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_logs_that_requests_were_cut_off() -> None:
    server = Server(*MODEL, env={"TOPK_DRAIN_DELAY_MS": "60000"})
    with Wire(server.port) as wire:
        wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
        wire.send(PHOTO[:-1])
        wait_until(lambda: server.metric("topk_inflight_bytes") == len(PHOTO) - 1)
        server.process.send_signal(signal.SIGINT)
        server.wait_for("draining")
        assert server.stop(signal.SIGINT) == 130
    assert "Traceback" not in str(server.log)


@pytest.mark.slow
def test_weights_that_compute_no_numbers_are_refused_at_start(tmp_path: Path) -> None:
    network = torchvision.models.resnet18()
    torch.nn.init.constant_(network.fc.weight, float("nan"))
    torch.save(network.state_dict(), tmp_path / "nan.pth")
    server = Server("--model", "resnet18", "--weights", str(tmp_path / "nan.pth"))
    assert server.process.wait(60) == 1
    server.stop()
    assert "no finite scores" in str(server.log)


def test_clients_that_leave_leave_no_trace_in_the_log(embedded_server: Server) -> None:
    left = embedded_server.metric("topk_images_total", outcome="abandoned")
    for _ in range(20):  # a client that leaves before its request starts, or after its answer, is not counted
        for _ in range(20):
            with Wire(embedded_server.port) as wire:
                wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
                wire.send(PHOTO)
        wait_until(
            lambda: not any(embedded_server.metric(f"topk_{held}") for held in ("queue_images", "inflight_bytes"))
        )
        if embedded_server.metric("topk_images_total", outcome="abandoned") > left:
            break
    assert embedded_server.metric("topk_images_total", outcome="abandoned") > left
    assert not [line for line in embedded_server.log if line.get("level") == "error"]
