"""deploy/ray: the file names what exists, and misspelt security settings stop the start."""

from types import ModuleType
from typing import Any

import pytest
import yaml

from app.errors import ModelError
from app.settings import Settings
from tests.conftest import REPOSITORY

RAY = REPOSITORY / "deploy" / "ray"


@pytest.fixture
def application() -> dict[str, Any]:
    [application] = yaml.safe_load((RAY / "serve.yaml").read_text())["applications"]
    return application


def test_its_arguments_are_settings_and_name_the_model(application: dict[str, Any]) -> None:
    settings = Settings(**application["args"], _env_file=None)
    assert application["args"].keys() <= Settings.model_fields.keys()
    assert settings.model not in ("", "auto")


def test_what_it_imports_and_configures_is_there(application: dict[str, Any]) -> None:
    module, _, builder = application["import_path"].partition(":")
    source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {builder}(" in source
    assert all(f"class {deployment['name']}:" in source for deployment in application["deployments"])


def test_one_replica_may_die(application: dict[str, Any]) -> None:
    [deployment] = application["deployments"]
    scaling = deployment["autoscaling_config"]
    assert 2 <= scaling["min_replicas"] < scaling["max_replicas"]


def test_a_variable_that_resembles_a_security_setting_stops_the_start(
    ray_app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPK_API_KEY", "secret")
    with pytest.raises(ModelError, match=r"TOPK_API_KEY is not a setting; did you mean TOPK_API_KEYS\?"):
        ray_app.build({"model": "efficientnet_lite0"})
