"""The sum of several processes' metrics."""

import math

import orjson

from app import machine
from app.telemetry.metrics import Metrics
from app.workers.metrics import Totals, snapshot


def lines(text: bytes) -> dict[str, float]:
    samples = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def counted(images: int, ready: int = 1) -> Metrics:
    metrics = Metrics()
    metrics.images.labels("accepted").inc(images)
    metrics.batch_size.observe(images)
    metrics.inflight_bytes.set(images)
    metrics.ready.set(ready)
    metrics.model.info({"model": "one"})
    return metrics


def test_counters_histograms_and_gauges_are_summed() -> None:
    got = lines(Totals().render([snapshot(counted(n).registry) for n in (2, 3)]))
    assert got['topk_images_total{outcome="accepted"}'] == 5
    assert got["topk_batch_size_count"] == 2
    assert got["topk_batch_size_sum"] == 5
    assert got['topk_batch_size_bucket{le="2.0"}'] == 1
    assert got["topk_inflight_bytes"] == 5


def test_it_is_ready_when_all_are_and_says_once_what_is_served() -> None:
    got = lines(Totals().render([snapshot(counted(1, ready).registry) for ready in (1, 0)]))
    assert got["topk_ready"] == 0
    assert got['topk_model_info{model="one"}'] == 1


def test_the_limit_on_memory_is_one_for_all() -> None:
    alone = lines(Metrics().render())["topk_memory_limit_bytes"]
    assert alone == machine.memory_bytes()
    assert lines(Totals().render([snapshot(Metrics().registry)] * 2))["topk_memory_limit_bytes"] == alone


def test_patience_is_that_of_the_engine_process_and_may_be_infinite() -> None:
    engine, http = Metrics(), Metrics()
    sent = [orjson.loads(orjson.dumps(snapshot(one.registry))) for one in (http, engine)]
    assert lines(Totals().render(sent))["topk_patience_seconds"] == math.inf
    engine.patience.set(2.5)
    sent = [orjson.loads(orjson.dumps(snapshot(one.registry))) for one in (http, engine)]
    assert lines(Totals().render(sent))["topk_patience_seconds"] == 2.5


def test_what_the_dead_have_counted_stays_and_what_they_held_does_not() -> None:
    totals = Totals()
    for _ in range(2):
        totals.keep(snapshot(counted(2).registry))
    got = lines(totals.render([snapshot(counted(3).registry)]))
    assert got['topk_images_total{outcome="accepted"}'] == 7
    assert got["topk_batch_size_count"] == 3
    assert got["topk_inflight_bytes"] == 3


def test_the_format_is_that_of_one_process() -> None:
    metrics = counted(2)
    ours = [
        line for line in Totals().render([snapshot(metrics.registry)]).decode().splitlines() if "process" not in line
    ]
    assert ours == [line for line in metrics.render().decode().splitlines() if "process" not in line]
