from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError

from app.api.auth import Keys
from app.errors import ModelError, Unauthorized
from app.settings import Settings
from tests import tiny
from tests.conftest import Server


def keys(**settings: object) -> Keys:
    return Keys(Settings(_env_file=None, **settings))


def test_keys_come_from_the_setting_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the app's\nfrom-file\n\n  spaced  \n")
    accepted = keys(api_keys="from-setting", api_keys_file=file)
    for key in ("from-setting", "from-file", "spaced"):
        accepted.check(key)
    for key in (None, "", "# the app's", "FROM-FILE"):
        with pytest.raises(Unauthorized):
            accepted.check(key)


def test_without_keys_nobody_is_asked() -> None:
    keys().check(None)
    keys().check("whatever")


def test_a_file_without_keys_opens_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(ModelError, match="contains no API key"):
        keys(api_keys_file=file)


def test_separators_alone_open_nothing() -> None:
    with pytest.raises(ValidationError, match="contains only commas"):
        keys(api_keys=" , ")


def test_a_key_no_header_can_carry_is_refused() -> None:
    with pytest.raises(ModelError, match="printable ASCII"):
        keys(api_keys="schlüssel")


def test_any_of_the_keys_given_will_do() -> None:
    accepted = keys(api_keys="right")
    accepted.check("wrong", " right ")
    with pytest.raises(Unauthorized):
        accepted.check("wrong", None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text("old\n")
    accepted = Keys(Settings(_env_file=None, api_keys_file=file), clock)
    file.write_text("newer\nnewest\n")
    accepted.check("old")  # looked at a moment ago
    clock.now += 1
    accepted.check("newest")
    with pytest.raises(Unauthorized):
        accepted.check("old")
    for broken in ("# nothing\n", "schlüssel\n"):
        file.write_text(broken)
        clock.now += 1
        accepted.check("newest")
    file.unlink()
    clock.now += 1
    accepted.check("newest")
    file.write_text("back\n")
    clock.now += 1
    accepted.check("back")


def test_a_file_replaced_behind_a_link_is_read_again(tmp_path: Path) -> None:
    """As Kubernetes renews a mounted secret."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"{version}\n")
    data, clock = tmp_path / "data", Clock()
    data.symlink_to("one")
    accepted = Keys(Settings(_env_file=None, api_keys_file=data / "keys"), clock)
    accepted.check("one")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(data)
    clock.now += 1
    accepted.check("two")


def test_keys_are_never_logged(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("secret-of-the-file\n")
    options = (*tiny.model(), "--log-level", "debug", "--api-keys-file", str(file))
    server = Server(*options, env={"TOPK_API_KEYS": "secret-of-the-setting"})
    for key in ("secret-of-the-file", "secret-of-the-setting", "secret-that-is-wrong"):
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            httpx2.get(f"{server.url}/v1/info", headers=headers)
            httpx2.post(f"{server.url}/v1/predict", content=b"no image", headers=headers)
    file.write_text("secret-of-another-file\n")
    answer = None
    while answer != 200:
        answer = httpx2.get(f"{server.url}/v1/info", headers={"X-API-Key": "secret-of-another-file"}).status_code
    server.wait_for("API keys reloaded")
    assert server.stop() == 0
    assert len(server.log) > 12
    assert "secret" not in str(server.log)
