"""The manifests against the code and against each other: what they name must exist, what they assume must hold."""

from typing import Any

import pytest

from app import __version__
from app.main import create_app
from app.settings import Settings
from tests.deploy.manifests import KSERVE, KUBERNETES, document, documents, kustomizations, objects, settings

OBJECTS = objects()
DEPLOYMENT = OBJECTS["Deployment", "topk"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
[CONTAINER] = POD["containers"]
PROBES = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
AUTOSCALER = OBJECTS["HorizontalPodAutoscaler", "topk"]["spec"]
SCALED = OBJECTS["ScaledObject", "topk"]["spec"]

PREDICTORS = [
    document(KSERVE / "inferenceservice.yaml")["spec"]["predictor"],
    document(KSERVE / "inferenceservice-gpu.yaml")["spec"]["predictor"],
    documents(KSERVE / "runtime.yaml")[0]["spec"],
]
NAMES = ["kubernetes", "inferenceservice", "inferenceservice-gpu", "runtime"]
SERVED = documents(KSERVE / "runtime.yaml")[1]["spec"]["predictor"]
CONTAINERS = [CONTAINER, *(predictor["containers"][0] for predictor in PREDICTORS)]


def selectors() -> dict[str, dict[str, str]]:
    """What selects pods, by who does."""
    found = {
        "Deployment": DEPLOYMENT["selector"]["matchLabels"],
        "Service": OBJECTS["Service", "topk"]["spec"]["selector"],
    }
    found["PodDisruptionBudget"] = OBJECTS["PodDisruptionBudget", "topk"]["spec"]["selector"]["matchLabels"]
    for name in ("topk", "topk-download"):
        found[f"NetworkPolicy {name}"] = OBJECTS["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"]
    for constraint in POD["topologySpreadConstraints"]:
        found[constraint["topologyKey"]] = constraint["labelSelector"]["matchLabels"]
    return found


def environments() -> dict[str, dict[str, str]]:
    """The settings that a container gets, by manifest."""
    variables = settings()
    base = variables.pop("base")
    found = {"base": base} | {folder: base | mine for folder, mine in variables.items()}
    for name, container in zip(NAMES[1:], CONTAINERS[1:], strict=True):
        found[name] = {e["name"]: e["value"] for e in container["env"] if e["name"] != "PROTOCOL"}
    found["runtime"]["TOPK_MODEL_NAME"] = "pets"  # KServe puts the name in place of {{.Name}}
    return found


@pytest.mark.parametrize("who", selectors())
def test_every_selector_finds_the_pods(who: str) -> None:
    selector = selectors()[who]
    assert selector
    assert selector.items() <= DEPLOYMENT["template"]["metadata"]["labels"].items()


def test_the_port_is_the_same_from_scrape_to_container() -> None:
    [port] = CONTAINER["ports"]
    [service] = OBJECTS["Service", "topk"]["spec"]["ports"]
    [ingress] = OBJECTS["NetworkPolicy", "topk"]["spec"]["ingress"]
    [scrape] = OBJECTS["ServiceMonitor", "topk"]["spec"]["endpoints"]
    assert port["name"] == service["targetPort"] == ingress["ports"][0]["port"]
    assert scrape["port"] == service["name"]
    assert {p["httpGet"]["port"] for p in PROBES.values()} == {port["name"]}
    assert {c["ports"][0]["containerPort"] for c in CONTAINERS} == {8080}


def test_the_service_monitor_finds_the_service() -> None:
    monitor, labels = OBJECTS["ServiceMonitor", "topk"]["spec"], OBJECTS["Service", "topk"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == "topk"  # the alerts ask for job="topk"


def test_what_scales_scales_the_deployment() -> None:
    for target in (
        AUTOSCALER["scaleTargetRef"],
        {"apiVersion": "apps/v1", "kind": "Deployment"} | SCALED["scaleTargetRef"],
    ):
        found = OBJECTS[target["kind"], target["name"]]
        assert found["apiVersion"] == target["apiVersion"]
    assert "replicas" not in DEPLOYMENT
    assert AUTOSCALER["minReplicas"] > OBJECTS["PodDisruptionBudget", "topk"]["spec"]["maxUnavailable"]


def test_keda_scales_as_the_autoscaler_does() -> None:
    assert (SCALED["minReplicaCount"], SCALED["maxReplicaCount"]) == (
        AUTOSCALER["minReplicas"],
        AUTOSCALER["maxReplicas"],
    )
    assert SCALED["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == AUTOSCALER["behavior"]
    wait, cpu = SCALED["triggers"]
    assert (
        f"{float(wait['metadata']['threshold']) * 1000:.0f}m"
        == AUTOSCALER["metrics"][0]["pods"]["target"]["averageValue"]
    )
    assert int(cpu["metadata"]["value"]) == AUTOSCALER["metrics"][1]["resource"]["target"]["averageUtilization"]


def test_the_adapter_offers_what_the_autoscalers_ask_for() -> None:
    offered = {rule["name"]["as"] for rule in document(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"]}
    patch = document(KUBERNETES / "overlays" / "gpu" / "autoscaler.yaml")
    metrics = AUTOSCALER["metrics"] + [step["value"] for step in patch if step["path"] == "/spec/metrics/-"]
    asked = {metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"}
    assert asked == offered


@pytest.mark.parametrize("container", CONTAINERS, ids=NAMES)
def test_probes_ask_for_paths_that_are_served(container: dict[str, Any]) -> None:
    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in PROBES}
    assert set(asked.values()) <= paths.keys()
    assert (asked["liveness"], asked["readiness"]) == ("/livez", "/readyz")


def test_kserve_probes_as_kubernetes_does() -> None:
    def patience(container: dict[str, Any]) -> list[tuple[int, ...]]:
        keys = ("periodSeconds", "timeoutSeconds", "failureThreshold")
        return [tuple(container[f"{name}Probe"][key] for key in keys) for name in PROBES]

    assert [patience(container) for container in CONTAINERS[1:]] == [patience(CONTAINER)] * len(PREDICTORS)


def test_a_start_may_take_as_long_as_its_probe_allows() -> None:
    startup = PROBES["startup"]
    assert startup["failureThreshold"] * startup["periodSeconds"] < DEPLOYMENT["progressDeadlineSeconds"]


@pytest.mark.parametrize("name", environments())
def test_the_grace_period_is_enough_for_the_drain(name: str) -> None:
    variables = environments()[name]
    given = Settings(_env_file=None, **{k.removeprefix("TOPK_").lower(): v for k, v in variables.items()})
    assert given.drain_delay_ms is not None
    longest = (given.drain_delay_ms + given.upload_ms + given.request_timeout_ms) / 1000
    pods = dict(zip(NAMES, [POD, *PREDICTORS], strict=True)) | {"runtime": SERVED}
    grace = pods.get(name, POD)["terminationGracePeriodSeconds"]
    assert grace >= longest + 10


@pytest.mark.parametrize("name", environments())
def test_the_settings_are_settings_and_name_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environments()[name]
    assert variables.keys() <= {f"TOPK_{field.upper()}" for field in Settings.model_fields}
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert Settings(_env_file=None).model != "auto"


def test_a_service_named_topk_does_not_set_our_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives containers ``NAME_PORT=tcp://IP:PORT`` for each Service, unless service links are disabled."""
    monkeypatch.setenv(f"{OBJECTS['Service', 'topk']['metadata']['name'].upper()}_PORT", "tcp://10.0.0.1:80")
    assert Settings(_env_file=None).port == 8000
    assert [spec["enableServiceLinks"] for spec in (POD, *PREDICTORS[:2], SERVED)] == [False] * 4


def test_images_carry_this_version() -> None:
    tags = [i["newTag"] for kustomization in kustomizations().values() for i in kustomization.get("images", [])]
    tags += [container["image"].partition(":")[2] for container in CONTAINERS[1:]]
    assert len(tags) == 5
    assert {tag.partition("-")[0] for tag in tags} == {__version__}


@pytest.mark.parametrize("container", CONTAINERS, ids=NAMES)
def test_a_container_may_do_nothing_but_write_to_its_folders(container: dict[str, Any]) -> None:
    allowed = container["securityContext"]
    assert allowed["readOnlyRootFilesystem"] is True
    assert allowed["allowPrivilegeEscalation"] is False
    assert allowed["capabilities"] == {"drop": ["ALL"]}
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    cache = {**settings()["base"], **{e["name"]: e["value"] for e in container.get("env", [])}}["TOPK_CACHE_DIR"]
    assert sorted(mounts) == ["/tmp", cache]


@pytest.mark.parametrize("spec", [POD, *PREDICTORS[:2]], ids=NAMES[:3])
def test_a_pod_is_nobody_in_particular(spec: dict[str, Any]) -> None:
    user = spec["securityContext"]
    assert user["runAsNonRoot"] is True
    assert user["runAsUser"] == user["fsGroup"] == 10001
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert all("emptyDir" in volume for volume in spec["volumes"])


def test_limits_are_requests_on_both_overlays() -> None:
    """The number of threads and the bytes that may be decoded at once follow from the limits."""
    for overlay in ("cpu", "gpu"):
        [container] = document(KUBERNETES / "overlays" / overlay / "deployment.yaml")["spec"]["template"]["spec"][
            "containers"
        ]
        resources = container["resources"]
        assert resources["limits"].items() <= resources["requests"].items()
        assert ("nvidia.com/gpu" in resources["limits"]) == (overlay == "gpu")


GPU = document(KUBERNETES / "overlays" / "gpu" / "deployment.yaml")["spec"]


def test_the_gpu_s_workers_have_a_core_each() -> None:
    [container] = GPU["template"]["spec"]["containers"]
    assert int(settings()["overlays/gpu"]["TOPK_WORKERS"]) <= int(container["resources"]["limits"]["cpu"])


def test_an_update_needs_no_second_gpu() -> None:
    assert GPU["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert GPU["strategy"]["rollingUpdate"]["maxUnavailable"] < AUTOSCALER["minReplicas"]


def test_kserve_uses_a_gpu_as_kubernetes_does() -> None:
    predictor, pod = PREDICTORS[1], GPU["template"]["spec"]
    assert predictor["deploymentStrategy"]["rollingUpdate"] == GPU["strategy"]["rollingUpdate"]
    assert predictor["tolerations"] == pod["tolerations"]
    wanted = [spec["containers"][0]["resources"]["limits"] for spec in (predictor, pod)]
    assert wanted[0] == wanted[1]
    variables = environments()["inferenceservice-gpu"]
    assert settings()["overlays/gpu"].items() <= variables.items()


def test_the_keys_file_is_a_key_of_the_secret_in_a_mounted_folder() -> None:
    """Mounted by subPath, a file would never be updated."""
    folder = KUBERNETES / "components" / "api-keys"
    spec = document(folder / "deployment.yaml")["spec"]["template"]["spec"]
    [mount] = spec["containers"][0]["volumeMounts"]
    [volume] = spec["volumes"]
    assert "subPath" not in mount
    assert mount["name"] == volume["name"]
    path = settings()["components/api-keys"]["TOPK_API_KEYS_FILE"]
    assert path == f"{mount['mountPath']}/keys"
    made = f"kubectl create secret generic {volume['secret']['secretName']} --from-file=keys=FILE"
    assert made in (folder / "kustomization.yaml").read_text()


def test_nothing_is_reached_but_dns_unless_a_download_is_wanted() -> None:
    def ports(name: str) -> set[int]:
        egress = OBJECTS["NetworkPolicy", name]["spec"]["egress"]
        return {port["port"] for rule in egress for port in rule["ports"]}

    assert ports("topk") == {53}
    assert ports("topk-download") == {443}


def test_kserve_speaks_v2_under_the_service_s_name() -> None:
    *own, runtime = PREDICTORS
    for name, predictor in zip(NAMES[1:3], own, strict=True):
        variables = {e["name"]: e["value"] for e in predictor["containers"][0]["env"]}
        assert variables["PROTOCOL"] == "v2"
        assert variables["TOPK_MODEL_NAME"] == document(KSERVE / f"{name}.yaml")["metadata"]["name"]
    model = SERVED["model"]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    assert model["modelFormat"]["name"] in {known["name"] for known in runtime["supportedModelFormats"]}
    assert model["runtime"] == documents(KSERVE / "runtime.yaml")[0]["metadata"]["name"]
