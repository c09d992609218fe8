"""What Grafana and Prometheus are given: the dashboard is sound and asks only for what the service exports."""

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from app.telemetry.metrics import OUTCOMES, Metrics
from tests.conftest import REPOSITORY

GRAFANA = REPOSITORY / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "topk.json").read_text())
TOP = DASHBOARD["panels"]
PANELS = [*TOP, *(panel for row in TOP for panel in row.get("panels", []))]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in DRAWN for target in panel["targets"]]
PROMETHEUS = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "prometheus.yml").read_text())
PROMETHEUS_OWN = {"up", "ALERTS"}
DCGM = {  # of the exporter's default-counters.csv
    *("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
    *("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_TEMP"),
    "DCGM_FI_DEV_XID_ERRORS",
}


def exported() -> set[str]:
    """The names of every sample that the service's metrics may have."""
    kinds = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().render().decode(), re.MULTILINE)
    parts = ("_bucket", "_sum", "_count")
    return {name for name, _ in kinds} | {f"{name}{p}" for name, kind in kinds if kind == "histogram" for p in parts}


def test_every_metric_of_a_query_is_exported() -> None:
    asked = {name for query in QUERIES for name in re.findall(r"([a-zA-Z_]\w*)\s*\{", query)}
    assert asked - PROMETHEUS_OWN - DCGM <= exported()
    assert {name for name in asked if name.startswith("DCGM")} == DCGM


def test_panels_of_another_exporter_are_in_a_collapsed_row_that_names_it() -> None:
    [row] = [panel for panel in TOP if panel.get("panels")]
    assert row["collapsed"]
    assert "DCGM" in row["title"]
    for panel in DRAWN:
        foreign = any("DCGM" in target["expr"] for target in panel["targets"])
        assert foreign == (panel in row["panels"])
        assert not foreign or panel["fieldConfig"]["defaults"]["noValue"] == "no DCGM exporter"


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    ours = set(re.findall(r"^# TYPE (topk_\w+)", Metrics().render().decode(), re.MULTILINE))
    queries = " ".join(QUERIES)
    assert {name for name in ours if name not in queries} == set()


def test_outcomes_are_those_that_are_counted() -> None:
    named = {n for query in QUERIES for value in re.findall(r'outcome!?=~?"([^"]+)"', query) for n in value.split("|")}
    assert named
    assert named <= set(OUTCOMES)


def test_every_query_is_of_the_replicas_that_are_chosen() -> None:
    for query in QUERIES:
        for selector in re.findall(r"\{([^}]*)\}", query):
            assert 'instance=~"$instance"' in selector or "alertname" in selector or selector == 'Hostname=~"$gpu_host"'


def test_ids_are_unique() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    for panel in DRAWN:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))


def test_panels_lie_on_the_grid_and_do_not_overlap() -> None:
    def area(panel: dict[str, Any]) -> tuple[int, int, int, int]:
        at = panel["gridPos"]
        return at["x"], at["y"], at["x"] + at["w"], at["y"] + at["h"]

    assert all(0 <= left < right <= 24 for left, _, right, _ in map(area, PANELS))
    for one, other in combinations(map(area, PANELS), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_no_row_of_the_grid_is_left_empty() -> None:
    bottoms = {panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in PANELS}
    assert {panel["gridPos"]["y"] for panel in PANELS} - {0} <= bottoms


@pytest.mark.parametrize("panel", DRAWN, ids=[panel["title"] for panel in DRAWN])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"].get("yAxis", {}).get("unit")
    assert unit or panel["type"] in ("table", "state-timeline")


def test_alerts_that_a_panel_names_are_in_the_runbook() -> None:
    named = {name for panel in DRAWN for name in re.findall(r"Topk\w+", panel["description"])}
    alerts = set(re.findall(r"alert: (\w+)", (REPOSITORY / "deploy" / "prometheus" / "alerts.yml").read_text()))
    sections = set(re.findall(r"^#+ (\w+)$", (REPOSITORY / "docs" / "runbook.md").read_text(), re.MULTILINE))
    assert named
    assert named <= alerts & sections


def test_variables_are_declared() -> None:
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(PANELS)))
    assert used == declared


def test_what_is_provisioned_fits_together() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "topk.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert DASHBOARD["uid"] == "topk"


def test_prometheus_scrapes_both_replicas_under_the_name_that_alerts_ask_for() -> None:
    [job] = PROMETHEUS["scrape_configs"]
    assert job["job_name"] == "topk"
    assert job["static_configs"] == [{"targets": ["topk-1:8080", "topk-2:8080"]}]
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
