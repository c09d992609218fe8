import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, complaint, surroundings, unknown_names
from tests.conftest import environment


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name not in environment()]:
        monkeypatch.delenv(name)


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
        *({"root_path": path} for path in ("/a b", "/ä", "/../x", "/%41", "//x", "/v?x")),
        *({"model_name": name} for name in (".", "..", "", "a" * 129)),
        {"max_pixels": 0},
        {"engine": "x"},
    ],
)
def test_senseless_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


@pytest.mark.parametrize(("given", "meant"), [("/", ""), ("/a/", "/a"), ("/a/b", "/a/b"), ("", "")])
def test_a_prefix_is_taken_with_and_without_a_slash_at_its_end(given: str, meant: str) -> None:
    assert Settings(root_path=given).root_path == meant


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PORT": "abc"}, "PORT: 'abc' is no whole number"),
        ({"AIP_HTTP_PORT": "70000", "PORT": "1"}, "AIP_HTTP_PORT: '70000' is more than 65535"),
        ({"AIP_HEALTH_ROUTE": "x"}, "AIP_HEALTH_ROUTE: 'x' is no path, such as /predict: it begins with / and has no"),
        ({"TOPK_MAX_PIXELS": "0"}, "TOPK_MAX_PIXELS: '0' is less than 1"),
        ({"topk_traces": "perhaps"}, "topk_traces: 'perhaps' is neither true nor false"),
        ({"TOPK_ENGINE": "x"}, "TOPK_ENGINE: 'x' is none of 'auto', 'torch' and 'openvino'"),
        ({"TOPK_PROTOCOLS": "v2,v3"}, "TOPK_PROTOCOLS: 'v3' is none of 'v2', 'v1', "),
        ({"TOPK_API_KEYS": ",,"}, "TOPK_API_KEYS: ',,' holds nothing but commas"),
        ({"TOPK_DEVICE": "gpu"}, "TOPK_DEVICE: 'gpu' is no device: auto, cpu, mps, cuda, or one of several"),
        ({"TOPK_RATE_LIMIT": "10"}, "TOPK_RATE_LIMIT: '10' is not one rate above 0, such as 10/second"),
        ({"TOPK_TRUSTED_PROXIES": "10.0.0.1/8"}, "TOPK_TRUSTED_PROXIES: '10.0.0.1/8' is no address or network; write"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_plainly_of_what_was_set(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as error:
        Settings()
    assert complaint(error.value).startswith(sentence)


def test_what_is_wrong_with_an_option_or_in_dotenv_is_said_of_it() -> None:
    Path(".env").write_text("PORT=abc\n")
    with pytest.raises(ValidationError) as error:
        Settings()
    assert complaint(error.value) == "PORT: 'abc' is no whole number"
    with pytest.raises(ValidationError) as error:
        Settings(port="http")
    assert complaint(error.value, ["port"]) == "--port: 'http' is no whole number"


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOPK_WEIGHTS", "TOPK_MAX_PIXELS", "TOPK_CORS_ORIGINS", "PORT"):
        monkeypatch.setenv(name, "")
    assert Settings() == Settings(weights=None, cors_origins=())
    assert Settings().weights is None


@pytest.mark.parametrize("variable", ["TOPK_API_KEYS", "TOPK_API_KEYS_FILE", "topk_api_keys"])
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_keys_that_are_set_but_empty_open_nothing(variable: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == ".env":
        Path(".env").write_text(f"{variable}=\n")
    else:
        monkeypatch.setenv(variable, "")
    with pytest.raises(ValidationError) as error:
        Settings()
    assert complaint(error.value) == (
        f"{variable}: it is set but empty, which would serve everybody; unset it to ask for no key"
    )


def test_an_empty_variable_does_not_fall_back_to_the_keys_of_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TOPK_API_KEYS=one\n")
    assert Settings().api_keys
    monkeypatch.setenv("TOPK_API_KEYS", "")
    with pytest.raises(ValidationError, match="set but empty"):
        Settings()


def test_an_option_without_keys_opens_nothing() -> None:
    for option in ("api_keys", "api_keys_file"):
        with pytest.raises(ValidationError) as error:
            Settings(**{option: ""})
        assert complaint(error.value, [option]).startswith(f"--{option.replace('_', '-')}: it is set but empty")


def test_an_option_with_keys_wins_over_an_empty_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_API_KEYS", "")
    assert Settings(api_keys="mine").api_keys[0].get_secret_value() == "mine"


def test_misspelt_variables_are_found() -> None:
    variables = {"TOPK_MODEL": "x", "TOPK_MODLE": "x", "topk_port": "1", "HOME": "/"}
    assert unknown_names(variables) == ["TOPK_MODLE (TOPK_MODEL?)"]
    assert unknown_names({"TOPK_QQQ": "1", "TOPK_AIP_HEALTH_ROUTE": "/x"}) == ["TOPK_QQQ"]


def test_misspelt_variables_are_found_in_dotenv_too() -> None:
    Path(".env").write_text("TOPK_MAX_PIXELZ=1\nTOPK_PORT=1\nOTHER=1\n")
    assert unknown_names(surroundings()) == ["TOPK_MAX_PIXELZ (TOPK_MAX_PIXELS?)"]


@pytest.mark.parametrize(
    "origin",
    [
        *("page.example", "https://page.example/", "https://page.example/path", "ftp://x", "https://a b.example"),
        *("https://*.page.example", "https://page.example:443", "http://page.example:80", "https://ü.example"),
        *("https://Page.example", "https://page.example:0443", "https://page.example:70000", "https://me@page.example"),
    ],
)
def test_what_no_browser_sends_as_its_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=origin)


@pytest.mark.parametrize("origin", ["*", "https://page.example", "http://localhost:3000", "http://[::1]:8080"])
def test_what_browsers_send_as_their_origin_is_taken(origin: str) -> None:
    assert Settings(cors_origins=origin).cors_origins == (origin,)
