from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, unknown_names


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_argument_wins_over_the_environment_and_that_over_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TOPK_MODEL=vgg16\nTOPK_MAX_PIXELS=1000\nTOPK_PORT=81\n")
    monkeypatch.setenv("TOPK_MODEL", "alexnet")
    monkeypatch.setenv("TOPK_MAX_PIXELS", "2000")
    settings = Settings(model="resnet18")
    assert (settings.model, settings.max_pixels, settings.port) == ("resnet18", 2000, 81)


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_CORS_ORIGINS", "https://a.example, https://b.example,")
    monkeypatch.setenv("TOPK_API_KEYS", "one,two")
    settings = Settings()
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert "'two'" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_name": "a/b"},
        {"device": "gpu"},
        {"root_path": "vision"},
        {"root_path": "/v/"},
        {"max_pixels": 0},
        {"engine": "x"},
    ],
)
def test_senseless_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOPK_WEIGHTS", "TOPK_MAX_PIXELS", "TOPK_API_KEYS", "PORT"):
        monkeypatch.setenv(name, "")
    assert Settings() == Settings(weights=None, api_keys=())
    assert Settings().weights is None


def test_misspelt_variables_are_found() -> None:
    environment = {"TOPK_MODEL": "x", "TOPK_MODLE": "x", "topk_port": "1", "HOME": "/"}
    assert unknown_names(environment) == ["TOPK_MODLE"]


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "https://page.example/path", "ftp://x"])
def test_what_no_browser_sends_as_its_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=origin)
