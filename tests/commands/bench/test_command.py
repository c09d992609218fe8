"""``topk bench`` against a server whose responses are known, and against topk itself."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.commands.bench import bodies
from tests.commands.bench.server import Known
from tests.commands.runner import topk
from tests.conftest import CAT, REPOSITORY, Server

COMMAND = [sys.executable, "-m", "app", "bench"]
SHORT = ("--warmup", "0.1", "--seconds", "0.6")


@pytest.fixture(scope="module", autouse=True)
def pictures() -> Iterator[None]:
    """Generate the pictures once, not for every command."""
    generated = list(bodies.generated())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "generated", lambda: generated)
        yield


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return topk("bench", *arguments)


def found(*arguments: str) -> dict[str, Any]:
    ran = bench(*arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.mark.slow
def test_a_closed_loop_measures_each_number_of_clients() -> None:
    with Known() as server:
        result = found(server.url, "--clients", "1,3", *SHORT, "--header", "X-A: b", "--api-key", "k")
        headers = server.requests[-1].headers
    assert [point["clients"] for point in result["points"]] == [1, 3]
    for point in result["points"]:
        assert point["statuses"] == {"200": point["requests"]}
        assert point["throughput"] == point["goodput"] == pytest.approx(point["requests"] / point["seconds"], rel=0.01)
        assert "batch_size_mean" not in point
    assert (result["url"], result["mode"], result["server"]) == (f"{server.url}/v1/predict", "closed", None)
    assert result["client"].keys() == {"cpu_ms", "largest_rate", "cpu_share"}
    assert (headers["x-a"], headers["authorization"], headers["content-type"]) == ("b", "Bearer k", "image/jpeg")


@pytest.mark.slow
def test_an_open_loop_offers_its_rate_and_leaves_at_the_slo() -> None:
    with Known(200, "hang") as server:
        result = found(f"{server.url}/classify", "--rate", "60", "--slo-ms", "300", *SHORT, "--multipart")
        assert {request.line for request in server.requests} == {"POST /classify HTTP/1.1"}
        assert server.requests[0].headers["content-type"].startswith("multipart/form-data")
        assert server.left.wait(10)
    [point] = result["points"]
    assert (point["rate"], set(point["statuses"]), set(point["errors"])) == (60.0, {"200"}, {"timeout"})
    assert 0 < point["good"] < point["requests"]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "timeouts"), [(("--slo-ms", "5000"), {"5000"}), ((), {None})])
def test_clients_that_leave_at_a_given_slo_say_so(options: tuple[str, ...], timeouts: set[str | None]) -> None:
    with Known() as server:
        found(server.url, "--rate", "40", *SHORT, *options)
        requests = server.requests[1:]  # the first one checks the server
    assert {request.headers.get("x-request-timeout-ms") for request in requests} == timeouts


@pytest.mark.slow
def test_clients_of_a_closed_loop_state_no_timeout() -> None:
    with Known() as server:
        found(server.url, "--clients", "2", *SHORT, "--slo-ms", "5000")
    assert not any("x-request-timeout-ms" in request.headers for request in server.requests)


@pytest.mark.slow
def test_refusals_are_counted_with_their_latency() -> None:
    with Known(200, "refuse") as server:
        [point] = found(server.url, "--clients", "2", *SHORT)["points"]
    assert set(point["statuses"]) == {"200", "503"}
    assert point["goodput"] < point["requests"] / point["seconds"]
    assert point["refused_p99_ms"] > 0


@pytest.mark.slow
def test_the_mean_batch_is_that_of_the_point() -> None:
    asked: list[None] = []

    def metrics() -> str:
        asked.append(None)
        return f"topk_batch_size_sum {len(asked) * 12}\ntopk_batch_size_count {len(asked) * 3}\n"

    with Known(pages={"/metrics": metrics}) as server:
        [point] = found(server.url, *SHORT)["points"]
    assert point["batch_size_mean"] == 4


@pytest.mark.slow
def test_a_capacity_is_searched_rate_by_rate() -> None:
    with Known("patient") as server:
        options = ("--clients", "2", "--seconds", "0.2", "--warmup", "0", "--slo-ms", "1000")
        result = found(server.url, "--find-capacity", *options)
    assert result["points"][0]["clients"] == 2
    assert {"rate"} <= result["points"][1].keys()
    assert result["capacity"] is None  # all open-loop requests are refused, at any rate


def test_nothing_listening_is_one_plain_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ran = bench(f"127.0.0.1:{port}")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"topk: http://127.0.0.1:{port}/v1/predict cannot be reached: Connection refused\n"


def test_an_unknown_host_is_one_plain_line() -> None:
    ran = bench("nowhere.invalid")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (1, 1)
    assert "cannot be reached: " in ran.stderr
    assert "refused" not in ran.stderr


@pytest.mark.slow
def test_answers_that_refuse_what_is_sent_are_warned_of() -> None:
    with Known(200, 422) as server:
        ran = bench(server.url, "--clients", "1", *SHORT)
    assert ran.returncode == 0
    assert "requests were answered 422" in ran.stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (404, "answered 404 Not Found"),
        (401, "answered 401"),
        ("reset", "closed the connection"),
        ("noise", "does not speak HTTP"),
    ],
)
def test_a_server_that_takes_no_images_is_one_plain_line(answer: int | str, words: str) -> None:
    with Known(answer) as server:
        ran = bench(server.url)
    assert ran.returncode == 1
    assert words in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_ctrl_c_shows_what_was_measured_so_far(tmp_path: Path) -> None:
    """At a rate that leaves the client idle on most machines. On a busy one it says that it was late."""
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(CAT, images)
    with Known() as server:
        options = ("--rate", "20", "--seconds", "60", "--warmup", "0", "--json")
        options += ("--images", str(images), "--report", str(tmp_path / "report.html"))
        process = subprocess.Popen(
            [*COMMAND, server.url, *options], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert server.busy.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    result = json.loads(out)
    assert process.returncode == 130
    assert all(line.startswith("warning: 20/s: the client was ") for line in err.splitlines())
    assert result["interrupted"]
    assert result["points"][0]["requests"] > 0
    assert result["points"][0]["seconds"] < 60
    assert "20/s" in (tmp_path / "report.html").read_text()


def test_what_is_left_out_of_the_folder_is_reported(tmp_path: Path) -> None:
    shutil.copy(CAT, tmp_path)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "loop").symlink_to(".")
    options = ("--clients", "1", "--seconds", "0.1", "--warmup", "0", "--json", "--images", str(tmp_path))
    with Known() as server:
        ran = bench(server.url, *options)
    said = "skipped 1 system file or folder (__MACOSX), 1 link to a folder that contains it"
    assert (ran.returncode, said in json.loads(ran.stdout)["warnings"]) == (0, True)
    assert f"warning: {said}\n" in ran.stderr


@pytest.mark.slow
def test_topk_itself_is_measured(embedded_server: Server, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(CAT.read_bytes())
    page = tmp_path / "report.html"
    options = (
        "--images",
        str(tmp_path),
        "--clients",
        "1,4",
        "--warmup",
        "0.2",
        "--seconds",
        "0.6",
        "--report",
        str(page),
    )
    result = found(embedded_server.url, *options)
    assert result["server"]["model"] == "efficientnet_lite0"
    for point in result["points"]:
        assert point["good"] > 0
        assert "200" in point["statuses"]
        assert point["batch_size_mean"] >= 1
    assert "efficientnet_lite0" in page.read_text()


@pytest.mark.slow
def test_the_table_is_what_a_person_sees(embedded_server: Server) -> None:
    ran = bench(embedded_server.url, "--clients", "2", *SHORT)
    assert ran.returncode == 0
    assert "2 clients" in ran.stdout
    assert "goodput" in ran.stdout
