"""How a service of several processes ends, and what it says where it cannot begin."""

import contextlib
import signal
from collections.abc import Callable

import httpx2
import psutil
import pytest

from tests.api.wire import Wire
from tests.workers.conftest import PHOTO, Service, wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., Service]


def test_sigterm_with_50_requests_in_flight_answers_all_of_them(start: Start) -> None:
    service = start()
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(service.port)) for _ in range(50)]
        for wire in wires:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO[:-1])
        wait_until(lambda: service.metric("topk_inflight_bytes") == 50 * (len(PHOTO) - 1))
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("draining")
        for wire in wires:
            wire.send(PHOTO[-1:])
        assert [wire.status() for wire in wires] == [200] * 50
    assert service.stop() == 0


def test_while_draining_every_process_is_unready_and_serves(start: Start) -> None:
    service = start(env={"TOPK_DRAIN_DELAY_MS": "8000"})
    service.wait_for("ready")
    service.process.send_signal(signal.SIGTERM)
    service.wait_for("draining")
    assert {httpx2.get(f"{service.url}/readyz").status_code for _ in range(4)} == {503}
    assert {service.predict().status_code for _ in range(4)} == {200}
    assert service.process.wait(30) == 0
    assert service.stop() == 0
    assert len([line for line in service.log if line["event"] in ("ready", "draining")]) == 2


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGHUP])
def test_a_terminal_s_signal_that_reaches_all_processes_ends_with_zero(start: Start, sig: signal.Signals) -> None:
    service = start()
    service.wait_for("ready")
    for child in service.children():
        child.send_signal(sig)
    assert service.stop(sig) == 0
    assert "Traceback" not in str(service.log)


def test_ctrl_c_while_loading_ends_at_once(start: Start) -> None:
    service = start("--model", "efficientnet_lite0")
    wait_until(lambda: service.children("engine"))
    assert service.stop(signal.SIGINT) in (0, 130)  # 130 while it is still being imported
    assert "Traceback" not in str(service.log)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nonesuch"], "no model 'nonesuch'"),
        (["--api-keys-file", "nowhere"], "cannot read the API keys"),
        (["--workers", "-1"], "--workers: '-1' is too small; the minimum is 0"),
    ],
)
def test_what_cannot_be_served_is_said_plainly_with_exit_code_1(start: Start, options: list[str], words: str) -> None:
    service = start(*options)
    assert service.process.wait(60) == 1
    service.stop()
    said = " ".join(str(line["event"]) for line in service.log)
    assert words in said
    assert "Traceback" not in said


def test_a_second_ctrl_c_ends_at_once_and_says_that_work_was_cut_off(start: Start) -> None:
    service = start(env={"TOPK_DRAIN_DELAY_MS": "60000"})
    service.wait_for("ready")
    children = service.children()
    service.process.send_signal(signal.SIGINT)
    service.wait_for("draining")
    assert service.stop(signal.SIGINT) == 130
    assert psutil.wait_procs(children, 10)[1] == []
