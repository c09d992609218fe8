"""The manifests rendered by kubectl and validated against schemas, and the probes asked under overload.

Built-in kinds are validated strictly against the API's own schemas. For custom kinds the schema is that of the classes
that KServe's SDK and cloudcoil made from the CRDs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate
import pytest
import yaml

from app import __version__
from app.settings import Settings
from tests.conftest import REPOSITORY, Server, environment
from tests.deploy.manifests import KSERVE, KUBERNETES, document
from tests.docs.pages import blocks

pytestmark = pytest.mark.slow

API_VERSIONS = ("1.31", "1.37")  # the oldest that has all that is used, and the newest that is known
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
OVERLAYS = ("cpu", "gpu")
COMPONENTS = ((), ("keda",), ("api-keys",), ("download",), ("keda", "api-keys", "download"))
RENDERINGS = [(overlay, components) for overlay in OVERLAYS for components in COMPONENTS]


def rendered(overlay: str, components: tuple[str, ...] = (), patches: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send for an overlay with these components and patches on top."""
    kubectl = shutil.which("kubectl", path=PATH)
    assert kubectl, "no kubectl: `make test-production` installs it"
    with tempfile.TemporaryDirectory() as folder:
        up = os.path.relpath(KUBERNETES, Path(folder).resolve())
        kustomization = {
            "resources": [f"{up}/overlays/{overlay}"],
            "components": [f"{up}/components/{name}" for name in components],
            "patches": list(patches),
        }
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(kustomization))
        ran = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr  # nothing deprecated
    return list(yaml.safe_load_all(ran.stdout))


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [made for made in objects if made["kind"] == kind]
    return found


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = one(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.fixture(params=RENDERINGS, ids=lambda p: "+".join([p[0], *p[1]]))
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(*request.param)


def complaints(python: str, manifests: str) -> str:
    """What of these manifests their classes do not understand."""
    script = Path(__file__).with_name("custom_kinds.py")
    ran = subprocess.run([python, script], input=manifests, capture_output=True, text=True, timeout=120)
    return ran.stdout.strip() + ran.stderr.strip()


def test_built_in_kinds_are_valid(objects: list[dict[str, Any]]) -> None:
    built_in = [made for made in objects if made["kind"] not in CUSTOM]
    assert len(built_in) >= 5
    for made in built_in:
        for version in API_VERSIONS:
            assert kubernetes_validate.validate(made, version, strict=True) == version


def test_a_misspelt_field_would_be_noticed() -> None:
    deployment = one(rendered("cpu"), "Deployment")
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, API_VERSIONS[0], strict=True)


def test_custom_kinds_are_valid(kserve_python: str) -> None:
    made = [made for overlay in OVERLAYS for made in rendered(overlay, ("keda",)) if made["kind"] in CUSTOM]
    assert {one["kind"] for one in made} == CUSTOM
    assert not complaints(kserve_python, yaml.safe_dump_all(made))


@pytest.mark.parametrize("name", ["inferenceservice.yaml", "inferenceservice-gpu.yaml", "runtime.yaml"])
def test_kserve_s_kinds_are_valid(name: str, kserve_python: str) -> None:
    text = (KSERVE / name).read_text()
    assert not complaints(kserve_python, text)
    assert "failureThresh: 3 is understood as None" in complaints(
        kserve_python, text.replace("failureThreshold: 3", "failureThresh: 3")
    )


def test_what_is_referred_to_is_there(objects: list[dict[str, Any]]) -> None:
    names = {(made["kind"], made["metadata"]["name"]) for made in objects}
    spec = pod(objects)
    [container] = spec["containers"]
    [source] = container["envFrom"]
    assert ("ConfigMap", source["configMapRef"]["name"]) in names
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    scaler = next(made for made in objects if made["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"))
    assert ("Deployment", scaler["spec"]["scaleTargetRef"]["name"]) in names


def test_one_thing_scales_it(objects: list[dict[str, Any]]) -> None:
    assert sum(made["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") for made in objects) == 1


def test_the_settings_of_every_rendering_are_accepted(
    objects: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = one(objects, "ConfigMap")["data"]
    assert variables.keys() <= {f"TOPK_{name.upper()}" for name in Settings.model_fields}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given = Settings(_env_file=None)
    assert given.model != "auto"
    assert given.drain_delay_ms is not None
    longest = (given.drain_delay_ms + given.upload_ms + given.request_timeout_ms) / 1000
    assert pod(objects)["terminationGracePeriodSeconds"] >= longest + 10


@pytest.mark.parametrize(("overlay", "tag"), [("cpu", __version__), ("gpu", f"{__version__}-cuda")])
def test_an_overlay_runs_its_image_with_its_device(overlay: str, tag: str) -> None:
    made = rendered(overlay)
    [container] = pod(made)["containers"]
    assert container["image"] == f"topk:{tag}"
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "gpu")
    assert one(made, "ConfigMap")["data"]["TOPK_DEVICE"] == {"cpu": "cpu", "gpu": "cuda"}[overlay]


def test_a_gpu_is_never_needed_twice() -> None:
    strategies = {overlay: one(rendered(overlay), "Deployment")["spec"]["strategy"] for overlay in OVERLAYS}
    assert strategies["gpu"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert strategies["cpu"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_patches_of_the_readme_choose_a_gpu_and_a_slice() -> None:
    [shown] = [block.text for block in blocks("deploy/kubernetes/README.md", "yaml") if "mig-" in block.text]
    made = rendered("gpu", patches=yaml.safe_load(shown)["patches"])
    [container] = pod(made)["containers"]
    assert pod(made)["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "16Gi", "nvidia.com/mig-1g.10gb": "1"}
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    assert kubernetes_validate.validate(one(made, "Deployment"), API_VERSIONS[0], strict=True)


def test_another_setting_is_a_rolling_update() -> None:
    """The name of the settings has a hash of them, and the pods refer to it."""
    names = {one(rendered("cpu", components), "ConfigMap")["metadata"]["name"] for components in COMPONENTS[1:4]}
    assert len(names) == 3


def test_probes_hold_under_overload(embedded_server: Server) -> None:
    """Asked as kubelet asks, with its time-outs, while several times the capacity comes for some seconds."""
    spec = document(KUBERNETES / "base" / "deployment.yaml")["spec"]["template"]["spec"]
    probes = [spec["containers"][0][f"{name}Probe"] for name in ("readiness", "liveness")]
    shed = embedded_server.metric("topk_images_total", outcome="shed")
    load = subprocess.Popen(
        [*(sys.executable, "-m", "app", "bench", embedded_server.url), "--rate", "1000", "--seconds", "8", "--json"],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    in_a_row, worst, asked = [0, 0], [0, 0], 0
    with httpx2.Client(base_url=embedded_server.url) as client:
        while load.poll() is None:
            for i, probe in enumerate(probes):
                in_a_row[i] = 0 if answers(client, probe) else in_a_row[i] + 1
                worst[i] = max(worst[i], in_a_row[i])
            asked += 1
    assert load.returncode == 0
    assert embedded_server.metric("topk_images_total", outcome="shed") > shed
    assert asked > 10
    assert all(failed < probe["failureThreshold"] for failed, probe in zip(worst, probes, strict=True))


def answers(client: httpx2.Client, probe: dict[str, Any]) -> bool:
    """Whether kubelet would be content."""
    try:
        return client.get(probe["httpGet"]["path"], timeout=probe["timeoutSeconds"]).status_code == 200
    except httpx2.TransportError:
        return False
