"""Health, ids, timings, CORS, documentation and defects."""

import re

import httpx2
import pytest

from tests.api.conftest import InProcess, served
from tests.api.wire import Wire
from tests.conftest import CAT

PHOTO = CAT.read_bytes()


def test_every_answer_carries_an_id_and_its_timing(app_server: InProcess) -> None:
    for path in ("/", "/livez", "/nothing", "/metrics", "/web/index.html"):
        answer = httpx2.get(app_server.url + path)
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert re.search(r"total;dur=\d", answer.headers["server-timing"])


def test_a_prediction_has_its_stages_in_server_timing(app_server: InProcess) -> None:
    timing = httpx2.post(f"{app_server.url}/v1/predict", content=PHOTO).headers["server-timing"]
    names = [entry.split(";")[0] for entry in timing.split(", ")]
    assert names == ["upload", "decode", "queue", "inference", "total", "batch"]


def test_a_sane_request_id_is_taken_over_and_others_are_not(app_server: InProcess) -> None:
    def echoed(given: str) -> str:
        return httpx2.get(f"{app_server.url}/livez", headers={"X-Request-ID": given}).headers["x-request-id"]

    assert echoed("trace-42:a/b") == "trace-42:a/b"
    assert echoed("x" * 129) != "x" * 129
    assert echoed('"><script>') != '"><script>'


def test_the_id_of_a_problem_is_that_of_its_header(app_server: InProcess) -> None:
    answer = httpx2.get(f"{app_server.url}/nothing")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert answer.json()["code"] == "not_found"


