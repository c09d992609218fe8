import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.errors import ModelError
from app.settings import PROTOCOLS, Settings
from app.settings.messages import explain, unknown_names
from app.settings.variables import environment
from tests.conftest import environment as without_settings


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name not in without_settings()]:
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
        ({"PORT": "abc"}, "PORT: 'abc' is not a whole number"),
        ({"AIP_HTTP_PORT": "70000", "PORT": "1"}, "AIP_HTTP_PORT: '70000' is too large; the maximum is 65535"),
        ({"AIP_HEALTH_ROUTE": "x"}, "AIP_HEALTH_ROUTE: 'x' is not a path; start it with / and use no"),
        ({"TOPK_MAX_PIXELS": "0"}, "TOPK_MAX_PIXELS: '0' is too small; the minimum is 1"),
        ({"topk_traces": "perhaps"}, "topk_traces: 'perhaps' is not a boolean; write true or false"),
        ({"TOPK_ENGINE": "x"}, "TOPK_ENGINE: 'x' is not allowed; choose 'auto', 'torch' or 'openvino'"),
        ({"TOPK_PROTOCOLS": "v2,v3"}, "TOPK_PROTOCOLS: 'v3' is not allowed; choose 'v2', 'kserve-v1', "),
        ({"TOPK_API_KEYS": ",,"}, "TOPK_API_KEYS: ',,' contains only commas"),
        ({"TOPK_DEVICE": "gpu"}, "TOPK_DEVICE: 'gpu' is not a device; choose auto, cpu, mps, cuda, or one of several"),
        ({"TOPK_RATE_LIMIT": "10"}, "TOPK_RATE_LIMIT: '10' is not a rate above 0; write it as 10/second"),
        ({"TOPK_CORS_ORIGINS": "https://Page.example"}, "TOPK_CORS_ORIGINS: 'https://Page.example' differs from what"),
        ({"TOPK_CORS_ORIGINS": "https://ü.example"}, "TOPK_CORS_ORIGINS: 'https://ü.example' differs from what"),
        ({"TOPK_CORS_ORIGINS": "page.example"}, "TOPK_CORS_ORIGINS: 'page.example' is not an origin, such as"),
        ({"TOPK_TRUSTED_PROXIES": "nginx"}, "TOPK_TRUSTED_PROXIES: 'nginx' is not an IP address or network; write it"),
        (
            {"TOPK_TRUSTED_PROXIES": "10.0.0.1/8"},
            "TOPK_TRUSTED_PROXIES: '10.0.0.1/8' is not an IP address or network; write 10.0.0.0/8",
        ),
    ],
    ids=str,
)
def test_a_message_names_the_variable_and_what_is_wrong(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as error:
        Settings()
    assert explain(error.value).startswith(sentence)


def test_a_message_names_an_option_and_a_variable_of_dotenv() -> None:
    Path(".env").write_text("PORT=abc\n")
    with pytest.raises(ValidationError) as error:
        Settings()
    assert explain(error.value) == "PORT: 'abc' is not a whole number"
    with pytest.raises(ValidationError) as error:
        Settings(port="http")
    assert explain(error.value, ["port"]) == "--port: 'http' is not a whole number"


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
    assert explain(error.value) == (
        f"{variable}: it is set but empty, which would let everyone in; unset it to require no key"
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
        assert explain(error.value, [option]).startswith(f"--{option.replace('_', '-')}: it is set but empty")


def test_an_option_with_keys_wins_over_an_empty_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_API_KEYS", "")
    assert Settings(api_keys="mine").api_keys[0].get_secret_value() == "mine"


def test_misspelt_variables_are_found() -> None:
    variables = {"TOPK_MODEL": "x", "TOPK_MODLE": "x", "topk_port": "1", "HOME": "/"}
    assert unknown_names(variables) == ["TOPK_MODLE (TOPK_MODEL?)"]
    assert unknown_names({"TOPK_QQQ": "1", "TOPK_AIP_HEALTH_ROUTE": "/x"}) == ["TOPK_QQQ"]


def test_misspelt_variables_are_found_in_dotenv_too() -> None:
    Path(".env").write_text("TOPK_MAX_PIXELZ=1\nTOPK_PORT=1\nOTHER=1\n")
    assert unknown_names(environment()) == ["TOPK_MAX_PIXELZ (TOPK_MAX_PIXELS?)"]


@pytest.mark.parametrize(
    "origin",
    [
        *("page.example", "https://page.example/", "https://page.example/path", "ftp://x", "https://a b.example"),
        *("https://*.page.example", "https://page.example:443", "http://page.example:80", "https://ü.example"),
        *("https://page.example:0", "https://page.example?a=1", "https://page.example#a", "https://"),
        *("https://Page.example", "https://page.example:0443", "https://page.example:70000", "https://me@page.example"),
        *("capacitor://localhost/", "capacitor://localhost/page", "Capacitor://localhost", "app://*", "app://me@host"),
        *("htps://page.example", "ws://page.example", "://page.example", "app:localhost", "app://a b", "file", "NULL"),
    ],
)
def test_what_no_browser_sends_as_its_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=origin)


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "https://page.example", "http://localhost:3000", "http://[::1]:8080"),
        *("capacitor://localhost", "ionic://localhost", "tauri://localhost", "app://.", "app://obsidian.md", "file://"),
        *(
            "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
            "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
        ),
        *("safari-web-extension://E2B7F2C5-6B0A-4F6D-9A36-4C2D2BC3D3A7", "com.example.app://localhost:8080", "null"),
    ],
)
def test_what_browsers_send_as_their_origin_is_taken(origin: str) -> None:
    assert Settings(cors_origins=origin).cors_origins == (origin,)


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("TOPK_API_KEY", "TOPK_API_KEYS"),
        ("topk_api_key", "TOPK_API_KEYS"),
        ("TOPK_APIKEYS", "TOPK_API_KEYS"),
        ("TOPK_AUTH_TOKEN", "TOPK_API_KEYS"),
        ("TOPK_SECRET", "TOPK_API_KEYS"),
        ("TOPK_API_KEY_FILE", "TOPK_API_KEYS_FILE"),
        ("TOPK_KEYS_FILE", "TOPK_API_KEYS_FILE"),
        ("TOPK_TRUSTED_PROXY", "TOPK_TRUSTED_PROXIES"),
        ("TOPK_FORWARDED_ALLOW_IPS", "TOPK_TRUSTED_PROXIES"),
        ("TOPK_RATELIMIT", "TOPK_RATE_LIMIT"),
        ("TOPK_RATE", "TOPK_RATE_LIMIT"),
        ("TOPK_CORS_ORIGIN", "TOPK_CORS_ORIGINS"),
        ("TOPK_CORS_ALLOW_ORIGINS", "TOPK_CORS_ORIGINS"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_an_unknown_name_that_resembles_a_security_setting_is_an_error(
    variable: str, setting: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == ".env":
        Path(".env").write_text(f"{variable}=secret\n")
    else:
        monkeypatch.setenv(variable, "secret")
    with pytest.raises(ModelError, match=f"^{variable} is not a setting; did you mean {setting}[?]"):
        unknown_names(environment())


@pytest.mark.parametrize("field", Settings.model_fields)
def test_no_setting_is_an_unknown_name(field: str) -> None:
    assert unknown_names({f"TOPK_{field.upper()}": "x"}) == []


@pytest.mark.parametrize("name", ["TOPK_MAX_PIXELZ", "TOPK_MODLE", "TOPK_TRACE", "TOPK_ENGINES", "TOPK_QQQ", "TOPK_"])
def test_other_unknown_names_do_not_stop_the_start(name: str) -> None:
    assert len(unknown_names({name: "x"})) == 1


SERVICE_LINKS = {
    "TOPK_SERVICE_HOST": "10.0.0.9",
    "TOPK_SERVICE_PORT": "8000",
    "TOPK_SERVICE_PORT_HTTP": "8000",
    "TOPK_PORT": "tcp://10.0.0.9:8000",
    "TOPK_PORT_8000_TCP": "tcp://10.0.0.9:8000",
    "TOPK_PORT_8000_TCP_PROTO": "tcp",
    "TOPK_PORT_8000_TCP_PORT": "8000",
    "TOPK_PORT_8000_TCP_ADDR": "10.0.0.9",
    "TOPK_PORT_53_UDP": "udp://10.0.0.9:53",
    "TOPK_AUTH_SERVICE_HOST": "10.0.0.8",
    "TOPK_AUTH_PORT": "tcp://10.0.0.8:80",
    "TOPK_AUTH_PORT_80_TCP": "tcp://10.0.0.8:80",
    "TOPK_API_KEYS_SERVICE_HOST": "10.0.0.7",
}


@pytest.mark.parametrize(
    ("others", "port"),
    [({}, 8000), ({"PORT": "8080"}, 8080), ({"AIP_HTTP_PORT": "7080", "PORT": "8080"}, 7080)],
    ids=["default", "PORT", "AIP_HTTP_PORT"],
)
def test_the_service_links_of_kubernetes_are_ignored(
    others: dict[str, str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SERVICE_LINKS | others).items():
        monkeypatch.setenv(name, value)
    assert Settings().port == port
    assert unknown_names(environment()) == []


def test_a_service_link_leaves_the_port_to_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TOPK_PORT=81\n")
    monkeypatch.setenv("TOPK_PORT", SERVICE_LINKS["TOPK_PORT"])
    assert Settings().port == 81


def test_a_message_about_the_port_does_not_name_a_service_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPK_PORT", SERVICE_LINKS["TOPK_PORT"])
    monkeypatch.setenv("PORT", "abc")
    with pytest.raises(ValidationError) as error:
        Settings()
    assert explain(error.value) == "PORT: 'abc' is not a whole number"


def test_an_option_is_never_taken_for_a_service_link() -> None:
    with pytest.raises(ValidationError) as error:
        Settings(port="tcp://10.0.0.9:8000")
    assert explain(error.value, ["port"]) == "--port: 'tcp://10.0.0.9:8000' is not a whole number"


@pytest.mark.parametrize(("given", "meant"), [("v1", ("kserve-v1",)), ("v2,v1,vertex", ("v2", "kserve-v1", "vertex"))])
def test_the_old_name_of_a_protocol_is_accepted(given: str, meant: tuple[str, ...]) -> None:
    assert Settings(protocols=given).protocols == meant
    assert "v1" not in PROTOCOLS
