"""How long clients wait, learned from those that hang up on any of the HTTP processes."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx2
import pytest

from tests.api.wire import Wire
from tests.workers.conftest import PHOTO, Service, pass_time, stopped, wait_until

CLIENTS = 12
WAITED_S = 0.5


def shown(service: Service) -> set[float | None]:
    """The patience in ``/v1/info``, of any process that answers."""
    return {httpx2.get(f"{service.url}/v1/info", timeout=60).json()["batching"]["patience"] for _ in range(10)}


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_every_process_reports_the_clients_that_hang_up(start: Callable[..., Service], place: int) -> None:
    service = start()
    service.wait_for("ready")
    [engine], http = service.children("engine"), service.children("http")
    assert (shown(service), service.metric("topk_patience_seconds")) == ({None}, math.inf)
    for _ in range(2 * CLIENTS):  # the hang-ups of an address count as far as there are answers to it
        assert service.predict().status_code == 200
    with stopped(http[place]):
        with stopped(engine), ExitStack() as stack:
            sent = time.monotonic()
            for wire in [stack.enter_context(Wire(service.port)) for _ in range(CLIENTS)]:
                wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
                wire.send(PHOTO)
            wait_until(lambda: service.metric("topk_inflight_bytes") == CLIENTS * len(PHOTO))
            pass_time(WAITED_S)
            stack.close()
            wait_until(lambda: service.metric("topk_images_total", outcome="abandoned") == CLIENTS)
        wait_until(lambda: service.metric("topk_patience_seconds") < math.inf)
        most = time.monotonic() - sent
    assert service.predict().status_code == 200  # after which the engine has published its state
    [patience] = shown(service)
    assert patience is not None
    assert 0.9 * WAITED_S < patience <= most
    assert service.metric("topk_patience_seconds") == pytest.approx(patience, abs=0.01)
    assert service.stop() == 0