def test_a_wrong_method_names_the_right_ones(app_server: InProcess) -> None:
    answer = httpx2.get(f"{app_server.url}/v1/predict")
    assert (answer.status_code, answer.json()["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_a_configured_origin_may_call_and_read_timings(small_limits: InProcess) -> None:
    preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asked = httpx2.options(f"{small_limits.url}/v1/predict", headers=preflight)
    assert asked.headers["access-control-allow-origin"] == "https://page.example"
    answer = httpx2.get(f"{small_limits.url}/livez", headers={"Origin": "https://page.example"})
    assert answer.headers["timing-allow-origin"] == "https://page.example"
    assert "Server-Timing" in answer.headers["access-control-expose-headers"]
    refused = httpx2.post(f"{small_limits.url}/v1/predict", content=PHOTO, headers={"Origin": "https://page.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://page.example")
    assert (
        "access-control-allow-origin"
        not in httpx2.get(f"{small_limits.url}/livez", headers={"Origin": "https://evil.example"}).headers
    )


def test_every_answer_defends_its_reader(app_server: InProcess) -> None:
    for path in ("/", "/docs", "/livez", "/nothing", "/web/app.js", "/v1/info"):
        headers = httpx2.get(app_server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert ("unsafe" in headers["content-security-policy"]) == (path == "/docs")  # Swagger UI's own styles


def test_probes_may_use_head(app_server: InProcess) -> None:
    model = "/v2/models/efficientnet_lite0"
    probes = ("/livez", "/readyz", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready", f"{model}/ready")
    for path in (*probes, "/", "/docs", "/metrics", "/web/app.js", "/openapi.json", "/v1/info"):
        answer = httpx2.head(app_server.url + path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert int(answer.headers["content-length"]) > 0
    refused = httpx2.head(f"{app_server.url}/v1/predict")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert httpx2.post(f"{app_server.url}/livez").headers["allow"] == "GET, HEAD"


def test_a_slash_too_many_or_too_few_is_another_path(app_server: InProcess) -> None:
    for path in ("/v2/", "/models", "/web", "/web/", "/docs-assets", "/docs/", "/v1/predict/", "//evil.example/v2"):
        answer = httpx2.get(app_server.url + path, headers={"Host": "evil.example"})
        assert (answer.status_code, "location" in answer.headers) == (404, False), path


@pytest.mark.parametrize(
    "target", ["http://topk/v1/info", "HTTPS://other:1/v1/info?a=/b", "http://topk", "http://topk?a"]
)
def test_a_server_can_be_asked_as_proxies_are(app_server: InProcess, target: str) -> None:
    with Wire(app_server.port) as wire:
        wire.send(f"GET {target} HTTP/1.1\r\nHost: topk\r\nConnection: close\r\n\r\n".encode())
        assert wire.status() == 200
        assert (b'"preprocessing"' in wire.read_all()) == ("info" in target)


APPS = ("capacitor://localhost", "tauri://localhost", "chrome-extension://abcdefgh", "app://.", "file://", "null")


def test_apps_may_call_if_their_origins_are_configured() -> None:
    with served(cors_origins=",".join(APPS)) as server:
        for origin in APPS:
            preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            asked = httpx2.options(f"{server.url}/v1/predict", headers=preflight)
            assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, origin)
            answer = httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers={"Origin": origin})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        refused = httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers={"Origin": "ionic://localhost"})
        assert "access-control-allow-origin" not in refused.headers


def test_null_is_an_origin_only_if_it_is_named() -> None:
    with served(cors_origins="file://") as server:
        headers = httpx2.get(f"{server.url}/livez", headers={"Origin": "null"}).headers
    assert "access-control-allow-origin" not in headers


def test_without_cors_no_origin_is_named(app_server: InProcess) -> None:
    headers = httpx2.get(f"{app_server.url}/livez", headers={"Origin": "https://page.example"}).headers
    assert not {"access-control-allow-origin", "timing-allow-origin"} & set(headers)


def test_a_defect_is_a_500_that_shows_nothing_and_that_a_page_elsewhere_can_read(
    small_limits: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(small_limits.app.state.service.classifier, "predictions", broken)
    headers = {"Origin": "https://page.example", "X-API-Key": "first-key"}
    answer = httpx2.post(f"{small_limits.url}/v1/predict", content=PHOTO, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert answer.headers["access-control-allow-origin"] == "https://page.example"


def test_metrics_count_requests_by_route_and_status(app_server: InProcess) -> None:
    def count(route: str, status: str) -> float:
        labels = {"route": route, "status": status, "protocol": "topk"}
        return app_server.app.state.service.metrics.registry.get_sample_value("topk_requests_total", labels) or 0

    before = count("/v1/predict", "200"), count("/v1/predict", "415"), count("unmatched", "404")
    httpx2.post(f"{app_server.url}/v1/predict", content=PHOTO)
    httpx2.post(f"{app_server.url}/v1/predict", content=b"text")
    httpx2.get(f"{app_server.url}/some/random/path")
    after = count("/v1/predict", "200"), count("/v1/predict", "415"), count("unmatched", "404")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


def test_metrics_are_named_as_documented(app_server: InProcess) -> None:
    httpx2.post(f"{app_server.url}/v1/predict", content=PHOTO)
    text = httpx2.get(f"{app_server.url}/metrics").text
    for name in (
        'topk_requests_total{protocol="topk",route="/v1/predict",status="200"}',
        'topk_images_total{outcome="accepted"}',
        "topk_upload_seconds_bucket",
        "topk_decode_seconds_bucket",
        "topk_queue_seconds_bucket",
        "topk_inference_seconds_bucket",
        "topk_request_seconds_bucket",
        "topk_batch_size_bucket",
        "topk_queue_images 0.0",
        "topk_inflight_bytes 0.0",
        "topk_ready 1.0",
        "topk_model_info{",
    ):
        assert name in text


def test_the_documentation_asks_nobody_else(app_server: InProcess) -> None:
    page = httpx2.get(f"{app_server.url}/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    for link in links:
        assert "//" not in link
        assert httpx2.get(f"{app_server.url}/{link}").status_code == 200


def test_the_documentation_shows_every_upload_form(app_server: InProcess) -> None:
    paths = httpx2.get(f"{app_server.url}/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/predict", "/v1/predict/batch", "/v1/embed", "/v1/info", "/livez", "/readyz", "/healthz"}
    forms = paths["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(forms) >= {"multipart/form-data", "application/json", "image/jpeg", "application/octet-stream"}
    example = forms["application/json"]["example"]
    answer = httpx2.post(f"{app_server.url}/v1/predict", json=example).json()
    assert answer["predictions"][0]["label"] == "Egyptian cat"
    batch = paths["/v1/predict/batch"]["post"]["requestBody"]["content"]["application/json"]["example"]
    results = httpx2.post(f"{app_server.url}/v1/predict/batch", json=batch).json()["results"]
    assert all("predictions" in result for result in results)


def test_a_prefix_serves_everything() -> None:
    with served(root_path="/vision") as server:
        redirect = httpx2.get(f"{server.url}/vision")
        assert (redirect.status_code, redirect.headers["location"]) == (307, "/vision/")
        for path in ("/", "/docs", "/openapi.json", "/readyz", "/web/index.html"):
            assert httpx2.get(f"{server.url}/vision{path}").status_code == 200
            assert httpx2.get(f"{server.url}{path}").status_code == 200  # a proxy that strips it
        assert httpx2.post(f"{server.url}/vision/v1/predict", content=PHOTO).status_code == 200
        assert httpx2.get(f"{server.url}/vision/openapi.json").json()["servers"] == [{"url": "/vision"}]
