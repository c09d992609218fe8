"""docker-compose.yml: what it mounts is there, its ports meet, and it stops no sooner than topk does."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import app
from app.server.serving import DRAIN_DELAY_MS
from app.settings import Settings
from tests.conftest import REPOSITORY

COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TOPK = [name for name, service in SERVICES.items() if service["image"].startswith("topk:")]
OTHERS = sorted(SERVICES.keys() - TOPK)
MOUNTS = [(name, mount) for name, service in SERVICES.items() for mount in service.get("volumes", [])]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)s", duration)
    assert found
    return float(found[1])


def inner_ports(service: dict[str, Any]) -> set[int]:
    return {int(port.rsplit(":", 1)[-1]) for port in [*service.get("ports", []), *service.get("expose", [])]}


def test_two_replicas_and_one_for_a_gpu_that_is_asked_for() -> None:
    assert TOPK == ["topk-1", "topk-2", "topk-gpu"]
    assert SERVICES["topk-1"] == SERVICES["topk-2"]
    assert [name for name in SERVICES if SERVICES[name].get("profiles")] == ["topk-gpu"]
    devices = SERVICES["topk-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert [device["capabilities"] for device in devices] == [["gpu"]]


@pytest.mark.parametrize(("name", "mount"), MOUNTS, ids=[f"{name}:{mount}" for name, mount in MOUNTS])
def test_what_is_mounted_is_there(name: str, mount: str) -> None:
    source, _, rest = mount.partition(":")
    if source.startswith("."):
        assert (REPOSITORY / source).exists()
        assert rest.endswith(":ro")
    else:
        assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_named_by_its_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", SERVICES[name]["image"])


@pytest.mark.parametrize("name", TOPK)
def test_topk_is_this_version_of_it_with_a_model_by_name(name: str) -> None:
    build = SERVICES[name]["build"]
    assert SERVICES[name]["image"] == f"topk:{app.__version__}-{build['args']['VARIANT']}"
    assert build["args"]["VERSION"] == app.__version__
    assert "auto" not in build["args"]["MODEL"]
    assert set(build["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


@pytest.mark.parametrize("name", SERVICES)
def test_it_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp:mode=1777"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_its_health_check_uses_its_own_port(name: str) -> None:
    *_, url = SERVICES[name]["healthcheck"]["test"]
    found = re.match(r"http://127\.0\.0\.1:(\d+)/", url)
    assert found
    assert int(found[1]) in inner_ports(SERVICES[name])


def test_ports_fit() -> None:
    assert "ENV" in DOCKERFILE
    assert "PORT=8080" in DOCKERFILE
    assert all(inner_ports(SERVICES[name]) == {8080} for name in TOPK)
    assert SERVICES["nginx"]["ports"] == ["8000:8080"]
    published = [port.rsplit(":", 1)[0] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(set(published))


def test_nginx_leads_to_both_replicas_once_they_are_ready() -> None:
    nginx = (REPOSITORY / "deploy" / "nginx" / "nginx.conf").read_text()
    assert re.findall(r"^\s*server (\S+:\d+)", nginx, re.MULTILINE) == ["topk-1:8080", "topk-2:8080"]
    assert re.search(r"^\s*listen 8080\b", nginx, re.MULTILINE)
    assert SERVICES["nginx"]["depends_on"] == {name: {"condition": "service_healthy"} for name in ("topk-1", "topk-2")}


def test_prometheus_asks_both_replicas() -> None:
    prometheus = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = [
        target
        for job in prometheus["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    ]
    assert targets == ["topk-1:8080", "topk-2:8080"]
    mounted = {Path(mount.split(":")[1]).name for mount in SERVICES["prometheus"]["volumes"]}
    assert set(prometheus["rule_files"]) <= mounted


@pytest.mark.parametrize("name", [*TOPK, "nginx"])
def test_it_is_given_time_to_finish_what_it_accepted(name: str) -> None:
    fields = Settings.model_fields
    last_answer = DRAIN_DELAY_MS + fields["upload_ms"].default + fields["request_timeout_ms"].default
    assert seconds(SERVICES[name]["stop_grace_period"]) > last_answer / 1000


def test_variables_of_topk_are_settings() -> None:
    known = {f"TOPK_{name}".upper() for name in Settings.model_fields}
    for name in TOPK:
        assert set(SERVICES[name]["environment"]) <= known
