"""The alert rules against what the service exports and against the runbook."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import tiny
from tests.conftest import CAT, REPOSITORY, Server, slow
from tests.deploy.manifests import DEPLOY, KUBERNETES, document, objects

GROUPS = document(DEPLOY / "prometheus" / "alerts.yml")["groups"]
ALERTS: dict[str, Any] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
SECTIONS = re.findall(r"^## (.+)$", (REPOSITORY / "docs" / "runbook.md").read_text(), re.MULTILINE)
PROMETHEUS_S_OWN = {"job", "instance", "namespace", "pod"}
NOT_EVERY_DAY = {("status", "500")}  # a value that a healthy server never exports


def queries() -> dict[str, str]:
    """Every PromQL expression of deploy/kubernetes and the alerts, by where it stands."""
    found = {alert: rule["expr"] for alert, rule in ALERTS.items()}
    for rule in document(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"]:
        found[f"adapter: {rule['name']['as']}"] = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'job="topk"')
        found[f"adapter, series: {rule['name']['as']}"] = rule["seriesQuery"]
    found["KEDA"] = objects()["ScaledObject", "topk"]["spec"]["triggers"][0]["metadata"]["query"]
    return found


@pytest.fixture(scope="module")
def several_processes() -> Iterator[Server]:
    """As the GPU overlay runs it: their metrics are summed."""
    server = Server(*tiny.model(), "--workers", "2")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module", params=["embedded_server", slow("several_processes")])
def exported(request: pytest.FixtureRequest) -> list[tuple[str, dict[str, str]]]:
    """Name and labels of every sample, once an image has been classified."""
    server: Server = request.getfixturevalue(request.param)
    httpx2.post(f"{server.url}/v1/predict", content=CAT.read_bytes()).raise_for_status()
    families = text_string_to_metric_families(httpx2.get(f"{server.url}/metrics").text)
    return [(sample.name, sample.labels) for family in families for sample in family.samples]


@pytest.mark.parametrize("query", queries().values(), ids=list(queries()))
def test_every_series_asked_for_is_exported(query: str, exported: list[tuple[str, dict[str, str]]]) -> None:
    asked = re.findall(r"\b(\w+)\{(.*?)\}", query)
    assert {name for name, _ in asked} == set(re.findall(r"\b(?:topk|process)_\w+|\bup\b", query))
    for name, matchers in asked:
        if name == "up":
            continue
        wanted = re.findall(r'(\w+)(!?=)"(.*?)"', matchers)
        series = [labels for sample, labels in exported if sample == name]
        for label, operator, value in wanted:
            if label in PROMETHEUS_S_OWN:
                continue
            known = (label, value) in NOT_EVERY_DAY or operator == "!="
            series = [labels for labels in series if (label in labels if known else labels.get(label) == value)]
        assert series, f"no {name} with {matchers}"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_description_and_a_runbook_section(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"


def test_the_runbook_has_a_section_for_each_alert_in_their_order() -> None:
    assert [section for section in SECTIONS if section.startswith("Topk")] == list(ALERTS)


def test_what_is_grouped_by_is_a_label(exported: list[tuple[str, dict[str, str]]]) -> None:
    labels = {label for _, of_one in exported for label in of_one} | PROMETHEUS_S_OWN
    grouped = {label for query in queries().values() for label in re.findall(r"\bby \((\w+)\)", query)}
    assert grouped <= labels


def test_the_operator_s_rules_are_the_same() -> None:
    assert objects()["PrometheusRule", "topk"]["spec"]["groups"] == GROUPS
