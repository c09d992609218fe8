"""What a service checks and logs before it loads its model."""

import pytest

from app.errors import ModelError
from app.main import create_app
from tests.conftest import Server
from tests.settings.test_settings import SERVICE_LINKS

MODEL = ("--model", "efficientnet_lite0")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        (["--model", "resnet5O"], {}, "there is no model 'resnet5O'; did you mean resnet50 or"),
        (["--model", "timm:resnet5O"], {}, "timm has no model 'resnet5O'; did you mean resnet50 or"),
        (["--model", "resnet50", "--weights", "nowhere.pth"], {}, "nowhere.pth does not exist"),
        (MODEL, {"TOPK_API_KEY": "secret"}, "TOPK_API_KEY is not a setting; did you mean TOPK_API_KEYS?"),
        ([*MODEL, "--api-keys", ""], {}, "--api-keys: it is set but empty, which would let everyone in"),
    ],
    ids=["model", "timm", "weights", "misspelt", "empty"],
)
def test_the_start_fails_before_any_work(
    options: list[str], variables: dict[str, str], message: str, workers: str
) -> None:
    server = Server(*options, "--workers", workers, env=variables)
    assert server.process.wait(60) == 1
    server.stop()
    assert [str(line["event"]).startswith(f"topk: {message}") for line in server.log] == [True]


def test_another_server_s_app_does_not_start_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_API_KEY", "secret")
    with pytest.raises(ModelError, match="TOPK_API_KEY is not a setting"):
        create_app()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(
    ("keys", "event", "count"),
    [("one,two", "API keys are required", 2), (None, "no API key is required", 0)],
    ids=["keys", "none"],
)
def test_the_log_has_whether_keys_are_required_and_the_steps_but_no_service_links(
    keys: str | None, event: str, count: int, workers: str
) -> None:
    variables = SERVICE_LINKS | ({"TOPK_API_KEYS": keys} if keys else {})
    server = Server(*MODEL, "--workers", workers, env=variables)
    server.wait_for(event, keys=count)
    server.wait_for("starting the engine and measuring its speed", usually="1 to 3 s")
    assert server.stop() == 0
    assert [line for line in server.log if line.get("level") != "info"] == []
