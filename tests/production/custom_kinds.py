"""Manifests on stdin against models that were made from their CRDs: KServe's SDK, and cloudcoil's.

Run by an interpreter that has them. Neither refuses a field that it does not know: what is read and written again must
hold all that was given.
"""

import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import kserve.models
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from kubernetes import client

PYDANTIC = {"PrometheusRule": PrometheusRule, "ServiceMonitor": ServiceMonitor, "ScaledObject": ScaledObject}
KSERVE = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}


def read_and_written(manifest: dict[str, Any]) -> Any:
    """The manifest as its model understands it. Raises what the model raises."""
    if model := PYDANTIC.get(manifest["kind"]):
        return model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    client.models.K8sIoApiAppsV1DeploymentStrategy = client.V1DeploymentStrategy  # the SDK's name for it
    for name in dir(kserve.models):
        if not hasattr(client.models, name):
            setattr(client.models, name, getattr(kserve.models, name))
    api = client.ApiClient()
    answer = SimpleNamespace(data=json.dumps(manifest))
    return api.sanitize_for_serialization(api.deserialize(answer, KSERVE[manifest["kind"]]))


def lost(given: Any, understood: Any, path: str = "") -> Iterator[str]:
    """Where something was given that is not understood. A model's own defaults may stand beside it."""
    if isinstance(given, dict) and isinstance(understood, dict):
        for key, value in given.items():
            yield from lost(value, understood.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        for index, pair in enumerate(zip(given, understood, strict=True)):
            yield from lost(*pair, f"{path}[{index}]")
    elif given != understood:
        yield f"{path}: {given!r} is understood as {understood!r}"


def main() -> int:
    complaints = [
        f"{manifest['kind']} {manifest['metadata']['name']}{complaint}"
        for manifest in yaml.safe_load_all(sys.stdin)
        for complaint in lost(manifest, read_and_written(manifest))
    ]
    print("\n".join(complaints))
    return len(complaints)


if __name__ == "__main__":
    sys.exit(main())
