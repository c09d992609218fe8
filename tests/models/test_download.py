"""Downloads, against a real server that misbehaves as it is told."""

import contextlib
import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from app.errors import ModelError
from app.models import download
from tests.models.conftest import files_of_at_most

BODY = random.Random(0).randbytes(300_000)
HALF = len(BODY) // 2
NAME = f"resnet0-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"


class Origin(ThreadingHTTPServer):
    """Serves BODY. Each request is answered by the next behaviour; the last one answers all that follow."""

    def __init__(self, *script: "Callable[[Handler], None]") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script)
        self.ranges: list[str | None] = []
        self.half_sent, self.go_on = threading.Event(), threading.Event()
        self.both = threading.Barrier(2)

    def url(self, name: str = NAME) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        script = self.server.script
        (script.pop(0) if len(script) > 1 else script[0])(self)

    def start(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def whole(handler: Handler) -> None:
    have = int((handler.headers["Range"] or "bytes=0-")[len("bytes=") : -1])
    handler.start(206 if have else 200, len(BODY) - have)
    handler.wfile.write(BODY[have:])


def whole_ignoring_ranges(handler: Handler) -> None:
    handler.start(200, len(BODY))
    handler.wfile.write(BODY)


def half(handler: Handler) -> None:
    handler.start(200, len(BODY))
    handler.wfile.write(BODY[:HALF])


def half_then_gone(handler: Handler) -> None:
    handler.server.shutdown()
    handler.server.server_close()
    half(handler)


def paused_at_half(handler: Handler) -> None:
    half(handler)
    handler.server.half_sent.set()
    handler.server.go_on.wait()
    handler.wfile.write(BODY[HALF:])


def silent(handler: Handler) -> None:
    handler.server.go_on.wait()


def both_at_once(handler: Handler) -> None:
    handler.server.both.wait(30)
    whole(handler)


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.start(code, 0)


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty, and no proxy."""
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@contextlib.contextmanager
def serving(*script: Callable[[Handler], None]) -> Iterator[Origin]:
    with Origin(*script) as origin:
        thread = threading.Thread(target=origin.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield origin
        finally:
            origin.go_on.set()
            origin.shutdown()
            thread.join()


def files(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []


def test_a_download_is_logged_once(checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(whole) as origin, caplog.at_level("INFO", "app.models"):
        url = origin.url()
        assert download.fetch(url) == download.fetch(url)
    assert [record.getMessage() for record in caplog.records] == [
        f"downloading {url}, once on this machine; this usually takes less than a minute"
    ]


def test_a_file_lands_in_the_cache_and_is_not_fetched_again(checkpoints: Path) -> None:
    with serving(whole) as origin:
        assert download.fetch(origin.url()) == download.fetch(origin.url()) == checkpoints / NAME
    assert (checkpoints / NAME).read_bytes() == BODY
    assert files(checkpoints) == [NAME]
    assert origin.ranges == [None]


def test_a_file_is_in_its_place_only_when_it_is_whole(checkpoints: Path) -> None:
    with serving(paused_at_half) as origin, ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(download.fetch, origin.url())
        assert origin.half_sent.wait(30)
        assert download.cached(origin.url()) is None
        origin.go_on.set()
        assert fetching.result(30) == download.cached(origin.url()) == checkpoints / NAME


def test_anyone_may_read_the_file(checkpoints: Path) -> None:
    with serving(whole) as origin:
        assert download.fetch(origin.url()).stat().st_mode & 0o777 == 0o644


def test_an_interrupted_transfer_is_resumed_where_it_broke_off() -> None:
    with serving(half, whole) as origin:
        assert download.fetch(origin.url()).read_bytes() == BODY
    assert origin.ranges == [None, f"bytes={HALF}-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start() -> None:
    with serving(half, whole_ignoring_ranges) as origin:
        assert download.fetch(origin.url()).read_bytes() == BODY


def test_a_transfer_that_never_gets_further_is_given_up(checkpoints: Path) -> None:
    with serving(half) as origin, pytest.raises(ModelError, match=r"no data for 1 s"):
        download.fetch(origin.url(), give_up_s=1)
    assert len(origin.ranges) > 1
    assert files(checkpoints) == []


def test_a_network_lost_midway_is_waited_for(checkpoints: Path) -> None:
    with serving(half_then_gone) as origin, pytest.raises(ModelError, match=r"no data for 2\.5 s .*refused"):
        download.fetch(origin.url(), give_up_s=2.5)  # three refusals take one second
    assert files(checkpoints) == []


def test_a_wrong_hash_leaves_nothing_behind(checkpoints: Path) -> None:
    with serving(whole) as origin, pytest.raises(ModelError, match=r"SHA-256 begins with .*, not 00000000"):
        download.fetch(origin.url("resnet0-00000000.pth"))
    assert files(checkpoints) == []


def test_a_name_without_a_hash_is_taken_as_it_is(checkpoints: Path) -> None:
    with serving(whole) as origin:
        assert download.fetch(origin.url("plain.pth")).read_bytes() == BODY


def test_a_missing_file_fails_at_the_first_request(checkpoints: Path) -> None:
    with serving(status(404)) as origin, pytest.raises(ModelError, match=f"{NAME} cannot be downloaded: .*404"):
        download.fetch(origin.url())
    assert origin.ranges == [None]
    assert files(checkpoints) == []


def test_a_server_error_is_tried_again() -> None:
    with serving(status(500), whole) as origin:
        assert download.fetch(origin.url()).read_bytes() == BODY
    assert origin.ranges == [None, None]


def test_a_redirect_is_followed() -> None:
    def moved(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with serving(moved, whole) as origin:
        assert download.fetch(origin.url()).read_bytes() == BODY


@pytest.mark.parametrize("stall", [silent, paused_at_half])
def test_a_server_that_stalls_is_given_up(stall: Callable[[Handler], None], checkpoints: Path) -> None:
    with serving(stall) as origin, pytest.raises(ModelError, match=r"no data for 0\.3 s \(\w"):
        download.fetch(origin.url(), give_up_s=0.3)
    assert files(checkpoints) == []


def test_without_a_network_there_is_a_clear_error(checkpoints: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ModelError, match="cannot be downloaded: no connection"):
        download.fetch(f"http://127.0.0.1:{port}/{NAME}")
    assert files(checkpoints) == []


@pytest.mark.parametrize("proxy", ["foo://127.0.0.1:1", "http://127.0.0.1:one", "socks5://127.0.0.1:1"])
def test_an_unusable_proxy_is_a_clear_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ModelError, match="cannot be downloaded"):
        download.fetch(f"http://127.0.0.1:1/{NAME}")


def test_two_at_once_end_with_one_good_file(checkpoints: Path) -> None:
    with serving(both_at_once) as origin, ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(download.fetch, [origin.url()] * 2))
    assert paths == [checkpoints / NAME] * 2
    assert files(checkpoints) == [NAME]
    assert paths[0].read_bytes() == BODY
    assert origin.ranges == [None, None]


@pytest.mark.parametrize("folder", ["file", "x" * 300])
def test_a_cache_that_cannot_be_made_is_a_clear_error(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / folder))
    with pytest.raises(ModelError, match="cannot be downloaded"):
        download.fetch(f"http://127.0.0.1:1/{NAME}")


def test_a_full_disk_is_reported_and_nothing_is_left_on_it(checkpoints: Path) -> None:
    with serving(whole) as origin, files_of_at_most(HALF):
        with pytest.raises(ModelError, match=r"cannot be downloaded: .*too large"):
            download.fetch(origin.url())
        assert files(checkpoints) == []


def test_nothing_is_drawn_where_no_terminal_is(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(whole) as origin:
        download.fetch(origin.url())
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize(
    "environment",
    [
        {"TORCH_HOME": "/somewhere/else"},
        {"TORCH_HOME": "~/weights"},
        {"TORCH_HOME": "~nobody-of-this-name/weights"},
        {"XDG_CACHE_HOME": "/var/cache"},
        {},
    ],
)
def test_torch_agrees_about_the_folder(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(download.cache_folder()) == os.path.join(torch.hub.get_dir(), "checkpoints")
