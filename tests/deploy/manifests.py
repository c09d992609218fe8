"""The manifests of deploy/ as they are written."""

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KSERVE = DEPLOY / "kserve"


def documents(path: Path) -> list[Any]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def document(path: Path) -> Any:
    """The only YAML document of a file."""
    [only] = documents(path)
    return only


def kustomizations() -> dict[str, Any]:
    """Each kustomization by its folder below deploy/kubernetes."""
    return {str(path.parent.relative_to(KUBERNETES)): document(path) for path in KUBERNETES.rglob("kustomization.yaml")}


def settings() -> dict[str, dict[str, str]]:
    """The settings in each folder's ``topk-settings``, by folder: only what that folder says."""
    base = dict(line.split("=", 1) for line in (KUBERNETES / "base" / "settings.env").read_text().splitlines())
    merged = {"base": base}
    for folder, kustomization in kustomizations().items():
        for generator in kustomization.get("configMapGenerator", []):
            if "literals" in generator:
                merged[folder] = dict(literal.split("=", 1) for literal in generator["literals"])
    return merged


def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """Every whole object of deploy/kubernetes by kind and name: base and components, without patches."""
    found = {}
    for folder, kustomization in kustomizations().items():
        for name in kustomization.get("resources", []):
            path = KUBERNETES / folder / name
            if path.is_file():
                made = document(path)
                found[made["kind"], made["metadata"]["name"]] = made
    return found
