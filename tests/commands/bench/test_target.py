import asyncio

import pytest

from app.commands.bench.client import session
from app.commands.bench.target import Batches, Target
from app.errors import LoadTestError
from tests.commands.bench.server import Known

METRICS = """# TYPE topk_batch_size histogram
topk_batch_size_bucket{le="1.0"} 3.0
topk_batch_size_count 4.0
topk_batch_size_sum 11.0
"""


@pytest.mark.parametrize(
    ("given", "url", "base"),
    [
        ("localhost:8000", "http://localhost:8000/v1/predict", "http://localhost:8000"),
        ("https://host/", "https://host/v1/predict", "https://host"),
        ("http://host/vision/v1/predict?top_k=1", "http://host/vision/v1/predict?top_k=1", "http://host/vision"),
        ("http://[::1]:80/classify", "http://[::1]:80/classify", "http://[::1]:80"),
    ],
)
def test_a_root_means_predict_and_a_path_stays(given: str, url: str, base: str) -> None:
    target = Target(given)
    assert (target.url, target.base) == (url, base)


@pytest.mark.parametrize(
    "given", ["ftp://host", "http://", "http:///v1/predict", "", "http://host:port", "http://[::1"]
)
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(LoadTestError):
        Target(given)


def aside(server: Known) -> tuple[object, object]:
    async def ask() -> tuple[object, object]:
        target = Target(server.url)
        async with session({}) as connections:
            return await target.info(connections), await target.batches(connections)

    return asyncio.run(ask())


def test_the_server_describes_itself_and_counts_its_batches() -> None:
    with Known(pages={"/v1/info": '{"model": "m"}', "/metrics": METRICS}) as server:
        assert aside(server) == ({"model": "m"}, Batches(11, 4))


@pytest.mark.parametrize("pages", [{}, {"/v1/info": "<html>", "/metrics": "other 1"}, {"/v1/info": "[]"}])
def test_a_server_that_does_neither_is_measured_without(pages: dict[str, str]) -> None:
    with Known(pages=pages) as server:
        assert aside(server) == (None, None)
